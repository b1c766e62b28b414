/**
 * The contract of programs on a device: each step gives what float64 does, for sizes that are multiples of nothing, with
 * weights in every format and in pieces, and values stay for as long as they are asked for and no longer.
 *
 * @module
 */
import { Effect, type Layer, type Scope } from "effect";
import assert from "node:assert/strict";
import { Device, type Programs } from "../../runtime/device.ts";
import { decode, type DType, dtypes, elementBytes, encode } from "../../runtime/dtype.ts";
import type { DeviceFailed, DeviceUnavailable } from "../../runtime/errors.ts";
import { ProgramWriter, type Turns, type WeightSpec } from "../../runtime/program.ts";
import { normals } from "../support/random.ts";

/** A case and its name. */
export interface ProgramCase {
  readonly name: string;
  readonly run: Effect.Effect<void, DeviceFailed, Device>;
}

type Numbers = ArrayLike<number>;

/** Programs over weights of these values, filled in pieces; in float32 unless told. */
const holding = Effect.fnUntraced(function* (
  weights: ReadonlyArray<
    & Omit<WeightSpec, "dtype">
    & { readonly values: Float32Array; readonly dtype?: DType; readonly filled?: DType }
  >,
): Effect.fn.Return<Programs, DeviceFailed, Device | Scope.Scope> {
  const { programs } = yield* Device;
  assert.ok(programs !== undefined, "the device has no programs");
  const held = yield* programs(
    weights.map(({ name, rows, columns, dtype = "f32" }) => ({ name, rows, columns, dtype })),
  );
  for (const { name, rows, columns, values, dtype = "f32", filled = dtype } of weights) {
    const bytes = encode(filled, values);
    const row = Math.floor(rows / 3);
    const cut = row * columns * elementBytes(filled);
    yield* held.fill(name, row, filled, bytes.subarray(cut));
    yield* held.fill(name, 0, filled, bytes.subarray(0, cut));
  }
  return held;
});

/** What a program gives. */
const outcome = (held: Programs, write: (program: ProgramWriter) => void) => {
  const writer = new ProgramWriter();
  write(writer);
  return held.run(writer.program);
};

/** Why something is not given; it must not be. */
const refusal = (given: Effect.Effect<unknown, DeviceFailed>) =>
  Effect.flip(Effect.asVoid(given)).pipe(
    Effect.catch(() => Effect.die(new assert.AssertionError({ message: "it was given" }))),
  );

const assertNear = (found: Float32Array | undefined, needed: Numbers, what: string) => {
  assert.ok(found !== undefined, `${what}: nothing was given`);
  assert.equal(found.length, needed.length, `${what}: its size`);
  const largest = Math.max(1, ...Array.from(needed, Math.abs));
  for (let i = 0; i < needed.length; i++) {
    const apart = Math.abs(found[i]! - needed[i]!);
    assert.ok(
      apart <= 1e-5 * largest,
      `${what}: element ${i} must be ${needed[i]}: found ${found[i]}`,
    );
  }
};

const linear = (
  x: Numbers,
  rows: number,
  w: Numbers,
  columns: number,
  inner: number,
  b?: Numbers,
) =>
  Float64Array.from({ length: rows * columns }, (_, at) => {
    const [row, column] = [Math.floor(at / columns), at % columns];
    let sum = b?.[column] ?? 0;
    for (let i = 0; i < inner; i++) sum += x[row * inner + i]! * w[column * inner + i]!;
    return sum;
  });

const products: ProgramCase["run"] = Effect.scoped(Effect.gen(function* () {
  for (const [rows, inner, columns] of [[1, 7, 3], [37, 130, 301], [3, 41, 67], [130, 5, 1]]) {
    const [w, b] = [normals(1, columns! * inner!), normals(2, columns!)];
    const held = yield* holding([
      { name: "w", rows: columns!, columns: inner!, values: w },
      { name: "b", rows: 1, columns: columns!, values: b },
    ]);
    const x = normals(3, rows! * inner!);
    const [plain, biased] = yield* outcome(held, (p) => {
      const value = p.put(x, inner!);
      p.give(p.linear(value, "w"), p.linear(value, "w", "b"));
    });
    const what = `${rows} rows of ${inner} to ${columns}`;
    assertNear(plain, linear(x, rows!, w, columns!, inner!), what);
    assertNear(biased, linear(x, rows!, w, columns!, inner!, b), `${what}, with a bias`);
  }
}));

