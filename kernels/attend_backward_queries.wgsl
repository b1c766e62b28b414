// What one tile adds to dq, from its dS: the second of two passes, see `attend_backward_task.wgsl`.
//
// An invocation owns ROWS consecutive rows of one query head and holds their dq in registers. It takes four of the
// tile's keys at a time; each k that it reads serves all its rows, and each dS that it reads is of four of them.
//
// | grid | x: LANES · ROWS rows of the tile    y: query heads of the (batch entry, key head) from task.first on |

@group(0) @binding(4) var<storage, read> scores: array<vec4f>;

// The tile's keys before the first that is beyond position p.
fn keysUpTo(p: i32) -> i32 {
  return countUpTo(task.keySpan, task.columns, p);
}

@compute @workgroup_size(LANES)
fn backward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let firstRow = i32(stretchOf(group.x, groups.x) * LANES * ROWS);
  let lastRow = min(firstRow + i32(LANES * ROWS), task.rows) - 1;
  let begin = keysUpTo(positionAt(task.querySpan, firstRow) - task.back - 1);
  let end = keysUpTo(positionAt(task.querySpan, lastRow) + task.ahead);
  if (begin >= end) { return; }
  // A loop with an end that no compiler knows stays a loop, which is less to compile.
  let quads = QUADS + task.zero;

  let sharing = task.heads / task.kvHeads;
  let entry = (task.first + group.y / sharing) / task.kvHeads;
  let keyHead = (task.first + group.y / sharing) % task.kvHeads;
  let head = keyHead * sharing + group.y % sharing;
  let keyBase = (entry * task.keyTokens + task.column) * task.kvHeads + keyHead;

  // Rows beyond the tile are shadows of its last one, which are never written.
  let myRow = firstRow + i32(lane * ROWS);
  //@ for $r < ROWS
  let row$r = min(myRow + $r, task.rows - 1);
  let position$r = positionAt(task.querySpan, row$r);
  let low$r = keysUpTo(position$r - task.back - 1);
  let count$r = u32(keysUpTo(position$r + task.ahead) - low$r);
  //@ for $c < QUADS
  var dq$r_$c = vec4f(0.0);
  //@ end
  //@ end
  //@ for $q < FOURS
  let scoreRow$q =
    group.y * task.rowQuads + min(u32(myRow) / 4u + $qu, task.rowQuads - 1u);
  //@ end

  var k = begin;
  loop {
    //@ for $j < FOUR
    // Keys beyond the tile are shadows of its last one, which nobody sees.
    let key$j = u32(min(k + $j, task.columns - 1));
    let at$j = placeOf(keyBase + key$j * task.kvHeads);
    //@ for $q < FOURS
    let scores$q_$j = scores[scoreRow$q * task.pitch + key$j];
    //@ end
    //@ for $r < ROWS
    // Where no row of a workgroup's keys sees them, dS was not written.
    let dS$r_$j =
      select(0.0, scores$[$r / FOUR]_$j[$[$r % FOUR]], u32(k + $j - low$r) < count$r);
    //@ end
    //@ end

    //@ for $c < QUADS
    //@ for $j < FOUR
    let k$j_$c = blockAt(at$j, $cu);
    //@ end
    //@ for $r < ROWS
    dq$r_$c += dS$r_0 * k0_$c + dS$r_1 * k1_$c + dS$r_2 * k2_$c + dS$r_3 * k3_$c;
    //@ end
    //@ end
    continuing {
      k += FOUR;
      break if k >= end;
    }
  }

  //@ for $r < ROWS
  if (myRow + $r < task.rows) {
    let at = ((entry * task.heads + head) * task.queryTokens + task.row + u32(row$r)) * QUADS;
    for (var c = 0u; c < quads; c++) {
      var dq = vec4f(0.0);
      //@ for $c < QUADS
      dq = select(dq, dq$r_$c, c == $cu);
      //@ end
      gradients[at + c] += dq;
    }
  }
  //@ end
}
