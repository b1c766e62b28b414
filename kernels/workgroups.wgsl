// Which stretch of rows or keys a workgroup takes. Where a program imitates a GPU, each thread takes workgroups that are
// neighbours, one half of them or a quarter, while masks leave more to do the farther a row is, at least for a part of
// the way. So the order is that of residues modulo 8: the stretches 0, 8, 16, …, then 7, 15, …, then those of 3, 4, 1,
// 6, 2 and 5, of which every half and every quarter has the same sum.
fn stretchOf(x: u32, count: u32) -> u32 {
  var rest = x;
  var residue = 0u;
  for (var i = 0u; i < 8u; i++) {
    residue = (0x52614370u >> (4u * i)) & 7u;
    let size = (count + 7u - residue) / 8u;
    if (rest < size) { break; }
    rest -= size;
  }
  return 8u * rest + residue;
}