/** What is left of values that are brought in one format and held in another. */
const through = (filled: DType, dtype: DType, values: Float32Array) =>
  decode(dtype, encode(dtype, decode(filled, encode(filled, values))));

const formats: ProgramCase["run"] = Effect.scoped(Effect.gen(function* () {
  for (const dtype of dtypes) {
    for (const filled of dtypes) {
      const values = normals(4, 4001 * 13);
      values.set([6e-8, -3e-5, 0, -0, 65504]); // of which the first two are subnormal as halves
      const held = yield* holding([{
        name: "table",
        rows: 4001,
        columns: 13,
        values,
        dtype,
        filled,
      }]);
      const ids = Uint32Array.of(4000, 0, 3, 3, 2027);
      const [rows] = yield* outcome(held, (p) => p.give(p.embed("table", ids)));
      const stored = through(filled, dtype, values);
      const needed = Array.from(ids).flatMap((id) => [...stored.subarray(id * 13, (id + 1) * 13)]);
      assert.deepEqual([...rows!], needed, `${filled}, held as ${dtype}`);
    }
  }
}));

// The last ones are larger than the tiles in which a weight is widened, in one direction and in the other.
const narrowSizes = [[1, 7, 3], [5, 130, 301], [301, 41, 67], [3, 1500, 70], [37, 1030, 259]];

const narrow: ProgramCase["run"] = Effect.scoped(Effect.gen(function* () {
  for (const dtype of ["f16", "bf16"] as const) {
    for (const [rows, inner, columns] of narrowSizes) {
      const w = normals(1, columns! * inner!);
      const [b, gain] = [normals(2, columns!), normals(3, columns!)];
      const held = yield* holding([
        { name: "w", rows: columns!, columns: inner!, values: w, dtype },
        { name: "b", rows: 1, columns: columns!, values: b, dtype },
        { name: "gain", rows: 1, columns: columns!, values: gain, dtype },
      ]);
      const x = normals(3, rows! * inner!);
      const what = `${rows} rows of ${inner} to ${columns}, ${dtype}`;
      const [product, normed] = yield* outcome(held, (p) => {
        const y = p.linear(p.put(x, inner!), "w", "b");
        p.give(y, p.rmsNorm(y, "gain", 1e-3));
      });
      const [ws, bs, gains] = [w, b, gain].map((values) => through(dtype, dtype, values));
      const needed = linear(x, rows!, ws!, columns!, inner!, bs!);
      assertNear(product, needed, what);
      const norms = needed.map((_, at) => {
        const begin = at - at % columns!;
        const mean = needed.subarray(begin, begin + columns!).reduce((sum, y) => sum + y * y, 0) /
          columns!;
        return needed[at]! / Math.sqrt(mean + 1e-3) * gains![at % columns!]!;
      });
      assertNear(normed, norms, `${what}, normed`);
    }
  }
}));

const norms: ProgramCase["run"] = Effect.scoped(Effect.gen(function* () {
  for (const [width, groups] of [[12, 5], [130, 1], [4, 1]] as const) {
    const [gain, x] = [normals(5, width), normals(6, 9 * width * groups)];
    const held = yield* holding([{ name: "gain", rows: 1, columns: width, values: gain }]);
    const [found] = yield* outcome(
      held,
      (p) => p.give(p.rmsNorm(p.put(x, width * groups), "gain", 1e-3)),
    );
    const needed = Float64Array.from(x, (value, at) => {
      const begin = at - at % width;
      const mean = x.subarray(begin, begin + width).reduce((sum, y) => sum + y * y, 0) / width;
      return value / Math.sqrt(mean + 1e-3) * gain[at % width]!;
    });
    assertNear(found, needed, `groups of ${width}`);
  }
}));

