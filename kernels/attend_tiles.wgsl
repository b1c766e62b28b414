// Adds one tile to the state of its query rows as a pair of matrix products in workgroup memory: version 5, `tiles`, for
// GPUs.
//
// A workgroup is DOWN times ACROSS invocations. It has DOWN · ROWS query rows and takes TILE = ACROSS · KEYS keys at a
// time. An invocation computes the scores of ROWS rows and KEYS keys, and then, of the same rows, OWN quads of õ: each
// row and key that it reads from workgroup memory serves KEYS or ROWS products, without which a GPU would wait for that
// memory and not compute. Its rows and keys lie DOWN and ACROSS apart, so that neighbours read from different banks.
//
// Workgroup memory holds one after the other:
//
// | scores  | DEPTH quads of all rows and keys, line after line; a line has one quad more, again for the banks   |
// | outputs | the weights, in lines of a key: those of an invocation's rows side by side; behind them HELD values |
//
// Registers are scarce on GPUs, so that every chunk of CHUNK keys is added to the state in memory, not to a second sum
// in registers as in `attend.wgsl`. A row's maximum and sum are those of ACROSS invocations: each has `shares` for its own.
//
// What is best for a GPU is worst for a driver that imitates one on the CPU, and the other way round: there workgroup
// memory is the slowest of all. What was measured on an NVIDIA H200 is in docs/decisions.md.
//
// `//@` lines are for `unroll`, as in `attend.wgsl`.

var<workgroup> stage: array<vec4f, STAGE>;
var<workgroup> shares: array<f32, DOWN * ROWS * ACROSS>;
//@ if MASKED
// Of each row: the first key that it sees, and how many they are.
var<workgroup> seenBy: array<vec2i, DOWN * ROWS>;
//@ end

