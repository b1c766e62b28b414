// Which stretch of rows or keys a workgroup takes: the first, the last, the second, the last but one, and so on. Under a
// causal mask one end has most of the work, and where a program imitates a GPU each thread takes workgroups that are
// neighbours: like this all have the same to do.
fn stretchOf(x: u32, count: u32) -> u32 {
  return select(x / 2u, count - 1u - x / 2u, x % 2u == 1u);
}