const elementwise: ProgramCase["run"] = Effect.scoped(Effect.gen(function* () {
  const held = yield* holding([]);
  const [rows, heads, headDim] = [7, 3, 20];
  const columns = heads * headDim;
  const [a, b] = [normals(7, rows * columns), normals(8, rows * columns)];
  a.set([80, -80, 0], 0); // where exp leaves float32, or nearly
  const angles = normals(9, rows * headDim / 2);
  const turns: Turns = { cos: angles.map(Math.cos), sin: angles.map(Math.sin) };
  const picked = Uint32Array.of(6, 2, 2);
  const [turned, gated, sum, some] = yield* outcome(held, (p) => {
    const [x, y] = [p.put(a, columns), p.put(b, columns)];
    p.give(p.rope(y, headDim, turns), p.swiglu(x, y), p.add(x, y), p.pick(x, picked));
  });
  const half = headDim / 2;
  assertNear(
    turned,
    Float64Array.from(b, (_, at) => {
      const [row, i] = [Math.floor(at / columns), at % headDim];
      const pair = row * half + i % half;
      const [c, s] = [turns.cos[pair]!, turns.sin[pair]!];
      return i < half ? b[at]! * c - b[at + half]! * s : b[at]! * c + b[at - half]! * s;
    }),
    "rope",
  );
  assertNear(gated, Float64Array.from(a, (g, i) => g / (1 + Math.exp(-g)) * b[i]!), "swiglu");
  assertNear(sum, Float64Array.from(a, (x, i) => x + b[i]!), "add");
  assert.deepEqual(
    [...some!],
    Array.from(picked).flatMap((row) => [...a.subarray(row * columns, (row + 1) * columns)]),
  );
}));

const lifetimes: ProgramCase["run"] = Effect.scoped(Effect.gen(function* () {
  const held = yield* holding([
    { name: "w", rows: 2, columns: 3, values: normals(1, 6) },
    { name: "g", rows: 1, columns: 3, values: normals(1, 3) },
  ]);
  const x = normals(2, 12);
  const first = new ProgramWriter();
  const [kept, gone] = [first.keep(first.put(x, 3)), first.put(x, 3)];
  first.give(first.add(kept, gone));
  yield* held.run(first.program);
  const [again] = yield* outcome(held, (p) => p.give(p.pick(kept, Uint32Array.of(1))));
  assert.deepEqual([...again!], [...x.subarray(3, 6)]);
  // A program that uses what was kept, and does not keep it, lets it go; and nobody kept the other one.
  for (const value of [kept, gone]) {
    const error = yield* refusal(outcome(held, (p) => p.give(p.pick(value, Uint32Array.of(0)))));
    assert.match(error.message, /is not there any more/);
  }
  const unknown = yield* refusal(outcome(held, (p) => p.give(p.linear(p.put(x, 3), "odd"))));
  assert.match(unknown.message, /no weight "odd"/);
  // A rank may have no token of a turn.
  const none = new Float32Array(0);
  const nothing = yield* outcome(held, (p) => {
    const empty = p.linear(p.put(none, 3), "w");
    const ids = new Uint32Array(0);
    p.give(empty, p.rope(empty, 2, { cos: none, sin: none }), p.add(empty, empty));
    p.give(p.embed("w", ids), p.pick(p.put(x, 3), ids), p.rmsNorm(p.put(none, 3), "g", 1));
  });
  assert.deepEqual(nothing.map(({ length }) => length), [0, 0, 0, 0, 0, 0]);
}));

/** Every case. */
export const programCases: ReadonlyArray<ProgramCase> = [
  { name: "products of matrices, with a bias and without", run: products },
  { name: "weights in every format, filled in pieces of the same and of others", run: formats },
  { name: "products with weights that are held in 16 bits", run: narrow },
  { name: "RMS norms of rows and of heads", run: norms },
  { name: "rope, gated units, sums and some rows", run: elementwise },
  { name: "values stay as long as they are kept, and no longer", run: lifetimes },
];

/** The contract as tests. */
export const testPrograms = (
  name: string,
  { device, ignore }: {
    readonly device: Layer.Layer<Device, DeviceUnavailable>;
    /** Why it cannot be tested here. */
    readonly ignore?: string | undefined;
  },
): void => {
  for (const { name: what, run } of programCases) {
    Deno.test({
      name: `programs, ${name}: ${what}${ignore === undefined ? "" : ` (${ignore})`}`,
      ignore: ignore !== undefined,
      fn: () => Effect.runPromise(Effect.provide(run, device)),
    });
  }
};
