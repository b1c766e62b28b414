// What one tile adds to dk and dv, and its dS: the first of two passes, see `attend_backward_task.wgsl`.
//
// An invocation owns ROWS consecutive keys of one key head and holds their k, v, dk and dv in registers. It takes four of the
// tile's query rows at a time, of one query head after the other that reads this key head: each q and dO that it
// reads serves all its keys, and the sum over the heads stays with it.
//
// | grid | x: LANES · ROWS keys of the tile    y: (batch entry, key head), from task.first on |

@group(0) @binding(4) var<storage, read_write> scores: array<vec4f>;

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
  let firstKey = i32(stretchOf(group.x, groups.x) * LANES * ROWS);
  let lastKey = min(firstKey + i32(LANES * ROWS), task.columns) - 1;
  let begin = rowsUpTo(positionAt(task.keySpan, firstKey) - task.ahead - 1);
  let end = rowsUpTo(positionAt(task.keySpan, lastKey) + task.back);
  if (begin >= end) { return; }
  // A loop with an end that no compiler knows stays a loop, which is less to compile.
  let quads = QUADS + task.zero;

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
  for (var c = 0u; c < quads; c++) {
    //@ for $r < ROWS
    let readK$r = blockAt(place$r, c);
    let readV$r = blockAt(valuePlace$r, c);
    //@ for $c < QUADS
    k$r_$c = select(k$r_$c, readK$r, c == $cu);
    v$r_$c = select(v$r_$c, readV$r, c == $cu);
    //@ end
    //@ end
  }

  var n = 0u;
  loop {
    let head = keyHead * sharing + n;
    let rowBase = (entry * task.heads + head) * task.queryTokens + task.row;
    let scoreBase = (group.y * sharing + n) * task.rowQuads;

    // Whole quads of rows, as `scores` has them.
    var i = begin / 4 * 4;
    loop {
      //@ for $j < FOUR
      // Rows beyond the tile are shadows of its last one, which see nothing.
      let row$j = u32(min(i + $j, task.rows - 1));
      //@ if PLACED
      let rowPlace$j = positionAt(task.querySpan, i32(row$j));
      //@ end
      let at$j = placeOf(rowBase + row$j);
      let cotangentAt$j = placeOf(task.cotangents + rowBase + row$j);
      let outcome$j = outcomeAt(rowBase + row$j).xy;
      //@ for $r < ROWS
      var score$r_$j = 0.0;
      var slope$r_$j = 0.0;
      //@ end
      //@ end

      //@ for $c < QUADS
      //@ for $j < FOUR
      let q$j_$c = rowAt(at$j, $cu);
      //@ for $r < ROWS
      score$r_$j += dot(k$r_$c, q$j_$c);
      //@ end
      //@ end
      //@ end
      //@ for $c < QUADS
      //@ for $j < FOUR
      let dO$j_$c = rowAt(cotangentAt$j, $cu);
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

      //@ for $c < QUADS
      //@ for $r < ROWS
      dv$r_$c += p$r_0 * dO0_$c + p$r_1 * dO1_$c + p$r_2 * dO2_$c + p$r_3 * dO3_$c;
      //@ end
      //@ end
      //@ for $c < QUADS
      //@ for $r < ROWS
      dk$r_$c += dS$r_0 * q0_$c + dS$r_1 * q1_$c + dS$r_2 * q2_$c + dS$r_3 * q3_$c;
      //@ end
      //@ end
      // Not before: where a compiler writes for one lane after the other, it must put all that is needed later aside.
      //@ for $r < ROWS
      scores[(scoreBase + u32(i / 4)) * task.pitch + u32(myKey + $r)] =
        vec4f(dS$r_0, dS$r_1, dS$r_2, dS$r_3);
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
    for (var c = 0u; c < quads; c++) {
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
