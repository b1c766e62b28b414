// Adds one tile to the state of its query rows, with keys and values in workgroup memory: version 5, `tiles`, for GPUs.
//
// A workgroup reads TILE keys and their values together, once, as float32, whatever their storage; then each invocation
// takes them KEYS at a time for its own ROWS query rows, which it holds in registers. All invocations read the same
// element at the same time, which a GPU serves at once. Registers are scarce there, so that every chunk of keys is
// added to the state in memory, not to a second sum in registers as in `attend.wgsl`, and a workgroup has more
// invocations than a subgroup, to hide how long memory takes.
//
// What is best for a GPU is worst for a driver that imitates one on the CPU, and the other way round: there workgroup
// memory is the slowest of all. This version is not timed on a GPU yet; its sizes follow the public kernels of others.
//
// `//@` lines are for `unroll`, as in `attend.wgsl`.

var<workgroup> tileKeys: array<vec4f, u32(TILE) * QUADS>;
var<workgroup> tileValues: array<vec4f, u32(TILE) * QUADS>;

@compute @workgroup_size(LANES)
fn attend(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let firstRow = stretchOf(group.x, groups.x) * LANES * ROWS;
  let lastRow = min(firstRow + LANES * ROWS, task.rows) - 1u;
  //@ for $v < VISITS
  let visit$v = visitOf(OTHERS$v, firstRow, lastRow);
  //@ end

  let keyToken = group.z * task.keyTokens + task.column;
  let keyBase = keyToken * task.kvHeads + group.y * task.kvHeads / task.heads;

  // Rows beyond the tile are shadows of its last row, which are never written: all must reach the barriers.
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
  //@ for $c < QUADS
  let q$r_$c = queries[query$r + $cu] * task.scale;
  //@ end
  //@ end

  //@ for $v < VISITS
  for (var chunk = 0; chunk < visit$v.total; chunk += CHUNK) {
    let chunkEnd = min(chunk + CHUNK, visit$v.total);
    //@ for $r < ROWS
    var m$r = LOWEST;
    var l$r = 0.0;
    var worst$r = 0u;
    //@ for $c < QUADS
    var o$r_$c = vec4f(0.0);
    //@ end
    //@ end

    for (var tile = chunk; tile < chunkEnd; tile += TILE) {
      workgroupBarrier();
      for (var i = lane; i < u32(TILE) * QUADS; i += LANES) {
        // Keys beyond the end are shadows of the tile's last one, which nobody sees.
        let token = min(keyOf(visit$v, tile + i32(i / QUADS)), task.columns - 1);
        let place = placeOf(keyBase + u32(token) * task.kvHeads);
        tileKeys[i] = key(place, i % QUADS);
        tileValues[i] = value(place, i % QUADS);
      }
      workgroupBarrier();

      for (var k = 0; k < TILE; k += KEYS$v) {
        //@ for $j < KEYS$v
        let at$j = u32(k + $j) * QUADS;
        //@ for $r < ROWS
        var score$r_$j = 0.0;
        //@ end
        //@ for $c < QUADS
        let k$j_$c = tileKeys[at$j + $cu];
        //@ for $r < ROWS
        score$r_$j += dot(q$r_$c, k$j_$c);
        //@ end
        //@ end
        //@ end

        //@ if MASKED$v
        //@ for $j < KEYS$v
        let key$j = keyOf(visit$v, tile + k + $j);
        //@ end
        //@ end
        //@ if PLACED
        //@ for $j < KEYS$v
        let keyPlace$j =
          positionAt(task.keySpan, min(keyOf(visit$v, tile + k + $j), task.columns - 1));
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
        let v$j_$c = tileValues[at$j + $cu];
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
      }
    }

    //@ for $r < ROWS
    if (live$r) {
      let before = tops[top$r];
      let top = select(LOWEST, before.x, before.y > 0.0);
      let highest = max(top, m$r);
      let keep = weight(top, highest);
      let add = weight(m$r, highest);
      let l = before.y * keep + l$r * add;
      let lost = worst$r >= INFINITE;
      tops[top$r] = vec2f(highest, select(l, -1.0, lost || before.y < 0.0));
      //@ for $c < QUADS
      outputs[query$r + $cu] = outputs[query$r + $cu] * keep + o$r_$c * add;
      //@ end
    }
    //@ end
  }
  //@ end
}