@compute @workgroup_size(LANES)
fn attend(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let firstRow = stretchOf(group.x, groups.x) * DOWN * ROWS;
  let lastRow = min(firstRow + DOWN * ROWS, task.rows) - 1u;
  //@ for $v < VISITS
  let visit$v = visitOf(OTHERS$v, firstRow, lastRow);
  //@ end

  let down = lane / ACROSS;
  let across = lane % ACROSS;
  let keyToken = group.z * task.keyTokens + task.column;
  let keyBase = keyToken * task.kvHeads + group.y * task.kvHeads / task.heads;
  let queryBase = (group.z * task.queryTokens + task.row) * task.heads + group.y;

  // Rows beyond the tile are shadows of its last row, which are never written: all must reach the barriers.
  //@ for $r < ROWS
  let row$r = min(firstRow + down + DOWN * $ru, task.rows - 1u);
  let live$r = firstRow + down + DOWN * $ru < task.rows;
  let top$r = (group.z * task.heads + group.y) * task.queryTokens + task.row + row$r;
  //@ if PLACED
  let place$r = positionAt(task.querySpan, i32(row$r));
  //@ end
  //@ end
  //@ if MASKED
  for (var i = lane; i < DOWN * ROWS; i += LANES) {
    let position = positionAt(task.querySpan, i32(min(firstRow + i, task.rows - 1u)));
    let low = keysUpTo(position - task.back - 1);
    seenBy[i] = vec2i(low, keysUpTo(position + task.ahead) - low);
  }
  //@ end

  //@ for $v < VISITS
  for (var chunk = 0; chunk < visit$v.total; chunk += CHUNK) {
    let chunkEnd = min(chunk + CHUNK, visit$v.total);
    //@ for $r < ROWS
    var m$r = LOWEST;
    var l$r = 0.0;
    var worst$r = 0u;
    //@ for $o < OWN
    var o$r_$o = vec4f(0.0);
    //@ end
    //@ end

    for (var tile = chunk; tile < chunkEnd; tile += TILE) {
      //@ for $r < ROWS
      //@ for $j < KEYS
      var score$r_$j = 0.0;
      //@ end
      //@ end
      for (var part = 0u; part < QUADS; part += DEPTH) {
        workgroupBarrier();
        for (var i = lane; i < DOWN * ROWS * DEPTH; i += LANES) {
          let row = min(firstRow + i / DEPTH, task.rows - 1u);
          let c = part + i % DEPTH;
          let x = queries[(queryBase + row * task.heads) * QUADS + min(c, QUADS - 1u)] * task.scale;
          stage[i / DEPTH * LINE + i % DEPTH] = select(vec4f(0.0), x, c < QUADS);
        }
        for (var i = lane; i < u32(TILE) * DEPTH; i += LANES) {
          // Keys beyond the end are shadows of the tile's last one, which nobody sees.
          let token = min(keyOf(visit$v, tile + i32(i / DEPTH)), task.columns - 1);
          let place = placeOf(keyBase + u32(token) * task.kvHeads);
          let c = part + i % DEPTH;
          let x = key(place, min(c, QUADS - 1u));
          stage[(DOWN * ROWS + i / DEPTH) * LINE + i % DEPTH] = select(vec4f(0.0), x, c < QUADS);
        }
        workgroupBarrier();
        //@ for $c < DEPTH
        {
          //@ for $r < ROWS
          let q$r = stage[(down + DOWN * $ru) * LINE + $cu];
          //@ end
          //@ for $j < KEYS
          let k$j = stage[(DOWN * ROWS + across + ACROSS * $ju) * LINE + $cu];
          //@ end
          //@ for $e < FOUR
          //@ for $j < KEYS
          //@ for $r < ROWS
          score$r_$j = fma(q$r[$e], k$j[$e], score$r_$j);
          //@ end
          //@ end
          //@ end
        }
        //@ end
      }

      //@ for $j < KEYS
      let key$j = keyOf(visit$v, tile + i32(across + ACROSS * $ju));
      //@ if PLACED
      let keyPlace$j = positionAt(task.keySpan, min(key$j, task.columns - 1));
      //@ end
      //@ end
      //@ for $r < ROWS
      var highest$r = LOWEST;
      //@ if MASKED$v
      let sees$r = seenBy[down + DOWN * $ru];
      //@ end
      //@ for $j < KEYS
      //@ if SCORED
      score$r_$j = pairScore(score$r_$j, i32(group.z), i32(group.y), place$r, keyPlace$j);
      //@ end
      //@ if MASKED$v
      //@ if PAIRWISE
      let seen$r_$j = u32(key$j - sees$r.x) < u32(sees$r.y) &&
        pairSees(i32(group.z), i32(group.y), place$r, keyPlace$j);
      //@ else
      let seen$r_$j = u32(key$j - sees$r.x) < u32(sees$r.y);
      //@ end
      highest$r = max(highest$r, select(LOWEST, score$r_$j, seen$r_$j));
      worst$r = max(worst$r, select(0u, size(score$r_$j), seen$r_$j));
      //@ else
      highest$r = max(highest$r, score$r_$j);
      worst$r = max(worst$r, size(score$r_$j));
      //@ end
      //@ end
      shares[(down + DOWN * $ru) * ACROSS + across] = highest$r;
      //@ end
      workgroupBarrier();
      for (var a = 0u; a < ACROSS; a++) {
        //@ for $r < ROWS
        highest$r = max(highest$r, shares[(down + DOWN * $ru) * ACROSS + a]);
        //@ end
      }

      //@ for $r < ROWS
      highest$r = max(highest$r, m$r);
      let keep$r = weight(m$r, highest$r);
      m$r = highest$r;
      l$r *= keep$r;
      //@ for $o < OWN
      o$r_$o *= keep$r;
      //@ end
      //@ end
      //@ for $j < KEYS
      //@ for $h < FOURS
      var line$j_$h = vec4f(0.0);
      //@ end
      //@ for $r < ROWS
      //@ if MASKED$v
      let p$r_$j = select(0.0, weight(score$r_$j, highest$r), seen$r_$j);
      //@ else
      let p$r_$j = weight(score$r_$j, highest$r);
      //@ end
      l$r += p$r_$j;
      line$j_$[$r / FOUR][$[$r % FOUR]] = p$r_$j;
      //@ end
      //@ for $h < FOURS
      stage[(across + ACROSS * $ju) * PITCH + down * FOURS + $hu] = line$j_$h;
      //@ end
      //@ end

      for (var held = 0; held < TILE; held += HELD) {
        for (var i = lane; i < u32(HELD) * QUADS; i += LANES) {
          let token = min(keyOf(visit$v, tile + held + i32(i / QUADS)), task.columns - 1);
          let place = placeOf(keyBase + u32(token) * task.kvHeads);
          stage[u32(TILE) * PITCH + i] = value(place, i % QUADS);
        }
        workgroupBarrier();
        for (var k = 0u; k < u32(HELD); k += STEP) {
          //@ for $s < STEP
          {
            //@ for $h < FOURS
            let w$h = stage[(u32(held) + k + $su) * PITCH + down * FOURS + $hu];
            //@ end
            //@ for $o < OWN
            let v$o = stage[u32(TILE) * PITCH + (k + $su) * QUADS + across + ACROSS * $ou];
            //@ for $r < ROWS
            o$r_$o = fma(vec4f(w$[$r / FOUR][$[$r % FOUR]]), v$o, o$r_$o);
            //@ end
            //@ end
          }
          //@ end
        }
        workgroupBarrier();
      }
    }

    //@ for $r < ROWS
    let before$r = tops[top$r];
    shares[(down + DOWN * $ru) * ACROSS + across] = select(l$r, -1.0, worst$r >= INFINITE);
    //@ end
    storageBarrier();
    workgroupBarrier();
    //@ for $r < ROWS
    var sum$r = 0.0;
    var lost$r = before$r.y < 0.0;
    //@ end
    for (var a = 0u; a < ACROSS; a++) {
      //@ for $r < ROWS
      let share$r = shares[(down + DOWN * $ru) * ACROSS + a];
      sum$r += share$r;
      lost$r = lost$r || share$r < 0.0;
      //@ end
    }
    //@ for $r < ROWS
    if (live$r) {
      let top = select(LOWEST, before$r.x, before$r.y > 0.0);
      let highest = max(top, m$r);
      let keep = weight(top, highest);
      let add = weight(m$r, highest);
      if (across == 0u) {
        tops[top$r] = vec2f(highest, select(before$r.y * keep + sum$r * add, -1.0, lost$r));
      }
      let output = (queryBase + row$r * task.heads) * QUADS + across;
      //@ for $o < OWN
      if (across + ACROSS * $ou < QUADS) {
        outputs[output + ACROSS * $ou] = outputs[output + ACROSS * $ou] * keep + o$r_$o * add;
      }
      //@ end
    }
    //@ end
    // The next chunk reads what one invocation of each row has written.
    storageBarrier();
    workgroupBarrier();
  }
  //@ end
}
