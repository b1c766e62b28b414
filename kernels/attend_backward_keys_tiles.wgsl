// What one tile adds to dk and dv, and its dS: the first of two passes as matrix products in workgroup memory, for GPUs;
// see `attend_backward_task.wgsl`, and `attend_tiles.wgsl` for how a workgroup is divided.
//
// A workgroup has DOWN · KEYS keys of one key head and takes TILE query rows at a time, of one query head after the other
// that reads this key head. An invocation computes P and dS of KEYS keys and ROWS rows, and holds OWN quads of dk and dv
// of the same keys in registers; every CHUNK rows they are added to what is in memory, so that no sum is long.
//
// | grid | x: DOWN · KEYS keys of the tile    y: (batch entry, key head), from task.first on |
//
// Workgroup memory holds one after the other DEPTH quads of k and q, the same of v and dO, then P and HELD rows of dO, and
// dS and HELD rows of q. The last of the lines, one for each row, are what is written down: key DOWN · r + d of a
// workgroup is number KEYS · d + r there.

@group(0) @binding(4) var<storage, read_write> scores: array<vec4f>;

var<workgroup> stage: array<vec4f, STAGE>;
// Of each key: the first row that sees it, and how many they are.
var<workgroup> seenBy: array<vec2i, DOWN * KEYS>;

// The tile's rows before the first that is beyond position p.
fn rowsUpTo(p: i32) -> i32 {
  return countUpTo(task.querySpan, task.rows, p);
}

