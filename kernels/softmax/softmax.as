/**
 * What is left of attention when the matrix products are a library's, in AssemblyScript: the softmax of tiles, forward
 * and backward. `deno task wasm` compiles it twice, with the fused multiply-add of relaxed SIMD and without.
 *
 * A tile holds float32 numbers, row-major, in rows of `stride`, a multiple of 4. Of row i the columns `lo[i]` …
 * `hi[i] − 1` count; where `lo` is 0, all `columns` of all rows do. What a row does not see becomes 0, and whatever
 * number stood there has no influence. No sum or maximum begins with an infinity: a row that sees nothing is passed
 * over, and scores that float32 cannot hold end as sums that are no numbers.
 */

/**
 * Numbers that loops hold in registers. Written where they are used they take three times as long: presumably the engine
 * makes a constant anew in every turn of a loop. What comes from memory is loaded once, before the loop.
 */
const constants = memory.data<f32>([
  1.4426950408889634, // log₂ e
  12582912.0, // 1.5 · 2²³ leaves a sum no bits for a fraction: the nearest integer is in its low bits
  0.6931471805599453, // ln 2
  -0.00021219444005469057, // ln 2 − 355/512, where ln 2 is taken in two steps
  // e^x = 1 + x + c₂x² + … + c₅x⁵ within 1.05 · 10⁻⁷ of e^x for |x| ≤ ln 2 / 2; fitted by weighted least squares
  1.0,
  0.499992311000824,
  0.16667114198207855,
  0.04189015552401543,
  0.008312520571053028,
  -87.0, // where e^x is no normal float32 any more
  89.0, // where e^x is no float32 any more
]);
const lowest: f32 = -87.0;

// @ts-ignore: decorator
@inline
function constant(i: i32): v128 {
  return f32x4.splat(load<f32>(constants + (<usize>i << 2)));
}

