// Sums and gated units of two matrices of one shape, element by element.
//
// | grid | an invocation for each element |

@group(0) @binding(0) var<uniform> count: u32;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> into: array<f32>;

@compute @workgroup_size(LANES)
fn add(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) all: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = place(group, all, lane);
  if (at < count) { into[at] = a[at] + b[at]; }
}

// a · sigmoid(a) · b, by an exponential that is at most 1.
@compute @workgroup_size(LANES)
fn swiglu(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) all: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = place(group, all, lane);
  if (at >= count) { return; }
  let gate = a[at];
  let e = exp(-abs(gate));
  let share = select(1.0, e, gate < 0.0) / (1.0 + e);
  into[at] = gate * share * b[at];
}
