// What one tile adds to dq, from its dS: the second of two passes as a matrix product in workgroup memory, for GPUs; see
// `attend_backward_keys_tiles.wgsl`, which wrote dS down.
//
// A workgroup has DOWN · ROWS rows of one query head and takes HELD keys at a time. An invocation holds OWN quads of dq of
// ROWS rows in registers; every CHUNK keys they are added to what is in memory, so that no sum is long.
//
// | grid | x: DOWN · ROWS rows of the tile    y: query heads of the (batch entry, key head) from task.first on |

@group(0) @binding(4) var<storage, read> scores: array<vec4f>;

var<workgroup> stage: array<vec4f, STAGE>;
// Of each row: the first key that it sees, and how many they are.
var<workgroup> seenBy: array<vec2i, DOWN * ROWS>;

// The tile's keys before the first that is beyond position p.
fn keysUpTo(p: i32) -> i32 {
  return countUpTo(task.keySpan, task.columns, p);
}

// The key that has number i among those of the pass of keys.
fn keyOf(i: i32) -> i32 {
  let number = i % TILE;
  return i - number + number / KEYS + KEYS_DOWN * (number % KEYS);
}

@compute @workgroup_size(LANES)
fn backward(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let firstRow = i32(stretchOf(group.x, groups.x) * DOWN * ROWS);
  let lastRow = min(firstRow + i32(DOWN * ROWS), task.rows) - 1;
  let begin = keysUpTo(positionAt(task.querySpan, firstRow) - task.back - 1) / TILE * TILE;
  let end = keysUpTo(positionAt(task.querySpan, lastRow) + task.ahead);

  let sharing = task.heads / task.kvHeads;
  let entry = (task.first + group.y / sharing) / task.kvHeads;
  let keyHead = (task.first + group.y / sharing) % task.kvHeads;
  let head = keyHead * sharing + group.y % sharing;
  let keyBase = (entry * task.keyTokens + task.column) * task.kvHeads + keyHead;
  let scoreBase = group.y * task.rowQuads * FOUR;
  let down = lane / ACROSS;
  let across = lane % ACROSS;

  // Rows beyond the tile are shadows of its last one, which are never written.
  for (var i = lane; i < DOWN * ROWS; i += LANES) {
    let position = positionAt(task.querySpan, min(firstRow + i32(i), task.rows - 1));
    let low = keysUpTo(position - task.back - 1);
    seenBy[i] = vec2i(low, keysUpTo(position + task.ahead) - low);
  }

  for (var chunk = begin; chunk < end; chunk += CHUNK) {
    //@ for $r < ROWS
    //@ for $o < OWN
    var dq$r_$o = vec4f(0.0);
    //@ end
    //@ end
    for (var held = chunk; held < min(chunk + CHUNK, end + TILE - 1) / TILE * TILE; held += HELD) {
      workgroupBarrier();
      for (var i = lane; i < DOWN * ROWS * QUARTER; i += LANES) {
        let line = i / QUARTER;
        let row = u32(min(firstRow + i32(line), task.rows - 1));
        let first = held + i32(i % QUARTER * FOUR);
        let x = scores[(scoreBase + row) * (task.pitch / FOUR) + u32(first) / FOUR];
        let sees = seenBy[line];
        // Where no row of a workgroup's keys sees them, dS was not written.
        stage[line * LINE + i % QUARTER] = vec4f(
          select(0.0, x.x, u32(keyOf(first) - sees.x) < u32(sees.y)),
          select(0.0, x.y, u32(keyOf(first + 1) - sees.x) < u32(sees.y)),
          select(0.0, x.z, u32(keyOf(first + 2) - sees.x) < u32(sees.y)),
          select(0.0, x.w, u32(keyOf(first + 3) - sees.x) < u32(sees.y)),
        );
      }
      for (var i = lane; i < u32(HELD) * QUADS; i += LANES) {
        let key = u32(min(keyOf(held + i32(i / QUADS)), task.columns - 1));
        stage[DOWN * ROWS * LINE + i] = blockAt(placeOf(keyBase + key * task.kvHeads), i % QUADS);
      }
      workgroupBarrier();
      for (var i = 0u; i < QUARTER; i += STEP) {
        //@ for $s < STEP
        {
          //@ for $r < ROWS
          let w$r = stage[(down + DOWN * $ru) * LINE + i + $su];
          //@ end
          //@ for $e < FOUR
          //@ for $o < OWN
          let k$e_$o =
            stage[DOWN * ROWS * LINE + ((i + $su) * FOUR + $eu) * QUADS + across + ACROSS * $ou];
          //@ for $r < ROWS
          dq$r_$o = fma(vec4f(w$r[$e]), k$e_$o, dq$r_$o);
          //@ end
          //@ end
          //@ end
        }
        //@ end
      }
    }
    //@ for $r < ROWS
    let row$r = firstRow + i32(down + DOWN * $ru);
    if (row$r < task.rows) {
      let at = ((entry * task.heads + head) * task.queryTokens + task.row + u32(row$r)) * QUADS + across;
      //@ for $o < OWN
      if (across + ACROSS * $ou < QUADS) {
        gradients[at + ACROSS * $ou] += dq$r_$o;
      }
      //@ end
    }
    //@ end
  }
}
