// What the passes of the backward pass of attention have in common: the task, and which pairs count.
//
// With s = scale · q·k, P = exp(s − lse), D = Σ dO·o and dS = P ∘ (dO·v − D), the gradients are dv = Pᵀ dO,
// dk = scale · dSᵀ q and dq = scale · dS k: five matrix products. Of a tile, `attend_backward_keys.wgsl` computes P, dS
// and what the tile adds to dk and dv, and writes dS down; `attend_backward_queries.wgsl` reads it and computes what the
// tile adds to dq. Computing dS a second time instead would be seven products. On a CPU, where a workgroup is one subgroup,
// `attend_backward_once.wgsl` computes all that the tile adds, and nothing is written down. Nothing is added up by more
// than one invocation at a time and in another order, so that the same calls give the same bits.
//
// | task      | the tile and the shapes, one record per dispatch                                          |
// | rows      | q times scale, and behind all of it dO: [batch, heads, queryTokens, QUADS] each           |
// | outcomes  | (lse, D, 0, 0): [batch, heads, queryTokens]                                               |
// | blocks    | k, and behind all of it v: [batch, keyTokens, kvHeads, QUADS] each                        |
// | scores    | dS of four rows of the tile and one key: [heads of the dispatch, rowQuads, pitch]         |
// | gradients | dk and behind it dv as blocks, or dq over scale as q is stored: in float32, added to      |
//
// The only pass has dq in place of scores; tiles, for GPUs, have lines of keys there, see `attend_backward_keys_tiles.wgsl`.
//
// A row that saw no key comes with q, dO, lse and D of zero, so that nothing has to know of it. Positions ascend in a
// span: the rows that see a key are an interval of the tile's rows, and the keys that a row sees one of its keys.
//
// The program is completed in front of this text: ROWS, LANES, QUADS (a quarter of the head dimension), FOUR (which is
// 4), and how tensors are stored, in textures or buffers. `placeOf` says where a head of a token lies in rows and blocks,
// counted through the whole tensor; `rowAt` and `blockAt` give four components from such a place, `outcomeAt` those of a
// row. `//@` lines are for `unroll`, as in `attend.wgsl`.

struct Task {
  // start, run, stride, first: a span of token positions.
  querySpan: vec4i,
  keySpan: vec4i,
  // First token of the tile, and how many it has, on either side.
  row: u32,
  rows: i32,
  column: u32,
  columns: i32,
  // Query q sees the keys from q − back to q + ahead.
  back: i32,
  ahead: i32,
  queryTokens: u32,
  keyTokens: u32,
  heads: u32,
  kvHeads: u32,
  // The first (batch entry, key head) of the dispatch, counted through [batch, kvHeads].
  first: u32,
  // Where dO and v begin, in heads.
  cotangents: u32,
  values: u32,
  // Quads of rows in each head of `scores`, or in a stretch that a workgroup has to itself, and what is from one of
  // them to the next.
  rowQuads: u32,
  pitch: u32,
  // Which stretch of rows each workgroup has, in the only pass.
  turn: u32,
  // 0, which no compiler knows.
  zero: u32,
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(5) var<storage, read_write> gradients: array<vec4f>;

// exp(a − b) for a ≤ b; below e⁻¹⁰⁰ there is no float32.
fn weight(a: f32, b: f32) -> f32 {
  return exp(2.0 * max(0.5 * a - 0.5 * b, -50.0));
}
