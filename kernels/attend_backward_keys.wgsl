// What one tile adds to dk and dv, and its dS or what it adds to dq: the first of two passes or the only one, see
// `attend_backward_task.wgsl`.
//
// An invocation owns ROWS consecutive keys of one key head and holds their k, v, dk and dv in registers. It takes four of the
// tile's query rows at a time, of one query head after the other that reads this key head: each q and dO that it
// reads serves all its keys, and the sum over the heads stays with it.
//
// | grid | x: LANES · ROWS keys of the tile    y: (batch entry, key head), from task.first on |
//
// Where subgroups can be relied on, each invocation loads another four components of q and dO and passes them on to
// all. They are needed twice, before and after P is known; that the second time looks like another number (it is
// multiplied by task.one) keeps compilers from holding all of them in between, for which there are no registers.
//
// The only pass (ONCE) needs them: for dq an invocation takes four components of a row in place of its keys, is passed
// each dS, and holds those components of all keys of its workgroup. Several workgroups of keys add to the same dq: in a
// dispatch each of them has a stretch of rows to itself, and in the next turn another one.

//@ if ONCE
@group(0) @binding(4) var<storage, read_write> rowGradients: array<vec4f>;
//@ else
@group(0) @binding(4) var<storage, read_write> scores: array<vec4f>;
//@ end

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
  let taken = stretchOf(group.x, groups.x);
  let firstKey = i32(taken * LANES * ROWS);
  let lastKey = min(firstKey + i32(LANES * ROWS), task.columns) - 1;
  let firstRow = rowsUpTo(positionAt(task.keySpan, firstKey) - task.ahead - 1);
  let lastRow = rowsUpTo(positionAt(task.keySpan, lastKey) + task.back) - 1;
  //@ if ONCE
  let mine = i32((taken + task.turn) % groups.x * task.rowQuads) * FOUR;
  let begin = max(firstRow, mine);
  let end = min(lastRow + 1, mine + i32(task.rowQuads) * FOUR);
  //@ else
  let begin = firstRow;
  let end = lastRow + 1;
  //@ end
  if (begin >= end) { return; }

  let entry = (task.first + group.y) / task.kvHeads;
  let keyHead = (task.first + group.y) % task.kvHeads;
  let sharing = task.heads / task.kvHeads;

  // Keys beyond the tile are shadows of its last key, which no row sees and which are never written.
  let myKey = firstKey + i32(lane * ROWS);
  //@ for $r < ROWS
  let live$r = myKey + $r < task.columns;
  let key$r = min(myKey + $r, task.columns - 1);
  let position$r = positionAt(task.keySpan, key$r);
  let low$r = rowsUpTo(position$r - task.ahead - 1);
  let count$r = select(0u, u32(rowsUpTo(position$r + task.back) - low$r), live$r);
  let keyAt$r =
    (entry * task.keyTokens + task.column + u32(key$r)) * task.kvHeads + keyHead;
  let place$r = placeOf(keyAt$r);
  let valuePlace$r = placeOf(task.values + keyAt$r);
  //@ for $c < QUADS
  var k$r_$c = vec4f(0.0);
  var v$r_$c = vec4f(0.0);
  var dk$r_$c = vec4f(0.0);
  var dv$r_$c = vec4f(0.0);
  //@ end
  //@ end
  for (var c = 0u; c < QUADS; c++) {
    //@ for $r < ROWS
    let readK$r = blockAt(place$r, c);
    let readV$r = blockAt(valuePlace$r, c);
    //@ for $c < QUADS
    k$r_$c = select(k$r_$c, readK$r, c == $cu);
    v$r_$c = select(v$r_$c, readV$r, c == $cu);
    //@ end
    //@ end
  }
  //@ if BROADCAST
  //@ for $p < PARTS
  let quad$p = min($pu * LANES + lane, QUADS - 1u);
  //@ end
  //@ end
  //@ if ONCE
  //@ for $l < LANES
  //@ for $r < ROWS
  let keyOf$l_$r = u32(min(firstKey + i32($lu * ROWS + $r), task.columns - 1));
  //@ for $p < PARTS
  let turned$l_$r_$p =
    blockAt(placeOf((entry * task.keyTokens + task.column + keyOf$l_$r) * task.kvHeads + keyHead), quad$p);
  //@ end
  //@ end
  //@ end
  //@ end

  var n = 0u;
  loop {
    let head = keyHead * sharing + n;
    let rowBase = (entry * task.heads + head) * task.queryTokens + task.row;
    let scoreBase = (group.y * sharing + n) * task.rowQuads;

    // Whole quads of rows, as `scores` has them.
    var i = begin / 4 * 4;
    loop {
      //@ if BROADCAST
      let outcomes = outcomeAt(rowBase + u32(min(i + i32(lane % FOUR), task.rows - 1))).xy;
      //@ end
      //@ for $j < FOUR
      // Rows beyond the tile are shadows of its last one, which see nothing.
      let row$j = u32(min(i + $j, task.rows - 1));
      //@ if PLACED
      let rowPlace$j = positionAt(task.querySpan, i32(row$j));
      //@ end
      let at$j = placeOf(rowBase + row$j);
      let cotangentAt$j = placeOf(task.cotangents + rowBase + row$j);
      //@ if BROADCAST
      let outcome$j = subgroupBroadcast(outcomes, $ju);
      //@ for $p < PARTS
      let rows$j_$p = rowAt(at$j, quad$p);
      let cotangents$j_$p = rowAt(cotangentAt$j, quad$p);
      //@ end
      //@ else
      let outcome$j = outcomeAt(rowBase + row$j).xy;
      //@ end
      //@ for $r < ROWS
      var score$r_$j = 0.0;
      var slope$r_$j = 0.0;
      //@ end
      //@ end

      //@ for $c < QUADS
      //@ for $j < FOUR
      //@ if BROADCAST
      let q$j_$c = subgroupBroadcast(rows$j_$[$c / LANES], $[$c % LANES]u);
      //@ else
      let q$j_$c = rowAt(at$j, $cu);
      //@ end
      //@ for $r < ROWS
      score$r_$j += dot(k$r_$c, q$j_$c);
      //@ end
      //@ end
      //@ end
      //@ for $c < QUADS
      //@ for $j < FOUR
      //@ if BROADCAST
      let dO$j_$c = subgroupBroadcast(cotangents$j_$[$c / LANES], $[$c % LANES]u);
      //@ else
      let dO$j_$c = rowAt(cotangentAt$j, $cu);
      //@ end
      //@ for $r < ROWS
      slope$r_$j += dot(v$r_$c, dO$j_$c);
      //@ end
      //@ end
      //@ end

      //@ for $r < ROWS
      //@ for $j < FOUR
      //@ if PAIRWISE
      let seen$r_$j = u32(i + $j - low$r) < count$r &&
        pairSees(i32(entry), i32(head), rowPlace$j, position$r);
      //@ else
      let seen$r_$j = u32(i + $j - low$r) < count$r;
      //@ end
      //@ if SCORED
      slope$r_$j = (slope$r_$j - outcome$j.y) *
        pairSlope(score$r_$j, i32(entry), i32(head), rowPlace$j, position$r);
      score$r_$j = pairScore(score$r_$j, i32(entry), i32(head), rowPlace$j, position$r);
      //@ else
      slope$r_$j -= outcome$j.y;
      //@ end
      let p$r_$j = select(0.0, weight(score$r_$j, outcome$j.x), seen$r_$j);
      //@ if SCORED
      let dS$r_$j = select(0.0, p$r_$j * slope$r_$j, seen$r_$j); // nobody knows the slope of other pairs
      //@ else
      let dS$r_$j = p$r_$j * slope$r_$j;
      //@ end
      //@ end
      //@ end

      //@ if BROADCAST
      //@ for $j < FOUR
      //@ for $p < PARTS
      let rowsAgain$j_$p = rows$j_$p * task.one;
      let cotangentsAgain$j_$p = cotangents$j_$p * task.one;
      //@ end
      //@ end
      //@ end
      //@ for $c < QUADS
      //@ for $j < FOUR
      //@ if BROADCAST
      let dOAgain$j_$c = subgroupBroadcast(cotangentsAgain$j_$[$c / LANES], $[$c % LANES]u);
      //@ else
      let dOAgain$j_$c = dO$j_$c;
      //@ end
      //@ end
      //@ for $r < ROWS
      dv$r_$c += p$r_0 * dOAgain0_$c + p$r_1 * dOAgain1_$c + p$r_2 * dOAgain2_$c +
        p$r_3 * dOAgain3_$c;
      //@ end
      //@ end
      //@ for $c < QUADS
      //@ for $j < FOUR
      //@ if BROADCAST
      let qAgain$j_$c = subgroupBroadcast(rowsAgain$j_$[$c / LANES], $[$c % LANES]u);
      //@ else
      let qAgain$j_$c = q$j_$c;
      //@ end
      //@ end
      //@ for $r < ROWS
      dk$r_$c += dS$r_0 * qAgain0_$c + dS$r_1 * qAgain1_$c + dS$r_2 * qAgain2_$c +
        dS$r_3 * qAgain3_$c;
      //@ end
      //@ end
      //@ if ONCE
      //@ for $j < FOUR
      //@ for $p < PARTS
      var dq$j_$p = vec4f(0.0);
      //@ end
      //@ end
      //@ for $l < LANES
      //@ for $j < FOUR
      //@ for $p < PARTS
      var sum$l_$j_$p = vec4f(0.0);
      //@ end
      //@ for $r < ROWS
      let passed$l_$r_$j = subgroupBroadcast(dS$r_$j, $lu);
      //@ for $p < PARTS
      sum$l_$j_$p += passed$l_$r_$j * turned$l_$r_$p;
      //@ end
      //@ end
      //@ for $p < PARTS
      dq$j_$p += sum$l_$j_$p; // the keys of a lane first: 250 ms where one sum of all takes 325
      //@ end
      //@ end
      //@ end
      // A shadow adds nothing to its row.
      //@ for $p < PARTS
      //@ if RAGGED
      if ($pu * LANES + lane < QUADS) {
      //@ end
        //@ for $j < FOUR
        rowGradients[(rowBase + row$j) * QUADS + $pu * LANES + lane] += dq$j_$p;
        //@ end
      //@ if RAGGED
      }
      //@ end
      //@ end
      //@ else
      // Not before: where a compiler writes for one lane after the other, it must put all that is needed later aside.
      //@ for $r < ROWS
      scores[(scoreBase + u32(i / 4)) * task.pitch + u32(myKey + $r)] =
        vec4f(dS$r_0, dS$r_1, dS$r_2, dS$r_3);
      //@ end
      //@ end
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

  //@ for $r < ROWS
  if (live$r) {
    for (var c = 0u; c < QUADS; c++) {
      var dk = vec4f(0.0);
      var dv = vec4f(0.0);
      //@ for $c < QUADS
      dk = select(dk, dk$r_$c, c == $cu);
      dv = select(dv, dv$r_$c, c == $cu);
      //@ end
      gradients[keyAt$r * QUADS + c] += dk;
      gradients[(task.values + keyAt$r) * QUADS + c] += dv;
    }
  }
  //@ end
}
