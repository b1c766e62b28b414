// What one tile adds to dk, dv and dq, in the only pass: see `attend_backward_task.wgsl`. It needs a workgroup that is one
// subgroup, and is written for drivers that imitate a GPU on the CPU (llvmpipe).
//
// An invocation owns KEYS consecutive keys of one key head and holds their k, v, dk and dv in registers. It takes four of the
// tile's query rows at a time, of one query head after the other that reads this key head: of each q and dO an
// invocation loads another four components and passes them on to all. For dq an invocation takes four components of a row
// in place of its keys, is passed each dS, and holds those components of all keys of its workgroup. Several
// workgroups of keys add to the same dq: in a dispatch each of them has a stretch of rows to itself, and in the next turn
// another one.
//
// | grid | x: LANES · KEYS keys of the tile    y: (batch entry, key head), from task.first on |
//
// The loop over rows is one stretch of code that no cache of instructions holds, so that what it takes is how long it is.
// Three things below keep it short, or its compilation, and change no result:
//
// * `after(x, wait)` is x, but no compiler knows: `wait` is 0 that was made from what is to come first. Left to itself, one
//   computes a product's sums one by one with loads for every factor, together with what is made of them, and holds all
//   that was passed on in memory until it is needed again, where passing it on again is free.
// * `unread` is 0 that was made from all dk and dv. A compiler that looks for a variable's first use from the beginning of
//   the loop, for each of them, finds it there.
// * Only the lower half of a workgroup writes dq, also for the other one. Such a driver writes for one invocation after the
//   other, each picked from a vector in memory, which processors are slow at for a vector's upper half.

@group(0) @binding(4) var<storage, read_write> rowGradients: array<vec4f>;

// The tile's rows before the first that is beyond position p.
fn rowsUpTo(p: i32) -> i32 {
  return countUpTo(task.querySpan, task.rows, p);
}

fn after(x: vec4f, wait: u32) -> vec4f {
  return bitcast<vec4f>(bitcast<vec4u>(x) | vec4u(wait));
}

fn bitsOf(x: vec4f) -> vec4u {
  return bitcast<vec4u>(x);
}

// 0, made from x.
fn waitFor(x: vec4u) -> u32 {
  return (x.x | x.y | x.z | x.w) & task.zero;
}

