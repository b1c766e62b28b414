// into = w · x / √(mean(x²) + ε) over groups of `width` components: of a whole row, or of each head.
//
// | grid   | a workgroup for each group                    |
// | x, into | [rows, stride], of which `groups` · `width` are components |
// | gain   | [width]                                       |

struct Task {
  width: u32,
  groups: u32,
  stride: u32,
  count: u32,
  epsilon: f32,
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read_write> into: array<f32>;

const LANES = 64u;
var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(LANES)
fn rmsNorm(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) all: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = group.y * all.x + group.x;
  // Workgroups beyond the last are shadows of it, which write what it does.
  let which = min(at, task.count - 1u);
  let begin = (which / task.groups) * task.stride + (which % task.groups) * task.width;
  var sum = 0.0;
  for (var i = lane; i < task.width; i += LANES) { sum += x[begin + i] * x[begin + i]; }
  sums[lane] = sum;
  workgroupBarrier();
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    if (lane < half) { sums[lane] += sums[lane + half]; }
    workgroupBarrier();
  }
  let factor = inverseSqrt(sums[0] / f32(task.width) + task.epsilon);
  for (var i = lane; i < task.width; i += LANES) {
    into[begin + i] = gain[i] * (x[begin + i] * factor);
  }
}