// @ts-ignore: decorator
@inline
function fma(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return v128.relaxed_madd<f32>(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

/** x − n · ln 2: rounded once with a fused multiply-add; else in two steps, of which the first product is exact. */
// @ts-ignore: decorator
@inline
function reduce(x: v128, n: v128, ln2: v128, low: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return v128.relaxed_nmadd<f32>(n, ln2, x);
  const rest = f32x4.sub(x, f32x4.mul(n, ln2));
  return f32x4.sub(rest, f32x4.mul(n, low));
}

/**
 * e^x for −87 ≤ x ≤ 89: x = n · ln 2 + f with |f| ≤ ln 2 / 2, a polynomial for e^f, and 2ⁿ by the exponent's bits. NaN
 * stays NaN, and above 88.7 it is an infinity or NaN.
 */
// @ts-ignore: decorator
@inline
function exp(
  x: v128,
  log2e: v128,
  magic: v128,
  ln2: v128,
  low: v128,
  one: v128,
  c2: v128,
  c3: v128,
  c4: v128,
  c5: v128,
): v128 {
  const shifted = fma(x, log2e, magic);
  const f = reduce(x, f32x4.sub(shifted, magic), ln2, low);
  let p = fma(c5, f, c4);
  p = fma(p, f, c3);
  p = fma(p, f, c2);
  p = fma(p, f, one);
  p = fma(p, f, one);
  return i32x4.add(p, i32x4.shl(shifted, 23));
}

/** All bits where the lane's column counts. */
// @ts-ignore: decorator
@inline
function counts(column: i32, from: i32, to: i32): v128 {
  const columns = i32x4.add(i32x4.splat(column), i32x4(0, 1, 2, 3));
  return v128.and(i32x4.ge_s(columns, i32x4.splat(from)), i32x4.lt_s(columns, i32x4.splat(to)));
}

/** The next multiple of 4. */
// @ts-ignore: decorator
@inline
function up(x: i32): i32 {
  return (x + 3) & ~3;
}

// @ts-ignore: decorator
@inline
function address(base: usize, i: i32): usize {
  return base + (<usize>i << 2);
}

/** Sets to 0 what a row does not see, but for columns that share a vector with one that it sees. */
function clear(row: usize, from: i32, to: i32, columns: i32): void {
  if (from >= to) {
    from = 0;
    to = 0;
  }
  const zero = f32x4.splat(0);
  for (let j = 0; j < (from & ~3); j += 4) v128.store(address(row, j), zero);
  for (let j = up(to); j < columns; j += 4) v128.store(address(row, j), zero);
}

// @ts-ignore: decorator
@inline
function sumOf(x: v128): f32 {
  return (f32x4.extract_lane(x, 0) + f32x4.extract_lane(x, 1)) +
    (f32x4.extract_lane(x, 2) + f32x4.extract_lane(x, 3));
}

// pmax and pmin are one instruction, and NaN where their first argument is.

/**
 * Replaces the scores of one row by their weights, and gives the sum of these: e^score, or, `below` their maximum
 * `top`, e^(score − top).
 */
// @ts-ignore: decorator
@inline
function weighRow(row: usize, from: i32, to: i32, top: f32, below: bool): f32 {
  const log2e = constant(0);
  const magic = constant(1);
  const ln2 = ASC_FEATURE_RELAXED_SIMD ? constant(2) : f32x4.splat(0.693359375);
  const low = constant(3);
  const one = constant(4);
  const c2 = constant(5);
  const c3 = constant(6);
  const c4 = constant(7);
  const c5 = constant(8);
  const least = constant(9);
  const tops = f32x4.splat(top);
  let a = f32x4.splat(0);
  let b = a;
  let j = from & ~3;
  if (j < from) {
    const at = address(row, j);
    let x = v128.load(at);
    if (below) x = f32x4.pmax(f32x4.sub(x, tops), least);
    x = v128.and(exp(x, log2e, magic, ln2, low, one, c2, c3, c4, c5), counts(j, from, to));
    v128.store(at, x);
    a = x;
    j += 4;
  }
  for (; j + 8 <= to; j += 8) {
    const at = address(row, j);
    let x = v128.load(at);
    let y = v128.load(at, 16);
    if (below) {
      x = f32x4.pmax(f32x4.sub(x, tops), least);
      y = f32x4.pmax(f32x4.sub(y, tops), least);
    }
    x = exp(x, log2e, magic, ln2, low, one, c2, c3, c4, c5);
    y = exp(y, log2e, magic, ln2, low, one, c2, c3, c4, c5);
    v128.store(at, x);
    v128.store(at, y, 16);
    a = f32x4.add(a, x);
    b = f32x4.add(b, y);
  }
  for (; j < to; j += 4) {
    const at = address(row, j);
    let x = v128.load(at);
    if (below) x = f32x4.pmax(f32x4.sub(x, tops), least);
    x = v128.and(exp(x, log2e, magic, ln2, low, one, c2, c3, c4, c5), counts(j, from, to));
    v128.store(at, x);
    b = f32x4.add(b, x);
  }
  return sumOf(f32x4.add(a, b));
}

/** Replaces scores of at most 88 in size by e^score, and adds those of row i to `sums[i]`. */
export function weigh(
  tile: usize,
  rows: i32,
  columns: i32,
  stride: i32,
  lo: usize,
  hi: usize,
  sums: usize,
): void {
  for (let i = 0; i < rows; i++) {
    const row = address(tile, i * stride);
    const from = lo == 0 ? 0 : load<i32>(address(lo, i));
    const to = lo == 0 ? columns : load<i32>(address(hi, i));
    clear(row, from, to, columns);
    if (from >= to) continue;
    const sum = address(sums, i);
    store<f32>(sum, load<f32>(sum) + weighRow(row, from, to, 0, false));
  }
}

/** The largest of `top` and a row's columns `from` … `to − 1`, numbers all. */
// @ts-ignore: decorator
@inline
function topOf(row: usize, from: i32, to: i32, top: f32): f32 {
  let a = f32x4.splat(top);
  let b = a;
  let j = from & ~3;
  if (j < from) {
    a = v128.bitselect(v128.load(address(row, j)), a, counts(j, from, to));
    j += 4;
  }
  for (; j + 8 <= to; j += 8) {
    a = f32x4.pmax(a, v128.load(address(row, j)));
    b = f32x4.pmax(b, v128.load(address(row, j), 16));
  }
  for (; j < to; j += 4) {
    b = f32x4.pmax(b, v128.bitselect(v128.load(address(row, j)), b, counts(j, from, to)));
  }
  a = f32x4.pmax(a, b);
  a = f32x4.pmax(a, v128.shuffle<f32>(a, a, 2, 3, 0, 1));
  a = f32x4.pmax(a, v128.shuffle<f32>(a, a, 1, 0, 3, 2));
  return f32x4.extract_lane(a, 0);
}

/** e^x of one number, for x of −87 … 0 or below, or NaN. */
function expOf(x: f32): f32 {
  const ln2 = ASC_FEATURE_RELAXED_SIMD ? constant(2) : f32x4.splat(0.693359375);
  return f32x4.extract_lane(
    exp(
      f32x4.splat(x < lowest ? lowest : x),
      constant(0),
      constant(1),
      ln2,
      constant(3),
      constant(4),
      constant(5),
      constant(6),
      constant(7),
      constant(8),
    ),
    0,
  );
}

/**
 * The same for scores of any size: `tops[i]` becomes the highest score of row i, every score s becomes e^(s − top), and
 * what was gathered below the former top has to be multiplied by `keeps[i]`; `sums[i]` is. A row with a sum of 0 has
 * gathered nothing and has no top. Gives whether any `keeps[i]` is not 1.
 */
export function weighWithTops(
  tile: usize,
  rows: i32,
  columns: i32,
  stride: i32,
  lo: usize,
  hi: usize,
  sums: usize,
  tops: usize,
  keeps: usize,
): bool {
  let rescaled = false;
  for (let i = 0; i < rows; i++) {
    const row = address(tile, i * stride);
    store<f32>(address(keeps, i), 1);
    const from = lo == 0 ? 0 : load<i32>(address(lo, i));
    const to = lo == 0 ? columns : load<i32>(address(hi, i));
    clear(row, from, to, columns);
    if (from >= to) continue;
    let sum = load<f32>(address(sums, i));
    const before = load<f32>(address(tops, i));
    const top = topOf(row, from, to, sum == 0 ? load<f32>(address(row, from)) : before);
    store<f32>(address(tops, i), top);
    if (sum != 0 && top != before) {
      const keep = expOf(before - top);
      sum *= keep;
      store<f32>(address(keeps, i), keep);
      rescaled = true;
    }
    store<f32>(address(sums, i), sum + weighRow(row, from, to, top, true));
  }
  return rescaled;
}

/**
 * The backward pass: scores become P = e^(score − lses[i]), and the products dP in the second tile become
 * dS = P ∘ (dP − ds[i]).
 */
export function gradients(
  scores: usize,
  products: usize,
  rows: i32,
  columns: i32,
  stride: i32,
  lo: usize,
  hi: usize,
  lses: usize,
  ds: usize,
): void {
  const log2e = constant(0);
  const magic = constant(1);
  const ln2 = ASC_FEATURE_RELAXED_SIMD ? constant(2) : f32x4.splat(0.693359375);
  const low = constant(3);
  const one = constant(4);
  const c2 = constant(5);
  const c3 = constant(6);
  const c4 = constant(7);
  const c5 = constant(8);
  const least = constant(9);
  const most = constant(10);
  for (let i = 0; i < rows; i++) {
    const from = lo == 0 ? 0 : load<i32>(address(lo, i));
    const to = lo == 0 ? columns : load<i32>(address(hi, i));
    const row = address(scores, i * stride);
    const other = address(products, i * stride);
    clear(row, from, to, columns);
    clear(other, from, to, columns);
    if (from >= to) continue;
    const lse = f32x4.splat(load<f32>(address(lses, i)));
    const d = f32x4.splat(load<f32>(address(ds, i)));
    // A score is never far above the row's log-sum-exp, unless that belongs to other keys: not silently, then.
    let j = from & ~3;
    if (j < from) {
      const at = address(row, j);
      const into = address(other, j);
      let x = f32x4.pmin(f32x4.pmax(f32x4.sub(v128.load(at), lse), least), most);
      x = exp(x, log2e, magic, ln2, low, one, c2, c3, c4, c5);
      const mask = counts(j, from, to);
      v128.store(into, v128.and(f32x4.mul(x, f32x4.sub(v128.load(into), d)), mask));
      v128.store(at, v128.and(x, mask));
      j += 4;
    }
    for (; j + 8 <= to; j += 8) {
      const at = address(row, j);
      const into = address(other, j);
      let x = f32x4.pmin(f32x4.pmax(f32x4.sub(v128.load(at), lse), least), most);
      let y = f32x4.pmin(f32x4.pmax(f32x4.sub(v128.load(at, 16), lse), least), most);
      x = exp(x, log2e, magic, ln2, low, one, c2, c3, c4, c5);
      y = exp(y, log2e, magic, ln2, low, one, c2, c3, c4, c5);
      v128.store(at, x);
      v128.store(at, y, 16);
      v128.store(into, f32x4.mul(x, f32x4.sub(v128.load(into), d)));
      v128.store(into, f32x4.mul(y, f32x4.sub(v128.load(into, 16), d)), 16);
    }
    for (; j < to; j += 4) {
      const at = address(row, j);
      const into = address(other, j);
      let x = f32x4.pmin(f32x4.pmax(f32x4.sub(v128.load(at), lse), least), most);
      x = exp(x, log2e, magic, ln2, low, one, c2, c3, c4, c5);
      const mask = counts(j, from, to);
      v128.store(into, v128.and(f32x4.mul(x, f32x4.sub(v128.load(into), d)), mask));
      v128.store(at, v128.and(x, mask));
    }
  }
}

/** The squared lengths of `count` vectors of `width` components, a multiple of 4. */
export function squares(vectors: usize, count: i32, width: i32, out: usize): void {
  let at = vectors;
  for (let i = 0; i < count; i++) {
    let sum = f32x4.splat(0);
    for (let c = 0; c < width; c += 4) {
      const x = v128.load(at);
      sum = fma(x, x, sum);
      at += 16;
    }
    store<f32>(address(out, i), sumOf(sum));
  }
}

/** `count` bfloat16 numbers as float32; a multiple of 4. */
export function widenBf16(from: usize, to: usize, count: i32): void {
  for (let i = 0; i < count; i += 4) {
    v128.store(address(to, i), i32x4.shl(v128.load16x4_u(from + (<usize>i << 1)), 16));
  }
}

/** `count` IEEE halves as float32; a multiple of 4. */
export function widenF16(from: usize, to: usize, count: i32): void {
  for (let i = 0; i < count; i += 4) {
    const bits = v128.load16x4_u(from + (<usize>i << 1));
    const size = v128.and(bits, i32x4.splat(0x7fff));
    // The exponent's bias differs by 112. A product gets subnormals right as well.
    const scaled = f32x4.mul(i32x4.shl(size, 13), f32x4.splat(5.192296858534828e33));
    const beyond = v128.and(i32x4.ge_s(size, i32x4.splat(0x7c00)), i32x4.splat(0x7f800000));
    const sign = i32x4.shl(v128.and(bits, i32x4.splat(0x8000)), 16);
    v128.store(address(to, i), v128.or(sign, v128.or(scaled, beyond)));
  }
}
