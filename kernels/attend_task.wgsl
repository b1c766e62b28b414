// What all versions of attention have in common: the task, the state in memory, and which keys a row sees.
//
// | grid            | x: a workgroup's rows of the tile    y: query head    z: batch entry |
// | task            | the tile and the shapes, one record per dispatch                    |
// | queries         | [batch, queryTokens, heads, QUADS]                                  |
// | keys, values    | [batch, keyTokens, kvHeads, QUADS], bindings 2 and 3                |
// | outputs         | õ, as queries                                                       |
// | tops            | (m, l): [batch, heads, queryTokens]; l = 0 is a row without keys,   |
// |                 | l = −1 one with a score beyond the range of float32                 |
//
// õ = Σ exp(s − m)·v, m = max s and l = Σ exp(s − m), where s = scale · q·k runs over the keys that a row has seen so
// far, in this tile and in every one before. Each chunk of CHUNK keys begins with an empty state and is then added to
// what was before, so that no sum has many terms: that rounds less than key by key, and long sequences need it.
//
// The keys that a row may see are an interval of the tile's keys, for they ascend. A program is made in two variants:
// one visits only the keys that all rows of a workgroup see, in whole groups of CLEAR, without a word of masks; the
// other one (MASKED) then visits the keys before and after those as well, and tests each pair of them. A tile without a
// mask has none but clear keys, but for a rest of less than CLEAR.
//
// WGSL promises nothing about infinities and NaNs. So there are none: whether a pair counts is a flag of its own, since
// a row may well have no score above the lowest float32, and no difference or exponent can leave the range. Only a
// score itself can: its row is lost from then on, which l = −1 says.
//
// The program is completed in front of this text: ROWS, KEYS0 and KEYS1 (keys at once, clear and others), LANES, QUADS
// (a quarter of the head dimension), CLEAR, and how keys and values are stored, in textures or buffers. `placeOf` says
// where a head of a token lies, counted through [batch, keyTokens, kvHeads]; `key` and `value` give four components
// from such a place.

struct Task {
  // start, run, stride, first: a span of token positions.
  querySpan: vec4i,
  keySpan: vec4i,
  // First token of the tile, and how many it has, on either side.
  row: u32,
  rows: u32,
  column: u32,
  columns: i32,
  // Query q sees the keys from q − back to q + ahead.
  back: i32,
  ahead: i32,
  queryTokens: u32,
  keyTokens: u32,
  heads: u32,
  kvHeads: u32,
  scale: f32,
  // 0, which no compiler knows.
  zero: u32,
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(1) var<storage, read> queries: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> outputs: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> tops: array<vec2f>;

const LOWEST = -3.4028234e38;
// The bits of an infinity; those of a NaN are more.
const INFINITE = 0x7f800000u;

// The keys of the tile before the first that is beyond position p.
fn keysUpTo(p: i32) -> i32 {
  return countUpTo(task.keySpan, task.columns, p);
}

// The keys that a workgroup visits: `total` of them from `begin` on, without the `gap` keys from `gapBegin` on.
struct Visit {
  begin: i32,
  total: i32,
  gapBegin: i32,
  gap: i32,
}

// The clear keys, or else (`others`) those before and after them that some row sees.
fn visitOf(others: bool, firstRow: u32, lastRow: u32) -> Visit {
  let nearest = positionAt(task.querySpan, i32(firstRow));
  let farthest = positionAt(task.querySpan, i32(lastRow));
  let clearBegin = keysUpTo(farthest - task.back - 1);
  let clear = max(keysUpTo(nearest + task.ahead) - clearBegin, 0) / CLEAR * CLEAR;
  if (!others) { return Visit(clearBegin, clear, 0, 0); }
  let begin = keysUpTo(nearest - task.back - 1);
  let total = keysUpTo(farthest + task.ahead) - begin - clear;
  return Visit(begin, total, clearBegin, clear);
}

// The key that is visited as the i-th one.
fn keyOf(visit: Visit, i: i32) -> i32 {
  let k = visit.begin + i;
  return k + select(0, visit.gap, k >= visit.gapBegin);
}

// exp(a − b) for a ≤ b; below e⁻¹⁰⁰ there is no float32.
fn weight(a: f32, b: f32) -> f32 {
  return exp2(2.8853900817779268 * max(0.5 * a - 0.5 * b, -50.0));
}

// Bits that are INFINITE or more for infinities and NaNs, and less for numbers.
fn size(x: f32) -> u32 {
  return bitcast<u32>(x) & 0x7fffffffu;
}
