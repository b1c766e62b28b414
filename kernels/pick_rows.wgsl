// into[r] = x[ids[r]], for the rows that lie in this part of x: what is elsewhere stays as it is.
//
// | grid    | an invocation for each vector of four components |
// | x       | [held, quads] as it is held, rows from `first` on |
// | into    | [rows, quads]                                    |
//
// In front of it stands how x is held: `Stored`, four elements, and `widened`, which gives them as float32.

struct Task {
  quads: u32,
  first: u32,
  held: u32,
  count: u32,
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(1) var<storage, read> x: array<Stored>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> into: array<vec4f>;

@compute @workgroup_size(LANES)
fn pickRows(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) all: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = place(group, all, lane);
  if (at >= task.count) { return; }
  let id = ids[at / task.quads];
  if (id < task.first || id >= task.first + task.held) { return; }
  into[at] = widened(x[(id - task.first) * task.quads + at % task.quads]);
}