@compute @workgroup_size(LANES)
fn backward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
  @builtin(subgroup_invocation_id) place: u32,
) {
  let taken = stretchOf(group.x, groups.x);
  let firstKey = i32(taken * LANES * KEYS);
  let lastKey = min(firstKey + i32(LANES * KEYS), task.columns) - 1;
  let firstRow = rowsUpTo(positionAt(task.keySpan, firstKey) - task.ahead - 1);
  let lastRow = rowsUpTo(positionAt(task.keySpan, lastKey) + task.back) - 1;
  let mine = i32((taken + task.turn) % groups.x * task.rowQuads) * FOUR;
  let begin = max(firstRow, mine);
  let end = min(lastRow + 1, mine + i32(task.rowQuads) * FOUR);
  if (begin >= end) { return; }

  let entry = (task.first + group.y) / task.kvHeads;
  let keyHead = (task.first + group.y) % task.kvHeads;
  let sharing = task.heads / task.kvHeads;
  let keyBase = (entry * task.keyTokens + task.column) * task.kvHeads + keyHead;

  //@ for $p < PARTS
  let quad$p = min($pu * LANES + lane, QUADS - 1u);
  //@ end
  // Loops with an end that no compiler knows stay loops, which is less to compile.
  let quads = QUADS + task.zero;
  let lanes = LANES + task.zero;
  // Keys beyond the tile are shadows of its last key, which no row sees and which are never written.
  let myKey = firstKey + i32(lane * KEYS);
  //@ for $k < KEYS
  let live$k = myKey + $k < task.columns;
  let key$k = min(myKey + $k, task.columns - 1);
  let position$k = positionAt(task.keySpan, key$k);
  let low$k = rowsUpTo(position$k - task.ahead - 1);
  let count$k = select(0u, u32(rowsUpTo(position$k + task.back) - low$k), live$k);
  let keyAt$k = keyBase + u32(key$k) * task.kvHeads;
  //@ for $c < QUADS
  var k$k_$c = vec4f(0.0);
  var v$k_$c = vec4f(0.0);
  var dk$k_$c = vec4f(0.0);
  var dv$k_$c = vec4f(0.0);
  //@ end
  for (var c = 0u; c < quads; c++) {
    let read = blockAt(placeOf(keyAt$k), c);
    //@ for $c < QUADS
    k$k_$c = select(k$k_$c, read, c == $cu);
    //@ end
  }
  for (var c = 0u; c < quads; c++) {
    let read = blockAt(placeOf(task.values + keyAt$k), c);
    //@ for $c < QUADS
    v$k_$c = select(v$k_$c, read, c == $cu);
    //@ end
  }
  //@ for $p < PARTS
  //@ for $l < LANES
  var turned$l_$k_$p = vec4f(0.0);
  //@ end
  for (var l = 0u; l < lanes; l++) {
    let other = u32(min(firstKey + i32(l * KEYS + $k), task.columns - 1));
    let read = blockAt(placeOf(keyBase + other * task.kvHeads), quad$p);
    //@ for $l < LANES
    turned$l_$k_$p = select(turned$l_$k_$p, read, l == $lu);
    //@ end
  }
  //@ end
  //@ end

  var n = 0u;
  loop {
    let head = keyHead * sharing + n;
    let rowBase = (entry * task.heads + head) * task.queryTokens + task.row;

    // Whole quads of rows, as stretches have them.
    var i = begin / 4 * 4;
    loop {
      var unread = vec4u(0u);
      //@ for $k < KEYS
      //@ for $c < QUADS
      unread |= (bitsOf(dk$k_$c) | bitsOf(dv$k_$c)) & vec4u(place / LANES);
      //@ end
      //@ end
      let ofQuad = lane % FOUR + (unread.x | unread.y | unread.z | unread.w);
      let outcomes = outcomeAt(rowBase + min(u32(i) + ofQuad, u32(task.rows - 1))).xy;
      //@ for $j < FOUR
      // Rows beyond the tile are shadows of its last one, which see nothing.
      let row$j = u32(min(i + $j, task.rows - 1));
      //@ if PLACED
      let rowPlace$j = positionAt(task.querySpan, i32(row$j));
      //@ end
      let at$j = placeOf(rowBase + row$j);
      let cotangentAt$j = placeOf(task.cotangents + rowBase + row$j);
      let outcome$j = subgroupBroadcast(outcomes, $ju);
      //@ for $p < PARTS
      let rows$j_$p = rowAt(at$j, quad$p);
      let cotangents$j_$p = rowAt(cotangentAt$j, quad$p);
      var dq$j_$p = vec4f(0.0);
      //@ end
      //@ end
      //@ for $k < KEYS
      var score$k = vec4f(0.0);
      var slope$k = vec4f(0.0);
      //@ end

      //@ for $c < QUADS
      //@ for $j < FOUR
      let q$j_$c = subgroupBroadcast(rows$j_$[$c / LANES], $[$c % LANES]u);
      //@ end
      //@ for $i < FOUR
      let ofRows$i_$c = vec4f(q0_$c[$i], q1_$c[$i], q2_$c[$i], q3_$c[$i]);
      //@ for $k < KEYS
      score$k += k$k_$c[$i] * ofRows$i_$c;
      //@ end
      //@ end
      //@ end
      //@ for $c < QUADS
      //@ for $j < FOUR
      let dO$j_$c = subgroupBroadcast(cotangents$j_$[$c / LANES], $[$c % LANES]u);
      //@ end
      //@ for $i < FOUR
      let ofCotangents$i_$c = vec4f(dO0_$c[$i], dO1_$c[$i], dO2_$c[$i], dO3_$c[$i]);
      //@ for $k < KEYS
      slope$k += v$k_$c[$i] * ofCotangents$i_$c;
      //@ end
      //@ end
      //@ end

      var scores = vec4u(0u);
      //@ for $k < KEYS
      scores |= bitsOf(score$k);
      //@ end
      let scored = waitFor(scores);
      var slopes = vec4u(0u);
      //@ for $k < KEYS
      let s$k = after(score$k, scored);
      //@ for $j < FOUR
      //@ if PAIRWISE
      let seen$k_$j = u32(i + $j - low$k) < count$k &&
        pairSees(i32(entry), i32(head), rowPlace$j, position$k);
      //@ else
      let seen$k_$j = u32(i + $j - low$k) < count$k;
      //@ end
      //@ if SCORED
      let p$k_$j = select(0.0, weight(
        pairScore(s$k[$j], i32(entry), i32(head), rowPlace$j, position$k),
        outcome$j.x,
      ), seen$k_$j);
      let dS$k_$j = select(0.0, p$k_$j * (slope$k[$j] - outcome$j.y) *
        pairSlope(s$k[$j], i32(entry), i32(head), rowPlace$j, position$k),
        seen$k_$j); // nobody knows the slope of other pairs
      //@ else
      let p$k_$j = select(0.0, weight(s$k[$j], outcome$j.x), seen$k_$j);
      let dS$k_$j = p$k_$j * (slope$k[$j] - outcome$j.y);
      //@ end
      //@ end
      let dS$k = vec4f(dS$k_0, dS$k_1, dS$k_2, dS$k_3);
      slopes |= bitsOf(dS$k);
      //@ end
      let sloped = waitFor(slopes);

      //@ for $l < LANES
      //@ for $k < KEYS
      let passed$l_$k = subgroupBroadcast(dS$k, $lu);
      //@ for $p < PARTS
      //@ for $j < FOUR
      dq$j_$p += passed$l_$k[$j] * turned$l_$k_$p;
      //@ end
      //@ end
      //@ end
      //@ end

      //@ for $j < FOUR
      //@ for $p < PARTS
      let rowsAgain$j_$p = after(rows$j_$p, sloped);
      let cotangentsAgain$j_$p = after(cotangents$j_$p, sloped);
      //@ end
      //@ end
      //@ for $c < QUADS
      //@ for $j < FOUR
      let dOAgain$j_$c = subgroupBroadcast(cotangentsAgain$j_$[$c / LANES], $[$c % LANES]u);
      //@ end
      //@ for $k < KEYS
      dv$k_$c += p$k_0 * dOAgain0_$c + p$k_1 * dOAgain1_$c + p$k_2 * dOAgain2_$c +
        p$k_3 * dOAgain3_$c;
      //@ end
      //@ end
      //@ for $c < QUADS
      //@ for $j < FOUR
      let qAgain$j_$c = subgroupBroadcast(rowsAgain$j_$[$c / LANES], $[$c % LANES]u);
      //@ end
      //@ for $k < KEYS
      dk$k_$c += dS$k_0 * qAgain0_$c + dS$k_1 * qAgain1_$c + dS$k_2 * qAgain2_$c +
        dS$k_3 * qAgain3_$c;
      //@ end
      //@ end

      // Last, because it ends the stretch of code. A shadow adds nothing to its row.
      //@ for $p < PARTS
      //@ for $j < FOUR
      let far$j_$p = subgroupShuffle(dq$j_$p, place ^ HALF);
      //@ end
      //@ end
      if (lane < HALF) {
        //@ for $p < PARTS
        //@ if RAGGED
        if ($pu * LANES + lane < QUADS) {
        //@ end
          //@ for $j < FOUR
          rowGradients[(rowBase + row$j) * QUADS + $pu * LANES + lane] += dq$j_$p;
          //@ end
        //@ if RAGGED
        }
        if ($pu * LANES + HALF + lane < QUADS) {
        //@ end
          //@ for $j < FOUR
          rowGradients[(rowBase + row$j) * QUADS + $pu * LANES + HALF + lane] += far$j_$p;
          //@ end
        //@ if RAGGED
        }
        //@ end
        //@ end
      }
      continuing {
        i += FOUR;
        break if i >= end;
      }
    }
    continuing {
      n++;
      break if n >= sharing;
    }
  }

  //@ for $k < KEYS
  if (live$k) {
    for (var c = 0u; c < quads; c++) {
      var dk = vec4f(0.0);
      var dv = vec4f(0.0);
      //@ for $c < QUADS
      dk = select(dk, dk$k_$c, c == $cu);
      dv = select(dv, dv$k_$c, c == $cu);
      //@ end
      gradients[keyAt$k * QUADS + c] += dk;
      gradients[(task.values + keyAt$k) * QUADS + c] += dv;
    }
  }
  //@ end
}
