// Adds one tile to the state of its query rows, for head dimensions whose rows no invocation can hold: version 6, `wide`,
// as queries need it that absorb latents.
//
// A workgroup holds HELD query rows in workgroup memory. Each invocation takes a key of its own for all of them, LANES
// keys at once; then all have the same weights of these keys, and each adds up components of its own of their values. There
// are few query rows where this is run, which is why keys are split over invocations rather than rows, as they are for
// decoding.
//
// Every pair is tested, in all variants: what that costs is little beside such rows. This version is not timed on a GPU yet.
//
// `//@` lines are for `unroll`, as in `attend.wgsl`.

var<workgroup> held: array<vec4f, HELD * QUADS>;
// Of each held row and key: its score and whether it counts, then its weight.
var<workgroup> weights: array<vec2f, HELD * LANES>;

@compute @workgroup_size(LANES)
fn attend(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = stretchOf(group.x, groups.x) * HELD;
  let endRow = min(first + HELD, task.rows);
  let keyToken = group.z * task.keyTokens + task.column;
  let keyBase = keyToken * task.kvHeads + group.y * task.kvHeads / task.heads;

  // Rows beyond the end are shadows of the last one, which are never written.
  //@ for $r < HELD
  let live$r = first + $ru < endRow;
  let row$r = min(first + $ru, endRow - 1u);
  let query$r = ((group.z * task.queryTokens + task.row + row$r) * task.heads + group.y) * QUADS;
  let top$r = (group.z * task.heads + group.y) * task.queryTokens + task.row + row$r;
  let position$r = positionAt(task.querySpan, i32(row$r));
  let low$r = keysUpTo(position$r - task.back - 1);
  let count$r = u32(keysUpTo(position$r + task.ahead) - low$r);
  var worst$r = 0u;
  var m$r = LOWEST;
  var l$r = 0.0;
  //@ for $p < PARTS
  var o$r_$p = vec4f(0.0);
  //@ end
  //@ end
  for (var c = lane; c < QUADS; c += LANES) {
    //@ for $r < HELD
    held[$ru * QUADS + c] = queries[query$r + c] * task.scale;
    //@ end
  }
  workgroupBarrier();

  let visit = visitOf(true, first, endRow - 1u);
  for (var chunk = 0; chunk < visit.total; chunk += i32(LANES)) {
    let mine = keyOf(visit, chunk + i32(lane));
    let column = min(mine, task.columns - 1);
    let place = placeOf(keyBase + u32(column) * task.kvHeads);
    //@ for $r < HELD
    var score$r = 0.0;
    //@ end
    for (var c = 0u; c < QUADS; c++) {
      let k = key(place, c);
      //@ for $r < HELD
      score$r += dot(held[$ru * QUADS + c], k);
      //@ end
    }
    //@ if PLACED
    let keyPlace = positionAt(task.keySpan, column);
    //@ end
    //@ for $r < HELD
    //@ if SCORED
    score$r = pairScore(score$r, i32(group.z), i32(group.y), position$r, keyPlace);
    //@ end
    let inside$r = chunk + i32(lane) < visit.total && u32(mine - low$r) < count$r;
    //@ if PAIRWISE
    let seen$r = inside$r && pairSees(i32(group.z), i32(group.y), position$r, keyPlace);
    //@ else
    let seen$r = inside$r;
    //@ end
    worst$r = max(worst$r, select(0u, size(score$r), seen$r));
    weights[$ru * LANES + lane] = vec2f(score$r, select(0.0, 1.0, seen$r));
    //@ end
    workgroupBarrier();

    //@ for $r < HELD
    var highest$r = m$r;
    //@ end
    for (var j = 0u; j < LANES; j++) {
      //@ for $r < HELD
      let w$r = weights[$ru * LANES + j];
      highest$r = max(highest$r, select(LOWEST, w$r.x, w$r.y > 0.0));
      //@ end
    }
    //@ for $r < HELD
    let keep$r = weight(m$r, highest$r);
    m$r = highest$r;
    //@ end
    workgroupBarrier();
    //@ for $r < HELD
    weights[$ru * LANES + lane].x = select(0.0, weight(score$r, highest$r), seen$r);
    //@ end
    workgroupBarrier();

    //@ for $r < HELD
    var sum$r = 0.0;
    //@ end
    //@ for $p < PARTS
    let quad$p = min($pu * LANES + lane, QUADS - 1u);
    //@ for $r < HELD
    var sum$r_$p = vec4f(0.0);
    //@ end
    //@ end
    for (var j = 0u; j < LANES; j++) {
      let other = min(keyOf(visit, chunk + i32(j)), task.columns - 1);
      //@ for $r < HELD
      let p$r = weights[$ru * LANES + j].x;
      sum$r += p$r;
      //@ end
      let there = placeOf(keyBase + u32(other) * task.kvHeads);
      //@ for $p < PARTS
      let v$p = value(there, quad$p);
      //@ for $r < HELD
      sum$r_$p += p$r * v$p;
      //@ end
      //@ end
    }
    //@ for $r < HELD
    l$r = l$r * keep$r + sum$r;
    //@ end
    //@ for $p < PARTS
    //@ for $r < HELD
    o$r_$p = o$r_$p * keep$r + sum$r_$p;
    //@ end
    //@ end
    workgroupBarrier();
  }

  //@ for $r < HELD
  weights[$ru * LANES + lane].y = select(0.0, 1.0, worst$r >= INFINITE);
  let before$r = tops[top$r];
  //@ end
  workgroupBarrier();
  //@ for $r < HELD
  if (live$r) {
    let top = select(LOWEST, before$r.x, before$r.y > 0.0);
    let highest = max(top, m$r);
    let keep = weight(top, highest);
    let add = weight(m$r, highest);
    if (lane == 0u) {
      var lost = before$r.y < 0.0;
      for (var j = 0u; j < LANES; j++) { lost = lost || weights[$ru * LANES + j].y > 0.0; }
      tops[top$r] = vec2f(highest, select(before$r.y * keep + l$r * add, -1.0, lost));
    }
    //@ for $p < PARTS
    if ($pu * LANES + lane < QUADS) {
      let at = query$r + $pu * LANES + lane;
      outputs[at] = outputs[at] * keep + o$r_$p * add;
    }
    //@ end
  }
  //@ end
}
