// Adds one tile to the state of its query rows, with the rows in registers: an invocation owns ROWS consecutive query
// rows of one head and takes KEYS keys at a time. Each k and v that it reads serves all its rows, and each group of
// keys brings one new maximum, one rescaling of õ and one sum of its own.
//
// The versions, slowest first on a driver that imitates a GPU on the CPU (llvmpipe), where this file is meant to run:
//
// | 1 | rows      | one row, key by key, from buffers: the textbook                                                 |
// | 2 | registers | several rows and keys at once: a key that was read serves them all                              |
// | 3 | textures  | K and V in storage textures: such a driver loads from a buffer for one invocation after the     |
// |   |           | other, and from a texture for a whole vector of them                                            |
// | 4 | broadcast | each invocation of a subgroup loads another four components of a key, and passes them on to     |
// |   |           | all: one load where there were as many as the head dimension has quads                          |
//
// A workgroup is best one vector of the machine, which is one subgroup; version 4 needs it to be. Such a driver runs
// both sides of an `if`, and the body of a loop once more after its end, unless the loop tests there: so do these.
// Its loads from buffers are slow, so that the sum over chunks stays in registers until the tile is done.
//
// `//@` lines are for `unroll`, which repeats what is between them: WGSL has no other way to keep such arrays in
// registers. Where it does not matter, a loop picks its element by comparing: that is less to compile.

