// Turns components i and i + half of each head by the row's i-th angle: (a, b) → (a cos − b sin, b cos + a sin).
//
// | grid    | an invocation for each pair                      |
// | x, into | [rows, stride], of which `heads` · 2 · `half` are components |
// | cosines, sines | [rows, half]                              |

struct Task {
  half: u32,
  heads: u32,
  stride: u32,
  count: u32,
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> cosines: array<f32>;
@group(0) @binding(3) var<storage, read> sines: array<f32>;
@group(0) @binding(4) var<storage, read_write> into: array<f32>;

@compute @workgroup_size(LANES)
fn rope(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) all: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = place(group, all, lane);
  if (at >= task.count) { return; }
  let row = at / (task.heads * task.half);
  let head = at / task.half % task.heads;
  let i = at % task.half;
  let a = row * task.stride + head * 2u * task.half + i;
  let b = a + task.half;
  let c = cosines[row * task.half + i];
  let s = sines[row * task.half + i];
  into[a] = x[a] * c - x[b] * s;
  into[b] = x[b] * c + x[a] * s;
}
