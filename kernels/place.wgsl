// Which element an invocation has: workgroups lie in two dimensions, where one has not enough of them.

const LANES = 64u;

fn place(group: vec3u, all: vec3u, lane: u32) -> u32 {
  return (group.y * all.x + group.x) * LANES + lane;
}
