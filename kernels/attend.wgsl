// Adds one tile to the state of its query rows: õ = Σ exp(s − m)·v, m = max s and l = Σ exp(s − m), where s = q·k runs
// over the keys that the row has seen so far, in this tile and in every one before.
//
// An invocation owns ROWS consecutive query rows of one head and holds their q and õ in registers. It takes KEYS keys at
// a time: each k and v that it reads serves all its rows, and each group of keys brings one new maximum, one rescaling
// of õ and one sum of its own. Each chunk of CHUNK keys begins with an empty state and is then added to the one in
// memory, so that no sum has many terms: that rounds less than key by key, and long sequences need it.
//
// | grid            | x: LANES · ROWS rows of the tile    y: query head    z: batch entry |
// | task            | the tile and the shapes, one record per dispatch                    |
// | queries         | [batch, queryTokens, heads, QUADS], times the scale of the scores   |
// | keys, values    | [batch, keyTokens, kvHeads, QUADS], bindings 2 and 3                |
// | outputs         | õ, as queries                                                       |
// | tops            | (m, l): [batch, heads, queryTokens]; l = 0 is a row without keys,   |
// |                 | l = −1 one with a score beyond the range of float32                 |
//
// The band of keys that a row may see is an interval of the tile's keys, for they ascend. The rows of a workgroup visit
// the union of theirs, and test each pair only outside the part that all of them see.
//
// WGSL promises nothing about infinities and NaNs. So there are none: whether a pair counts is a flag of its own, since
// a row may well have no score above the lowest float32, and no difference or exponent can leave the range. Only a score
// itself can: its row is lost from then on, which l = −1 says.
//
// The program is completed in front of this text: ROWS, KEYS, LANES, QUADS (a quarter of the head dimension), and how
// keys and values are stored, in textures or buffers. `placeOf` says where a head of a token lies, counted through
// [batch, keyTokens, kvHeads]; `key` and `value` give four components from such a place. A block from
// `//@ for $x < N` to `//@ end` is repeated for x = 0 … N − 1, with every $x replaced by the number: WGSL has no other
// way to keep such arrays in registers. Elsewhere a loop picks its element by comparing: that is less to compile.

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
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(1) var<storage, read> queries: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> outputs: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> tops: array<vec2f>;

const CHUNK = 256;
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

// Infinities and NaNs have all bits of the exponent set.
fn outOfRange(x: f32) -> bool {
  return (bitcast<u32>(x) & 0x7f800000u) == 0x7f800000u;
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

  let keyToken = group.z * task.keyTokens + task.column;
  let keyBase = keyToken * task.kvHeads + group.y * task.kvHeads / task.heads;

  // Rows beyond the tile are shadows of its last row, which are never written.
  //@ for $r < ROWS
  let live$r = myRow + $ru < task.rows;
  let row$r = min(myRow + $ru, task.rows - 1u);
  let position$r = positionAt(task.querySpan, i32(row$r));
  let query$r = ((group.z * task.queryTokens + task.row + row$r) * task.heads + group.y) * QUADS;
  let top$r = (group.z * task.heads + group.y) * task.queryTokens + task.row + row$r;
  //@ for $c < QUADS
  var q$r_$c = vec4f(0.0);
  //@ end
  //@ end
  for (var c = 0u; c < QUADS; c++) {
    //@ for $r < ROWS
    let read$r = queries[query$r + c];
    //@ for $c < QUADS
    q$r_$c = select(q$r_$c, read$r, c == $cu);
    //@ end
    //@ end
  }

  for (var chunk = begin; chunk < end; chunk += CHUNK) {
    let chunkEnd = min(chunk + CHUNK, end);
    //@ for $r < ROWS
    var m$r = LOWEST;
    var l$r = 0.0;
    var lost$r = false;
    //@ for $c < QUADS
    var o$r_$c = vec4f(0.0);
    //@ end
    //@ end

    for (var k = chunk; k < chunkEnd; k += KEYS) {
      // Keys beyond the end are shadows of the last one, which nobody sees.
      //@ for $j < KEYS
      let at$j = placeOf(keyBase + u32(min(k + $j, chunkEnd - 1)) * task.kvHeads);
      //@ for $r < ROWS
      var score$r_$j = 0.0;
      var seen$r_$j = true;
      //@ end
      //@ end

      //@ for $c < QUADS
      //@ for $j < KEYS
      let k$j_$c = key(at$j, $cu);
      //@ for $r < ROWS
      score$r_$j += dot(q$r_$c, k$j_$c);
      //@ end
      //@ end
      //@ end

      if (k < clearBegin || k + KEYS > min(clearEnd, chunkEnd)) {
        //@ for $j < KEYS
        let keyPosition$j = positionAt(task.keySpan, k + $j);
        //@ for $r < ROWS
        seen$r_$j = k + $j < chunkEnd &&
          keyPosition$j >= position$r - task.back && keyPosition$j <= position$r + task.ahead;
        //@ end
        //@ end
      }

      //@ for $r < ROWS
      var highest$r = m$r;
      //@ for $j < KEYS
      highest$r = max(highest$r, select(LOWEST, score$r_$j, seen$r_$j));
      lost$r = lost$r || (seen$r_$j && outOfRange(score$r_$j));
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

      //@ for $c < QUADS
      //@ for $j < KEYS
      let v$j_$c = value(at$j, $cu);
      //@ end
      //@ for $r < ROWS
      var sum$r_$c = vec4f(0.0);
      //@ for $j < KEYS
      sum$r_$c += p$r_$j * v$j_$c;
      //@ end
      o$r_$c = o$r_$c * keep$r + sum$r_$c;
      //@ end
      //@ end
    }

    //@ for $r < ROWS
    if (live$r) {
      let before = tops[top$r];
      let top = select(LOWEST, before.x, before.y > 0.0);
      let highest = max(top, m$r);
      let keep = weight(top, highest);
      let add = weight(m$r, highest);
      let l = before.y * keep + l$r * add;
      tops[top$r] = vec2f(highest, select(l, -1.0, lost$r || before.y < 0.0));
      for (var c = 0u; c < QUADS; c++) {
        var o = vec4f(0.0);
        //@ for $c < QUADS
        o = select(o, o$r_$c, c == $cu);
        //@ end
        outputs[query$r + c] = outputs[query$r + c] * keep + o * add;
      }
    }
    //@ end
  }
}