@compute @workgroup_size(LANES)
fn attend(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
  //@ if BROADCAST
  @builtin(subgroup_invocation_id) place: u32,
  //@ end
) {
  let firstRow = stretchOf(group.x, groups.x) * LANES * ROWS;
  let lastRow = min(firstRow + LANES * ROWS, task.rows) - 1u;
  var visited = 0;
  //@ for $v < VISITS
  let visit$v = visitOf(OTHERS$v, firstRow, lastRow);
  visited += visit$v.total;
  //@ end
  if (visited <= 0) { return; }

  let keyToken = group.z * task.keyTokens + task.column;
  let keyBase = keyToken * task.kvHeads + group.y * task.kvHeads / task.heads;

  // Rows beyond the tile are shadows of its last row, which are never written.
  let myRow = firstRow + lane * ROWS;
  //@ for $r < ROWS
  let live$r = myRow + $ru < task.rows;
  let row$r = min(myRow + $ru, task.rows - 1u);
  let query$r = ((group.z * task.queryTokens + task.row + row$r) * task.heads + group.y) * QUADS;
  let top$r = (group.z * task.heads + group.y) * task.queryTokens + task.row + row$r;
  //@ if PLACED
  let place$r = positionAt(task.querySpan, i32(row$r));
  //@ end
  //@ if MASKED
  let position$r = positionAt(task.querySpan, i32(row$r));
  let low$r = keysUpTo(position$r - task.back - 1);
  let count$r = u32(keysUpTo(position$r + task.ahead) - low$r);
  //@ end
  var worst$r = 0u;
  var allM$r = LOWEST;
  var allL$r = 0.0;
  //@ for $c < QUADS
  var q$r_$c = vec4f(0.0);
  var allO$r_$c = vec4f(0.0);
  //@ end
  //@ end
  // Loops with an end that no compiler knows stay loops, which is less to compile.
  let quads = QUADS + task.zero;
  //@ for $r < ROWS
  for (var c = 0u; c < quads; c++) {
    let read = queries[query$r + c] * task.scale;
    //@ for $c < QUADS
    q$r_$c = select(q$r_$c, read, c == $cu);
    //@ end
  }
  //@ end
  //@ if BROADCAST
  //@ for $p < PARTS
  let quad$p = min($pu * LANES + lane, QUADS - 1u);
  //@ end
  //@ end

  //@ for $v < VISITS
  if (visit$v.total > 0) {
    var chunk = 0;
    loop {
      let chunkEnd = min(chunk + CHUNK, visit$v.total);
      //@ for $r < ROWS
      var m$r = LOWEST;
      var l$r = 0.0;
      //@ for $c < QUADS
      var o$r_$c = vec4f(0.0);
      //@ end
      //@ end

      var k = chunk;
      loop {
        // Keys beyond the end are shadows of the tile's last one, which nobody sees.
        //@ for $j < KEYS$v
        let key$j = keyOf(visit$v, k + $j);
        let at$j = placeOf(keyBase + u32(min(key$j, task.columns - 1)) * task.kvHeads);
        //@ if BROADCAST
        //@ for $p < PARTS
        let keys$j_$p = key(at$j, quad$p);
        let values$j_$p = value(at$j, quad$p);
        //@ end
        //@ end
        //@ for $r < ROWS
        var score$r_$j = 0.0;
        //@ end
        //@ end

        //@ for $c < QUADS
        //@ for $j < KEYS$v
        //@ if BROADCAST
        let k$j_$c = subgroupBroadcast(keys$j_$[$c / LANES], $[$c % LANES]u);
        //@ else
        let k$j_$c = key(at$j, $cu);
        //@ end
        //@ for $r < ROWS
        score$r_$j += dot(q$r_$c, k$j_$c);
        //@ end
        //@ end
        //@ end

        //@ if PLACED
        //@ for $j < KEYS$v
        let keyPlace$j = positionAt(task.keySpan, min(key$j, task.columns - 1));
        //@ if SCORED
        //@ for $r < ROWS
        score$r_$j = pairScore(score$r_$j, i32(group.z), i32(group.y), place$r, keyPlace$j);
        //@ end
        //@ end
        //@ end
        //@ end
        //@ for $r < ROWS
        var highest$r = m$r;
        //@ for $j < KEYS$v
        //@ if MASKED$v
        //@ if PAIRWISE
        let seen$r_$j = u32(key$j - low$r) < count$r &&
          pairSees(i32(group.z), i32(group.y), place$r, keyPlace$j);
        //@ else
        let seen$r_$j = u32(key$j - low$r) < count$r;
        //@ end
        highest$r = max(highest$r, select(LOWEST, score$r_$j, seen$r_$j));
        worst$r = max(worst$r, select(0u, size(score$r_$j), seen$r_$j));
        //@ else
        highest$r = max(highest$r, score$r_$j);
        worst$r = max(worst$r, size(score$r_$j));
        //@ end
        //@ end
        let keep$r = weight(m$r, highest$r);
        var sum$r = 0.0;
        //@ for $j < KEYS$v
        //@ if MASKED$v
        let p$r_$j = select(0.0, weight(score$r_$j, highest$r), seen$r_$j);
        //@ else
        let p$r_$j = weight(score$r_$j, highest$r);
        //@ end
        sum$r += p$r_$j;
        //@ end
        m$r = highest$r;
        l$r = l$r * keep$r + sum$r;
        //@ end

        //@ for $c < QUADS
        //@ for $j < KEYS$v
        //@ if BROADCAST
        let v$j_$c = subgroupBroadcast(values$j_$[$c / LANES], $[$c % LANES]u);
        //@ else
        let v$j_$c = value(at$j, $cu);
        //@ end
        //@ end
        //@ for $r < ROWS
        var sum$r_$c = vec4f(0.0);
        //@ end
        //@ for $j < KEYS$v
        //@ for $r < ROWS
        sum$r_$c += p$r_$j * v$j_$c;
        //@ end
        //@ end
        //@ for $r < ROWS
        o$r_$c = o$r_$c * keep$r + sum$r_$c;
        //@ end
        //@ end
        continuing {
          k += KEYS$v;
          break if k >= chunkEnd;
        }
      }

      //@ for $r < ROWS
      let higher$r = max(allM$r, m$r);
      let keepAll$r = weight(allM$r, higher$r);
      let addChunk$r = weight(m$r, higher$r);
      allM$r = higher$r;
      allL$r = allL$r * keepAll$r + l$r * addChunk$r;
      //@ for $c < QUADS
      allO$r_$c = allO$r_$c * keepAll$r + o$r_$c * addChunk$r;
      //@ end
      //@ end
      continuing {
        chunk += CHUNK;
        break if chunk >= visit$v.total;
      }
    }
  }
  //@ end

  //@ if BROADCAST
  // The lower half of a workgroup writes for the other one as well: see `attend_backward_once.wgsl`.
  let farFirst = firstRow + (place ^ HALF) * ROWS;
  //@ end
  //@ for $r < ROWS
  let before$r = tops[top$r];
  let old$r = select(LOWEST, before$r.x, before$r.y > 0.0);
  let new$r = max(old$r, allM$r);
  let keep$r = weight(old$r, new$r);
  let add$r = weight(allM$r, new$r);
  if (live$r) {
    let l = before$r.y * keep$r + allL$r * add$r;
    let lost = worst$r >= INFINITE;
    tops[top$r] = vec2f(new$r, select(l, -1.0, lost || before$r.y < 0.0));
  }
  //@ if BROADCAST
  let farRow$r = min(farFirst + $ru, task.rows - 1u);
  let far$r = ((group.z * task.queryTokens + task.row + farRow$r) * task.heads + group.y) * QUADS;
  let farKeep$r = subgroupShuffle(keep$r, place ^ HALF);
  let farAdd$r = subgroupShuffle(add$r, place ^ HALF);
  //@ end
  for (var c = 0u; c < quads; c++) {
    var o = vec4f(0.0);
    //@ for $c < QUADS
    o = select(o, allO$r_$c, c == $cu);
    //@ end
    //@ if BROADCAST
    let farO = subgroupShuffle(o, place ^ HALF);
    if (lane < HALF && farFirst + $ru < task.rows) {
      outputs[far$r + c] = outputs[far$r + c] * farKeep$r + farO * farAdd$r;
    }
    let writes = lane < HALF && live$r;
    //@ else
    let writes = live$r;
    //@ end
    if (writes) {
      outputs[query$r + c] = outputs[query$r + c] * keep$r + o * add$r;
    }
  }
  //@ end
}
