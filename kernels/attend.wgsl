// Adds one tile to the state of its query rows: õ = Σ exp(s − m)·v, m = max s and l = Σ exp(s − m), where s = q·k runs
// over the keys that the row has seen so far, in this tile and in every one before.
//
// An invocation owns ROWS consecutive query rows of one head and takes KEYS keys at a time: it holds their ROWS × KEYS
// scores in registers and streams q, k, then õ, v past them, four components of the head dimension at a step. Nothing
// depends on the head dimension but the length of two loops, so that one program serves them all. Each group of keys
// brings one new maximum, one rescaling of õ and one sum of its own, which also rounds less than key by key.
//
// | grid            | x: LANES · ROWS rows of the tile    y: query head    z: batch entry |
// | task            | the tile and the shapes, one record per dispatch                    |
// | queries         | [batch, queryTokens, heads, quads], times the scale of the scores   |
// | keys, values    | [batch, keyTokens, kvHeads, quads], float32, or 16 bits two a word  |
// | outputs         | õ, as queries                                                       |
// | tops            | (m, l): [batch, heads, queryTokens]; all zero is a row without keys |
//
// The band of keys that a row may see is an interval of the tile's keys, for they ascend. The rows of a workgroup visit
// the union of theirs, and test each pair only outside the part that all of them see.
//
// WGSL promises nothing about infinities and NaNs. So there are none: whether a pair counts is a flag of its own, since
// a row may well have no score above the lowest float32, and no difference or exponent can leave the range.
//
// The program is completed in front of this text: ROWS, KEYS, LANES, `Stored`, how four components lie in memory, and
// `load`, which reads them. A block from `//@ for $x < N` to `//@ end` is repeated for x = 0 … N − 1, with every $x
// replaced by the number: WGSL has no other way to keep such arrays in registers.

struct Task {
  // start, run, stride, first: a span of token positions.
  querySpan: vec4i,
  keySpan: vec4i,
  // First token of the tile, and how many it has, on either side.
  row: u32,
  rows: u32,
  column: u32,
  columns: i32,
  // Query q sees the keys from q − back to q + ahead.
  back: i32,
  ahead: i32,
  queryTokens: u32,
  keyTokens: u32,
  heads: u32,
  kvHeads: u32,
  // Head dimension / 4.
  quads: u32,
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(1) var<storage, read> queries: array<vec4f>;
@group(0) @binding(2) var<storage, read> keys: array<Stored>;
@group(0) @binding(3) var<storage, read> values: array<Stored>;
@group(0) @binding(4) var<storage, read_write> outputs: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> tops: array<vec2f>;

const LOWEST = -3.4028234e38;

// The position of a span's i-th token.
fn positionAt(span: vec4i, i: i32) -> i32 {
  let j = span.w + i;
  return span.x + (j / span.y) * span.z + j % span.y;
}

// How many of the tile's keys have a position of at most p.
fn keysUpTo(p: i32) -> i32 {
  let span = task.keySpan;
  let distance = p - span.x;
  if (distance < 0) { return 0; }
  let index = (distance / span.z) * span.y + min(distance % span.z + 1, span.y);
  return clamp(index - span.w, 0, task.columns);
}

// exp(a − b) for a ≤ b; below e⁻¹⁰⁰ there is no float32.
fn weight(a: f32, b: f32) -> f32 {
  return exp(2.0 * max(0.5 * a - 0.5 * b, -50.0));
}

@compute @workgroup_size(LANES)
fn attend(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let firstRow = group.x * LANES * ROWS;
  let lastRow = min(firstRow + LANES * ROWS, task.rows) - 1u;
  let myRow = firstRow + lane * ROWS;
  if (myRow >= task.rows) { return; }

  let nearest = positionAt(task.querySpan, i32(firstRow));
  let farthest = positionAt(task.querySpan, i32(lastRow));
  let begin = keysUpTo(nearest - task.back - 1);
  let end = keysUpTo(farthest + task.ahead);
  let clearBegin = keysUpTo(farthest - task.back - 1);
  let clearEnd = keysUpTo(nearest + task.ahead);
  if (begin >= end) { return; }

  let quads = task.quads;
  let keyStride = task.kvHeads * quads;
  let keyToken = group.z * task.keyTokens + task.column;
  let keyBase = keyToken * keyStride + (group.y * task.kvHeads / task.heads) * quads;

  // Rows beyond the tile are shadows of its last row that see no key and hence change nothing.
  //@ for $r < ROWS
  let live$r = myRow + $ru < task.rows;
  let row$r = min(myRow + $ru, task.rows - 1u);
  let position$r = positionAt(task.querySpan, i32(row$r));
  let query$r = ((group.z * task.queryTokens + task.row + row$r) * task.heads + group.y) * quads;
  let top$r = (group.z * task.heads + group.y) * task.queryTokens + task.row + row$r;
  var l$r = tops[top$r].y;
  var m$r = select(LOWEST, tops[top$r].x, l$r > 0.0);
  //@ end

  for (var k = begin; k < end; k += KEYS) {
    // Keys beyond the end are shadows of the last one, which nobody sees.
    //@ for $j < KEYS
    let key$j = keyBase + u32(min(k + $j, end - 1)) * keyStride;
    //@ for $r < ROWS
    var score$r_$j = 0.0;
    var seen$r_$j = live$r;
    //@ end
    //@ end

    for (var c = 0u; c < quads; c++) {
      //@ for $r < ROWS
      let q$r = queries[query$r + c];
      //@ end
      //@ for $j < KEYS
      let k$j = load(keys[key$j + c]);
      //@ for $r < ROWS
      score$r_$j += dot(q$r, k$j);
      //@ end
      //@ end
    }

    if (k < clearBegin || k + KEYS > clearEnd) {
      //@ for $j < KEYS
      let keyPosition$j = positionAt(task.keySpan, k + $j);
      //@ for $r < ROWS
      seen$r_$j = live$r && k + $j < end &&
        keyPosition$j >= position$r - task.back && keyPosition$j <= position$r + task.ahead;
      //@ end
      //@ end
    }

    //@ for $r < ROWS
    var highest$r = m$r;
    //@ for $j < KEYS
    highest$r = max(highest$r, select(LOWEST, score$r_$j, seen$r_$j));
    //@ end
    let keep$r = weight(m$r, highest$r);
    var sum$r = 0.0;
    //@ for $j < KEYS
    let p$r_$j = select(0.0, weight(score$r_$j, highest$r), seen$r_$j);
    sum$r += p$r_$j;
    //@ end
    m$r = highest$r;
    l$r = l$r * keep$r + sum$r;
    //@ end

    for (var c = 0u; c < quads; c++) {
      //@ for $j < KEYS
      let v$j = load(values[key$j + c]);
      //@ end
      // One row after the other, because a shadow writes where the row before it has written.
      //@ for $r < ROWS
      var o$r = vec4f(0.0);
      //@ for $j < KEYS
      o$r += p$r_$j * v$j;
      //@ end
      outputs[query$r + c] = outputs[query$r + c] * keep$r + o$r;
      //@ end
    }
  }

  //@ for $r < ROWS
  if (live$r) { tops[top$r] = vec2f(m$r, l$r); }
  //@ end
}