@compute @workgroup_size(LANES)
fn backward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let firstKey = i32(stretchOf(group.x, groups.x) * DOWN * KEYS);
  let lastKey = min(firstKey + i32(DOWN * KEYS), task.columns) - 1;
  let begin = rowsUpTo(positionAt(task.keySpan, firstKey) - task.ahead - 1);
  let end = rowsUpTo(positionAt(task.keySpan, lastKey) + task.back);
  if (begin >= end) { return; }

  let entry = (task.first + group.y) / task.kvHeads;
  let keyHead = (task.first + group.y) % task.kvHeads;
  let sharing = task.heads / task.kvHeads;
  let keyBase = (entry * task.keyTokens + task.column) * task.kvHeads + keyHead;
  let down = lane / ACROSS;
  let across = lane % ACROSS;

  // Keys beyond the tile are shadows of its last key, which no row sees and which are never written.
  for (var i = lane; i < DOWN * KEYS; i += LANES) {
    let key = firstKey + i32(i);
    let position = positionAt(task.keySpan, min(key, task.columns - 1));
    let low = rowsUpTo(position - task.ahead - 1);
    seenBy[i] = vec2i(low, select(0, rowsUpTo(position + task.back) - low, key < task.columns));
  }
  //@ for $r < KEYS
  let key$r = firstKey + i32(down + DOWN * $ru);
  //@ if PLACED
  let position$r = positionAt(task.keySpan, min(key$r, task.columns - 1));
  //@ end
  //@ end

  for (var n = 0u; n < sharing; n++) {
    let head = keyHead * sharing + n;
    let rowBase = (entry * task.heads + head) * task.queryTokens + task.row;
    let scoreBase = (group.y * sharing + n) * task.rowQuads * FOUR;

    for (var chunk = begin; chunk < end; chunk += CHUNK) {
      //@ for $r < KEYS
      //@ for $o < OWN
      // What is added to dv, and to dk.
      var sum0_$r_$o = vec4f(0.0);
      var sum1_$r_$o = vec4f(0.0);
      //@ end
      //@ end
      for (var first = chunk; first < min(chunk + CHUNK, end); first += TILE) {
        // s and dO · v.
        //@ for $m < TWO
        //@ for $r < KEYS
        //@ for $j < ROWS
        var product$m_$r_$j = 0.0;
        //@ end
        //@ end
        for (var part = 0u; part < QUADS; part += DEPTH) {
          workgroupBarrier();
          for (var i = lane; i < DOWN * KEYS * DEPTH; i += LANES) {
            let key = u32(min(firstKey + i32(i / DEPTH), task.columns - 1));
            let c = part + i % DEPTH;
            let x = blockAt(placeOf($mu * task.values + keyBase + key * task.kvHeads), min(c, QUADS - 1u));
            stage[i / DEPTH * LINE + i % DEPTH] = select(vec4f(0.0), x, c < QUADS);
          }
          for (var i = lane; i < u32(TILE) * DEPTH; i += LANES) {
            // Rows beyond the tile are shadows of its last one, which see nothing.
            let row = u32(min(first + i32(i / DEPTH), task.rows - 1));
            let c = part + i % DEPTH;
            let x = rowAt(placeOf($mu * task.cotangents + rowBase + row), min(c, QUADS - 1u));
            stage[(DOWN * KEYS + i / DEPTH) * LINE + i % DEPTH] = select(vec4f(0.0), x, c < QUADS);
          }
          workgroupBarrier();
          //@ for $c < DEPTH
          {
            //@ for $r < KEYS
            let k$r = stage[(down + DOWN * $ru) * LINE + $cu];
            //@ end
            //@ for $j < ROWS
            let q$j = stage[(DOWN * KEYS + across + ACROSS * $ju) * LINE + $cu];
            //@ end
            //@ for $e < FOUR
            //@ for $j < ROWS
            //@ for $r < KEYS
            product$m_$r_$j = fma(k$r[$e], q$j[$e], product$m_$r_$j);
            //@ end
            //@ end
            //@ end
          }
          //@ end
        }
        //@ end

        // P, then dS.
        //@ for $j < ROWS
        let row$j = first + i32(across + ACROSS * $ju);
        let outcome$j = outcomeAt(rowBase + u32(min(row$j, task.rows - 1))).xy;
        //@ if PLACED
        let rowPlace$j = positionAt(task.querySpan, min(row$j, task.rows - 1));
        //@ end
        //@ end
        //@ for $r < KEYS
        let sees$r = seenBy[down + DOWN * $ru];
        //@ for $j < ROWS
        //@ if PAIRWISE
        let seen$r_$j = u32(row$j - sees$r.x) < u32(sees$r.y) &&
          pairSees(i32(entry), i32(head), rowPlace$j, position$r);
        //@ else
        let seen$r_$j = u32(row$j - sees$r.x) < u32(sees$r.y);
        //@ end
        product1_$r_$j -= outcome$j.y;
        //@ if SCORED
        product1_$r_$j *= pairSlope(product0_$r_$j, i32(entry), i32(head), rowPlace$j, position$r);
        product0_$r_$j = pairScore(product0_$r_$j, i32(entry), i32(head), rowPlace$j, position$r);
        //@ end
        product0_$r_$j = select(0.0, weight(product0_$r_$j, outcome$j.x), seen$r_$j);
        product1_$r_$j = select(0.0, product0_$r_$j * product1_$r_$j, seen$r_$j);
        //@ end
        //@ end

        // With dO and q: what they add to dv and dk.
        //@ for $m < TWO
        workgroupBarrier();
        //@ for $j < ROWS
        //@ for $h < FOURS
        var line$m_$j_$h = vec4f(0.0);
        //@ end
        //@ for $r < KEYS
        line$m_$j_$[$r / FOUR][$[$r % FOUR]] = product$m_$r_$j;
        //@ end
        //@ for $h < FOURS
        stage[(across + ACROSS * $ju) * PITCH + down * FOURS + $hu] = line$m_$j_$h;
        //@ end
        //@ end
        for (var held = 0; held < TILE; held += HELD) {
          for (var i = lane; i < u32(HELD) * QUADS; i += LANES) {
            let row = u32(min(first + held + i32(i / QUADS), task.rows - 1));
            stage[u32(TILE) * PITCH + i] =
              rowAt(placeOf((1u - $mu) * task.cotangents + rowBase + row), i % QUADS);
          }
          workgroupBarrier();
          for (var i = 0u; i < u32(HELD); i += STEP) {
            //@ for $s < STEP
            {
              //@ for $h < FOURS
              let w$h = stage[(u32(held) + i + $su) * PITCH + down * FOURS + $hu];
              //@ end
              //@ for $o < OWN
              let x$o = stage[u32(TILE) * PITCH + (i + $su) * QUADS + across + ACROSS * $ou];
              //@ for $r < KEYS
              sum$m_$r_$o = fma(vec4f(w$[$r / FOUR][$[$r % FOUR]]), x$o, sum$m_$r_$o);
              //@ end
              //@ end
            }
            //@ end
          }
          workgroupBarrier();
        }
        //@ end
        for (var i = lane; i < u32(TILE) * DOWN * FOURS; i += LANES) {
          let row = first + i32(i / (DOWN * FOURS));
          let quad = i % (DOWN * FOURS);
          if (row < i32(task.rowQuads * FOUR)) {
            scores[(scoreBase + u32(row)) * (task.pitch / FOUR) + u32(firstKey) / FOUR + quad] =
              stage[i / (DOWN * FOURS) * PITCH + quad];
          }
        }
      }
      //@ for $r < KEYS
      if (key$r < task.columns) {
        let at = (keyBase + u32(key$r) * task.kvHeads) * QUADS + across;
        //@ for $o < OWN
        if (across + ACROSS * $ou < QUADS) {
          gradients[task.values * QUADS + at + ACROSS * $ou] += sum0_$r_$o;
          gradients[at + ACROSS * $ou] += sum1_$r_$o;
        }
        //@ end
      }
      //@ end
    }
  }
}
