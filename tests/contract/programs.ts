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

/** Programs over weights of these values, filled in pieces. */
const holding = Effect.fnUntraced(function* (
  weights: ReadonlyArray<WeightSpec & { readonly values: Float32Array; readonly dtype?: DType }>,
): Effect.fn.Return<Programs, DeviceFailed, Device | Scope.Scope> {
  const { programs } = yield* Device;
  assert.ok(programs !== undefined, "the device has no programs");
  const held = yield* programs(weights.map(({ name, rows, columns }) => ({ name, rows, columns })));
  for (const { name, values, dtype = "f32" } of weights) {
    const bytes = encode(dtype, values);
    const cut = Math.floor(values.length / 3) * elementBytes(dtype);
    yield* held.fill(name, cut / elementBytes(dtype), dtype, bytes.subarray(cut));
    yield* held.fill(name, 0, dtype, bytes.subarray(0, cut));
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

const formats: ProgramCase["run"] = Effect.scoped(Effect.gen(function* () {
  for (const dtype of dtypes) {
    const values = normals(4, 11 * 13);
    const held = yield* holding([{ name: "table", rows: 11, columns: 13, values, dtype }]);
    const ids = Uint32Array.of(10, 0, 3, 3);
    const [rows] = yield* outcome(held, (p) => p.give(p.embed("table", ids)));
    const stored = decode(dtype, encode(dtype, values));
    const needed = Array.from(ids).flatMap((id) => [...stored.subarray(id * 13, (id + 1) * 13)]);
    assert.deepEqual([...rows!], needed, dtype);
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
  { name: "weights in every format, filled in pieces", run: formats },
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
