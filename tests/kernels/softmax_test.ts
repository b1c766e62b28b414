/**
 * The functions of `kernels/softmax`, each on its own, against float64.
 *
 * @module
 */
import assert from "node:assert/strict";
import { build, variants } from "../../kernels/softmax/build.ts";
import * as relaxed from "../../kernels/softmax/relaxed.wasm";
import * as simd from "../../kernels/softmax/simd.wasm";
import { decode, type DType } from "../../runtime/dtype.ts";
import { normals, uniform } from "../support/random.ts";

type Functions = typeof simd;

/** Rows of a tile here, and elements from one to the next. */
const rows = 5, stride = 24;
const tile = rows * stride;

/** Numbers behind one another in a module's memory, from a multiple of 16 on. */
const areas = ({ memory }: Functions) => {
  let end = 4096;
  const floats = (count: number, values: ArrayLike<number> = []) => {
    const area = new Float32Array(memory.buffer, end, count);
    end += Math.ceil(count / 4) * 16;
    area.fill(0);
    area.set(values);
    return area;
  };
  const integers = (values: ArrayLike<number>) => {
    const { buffer, byteOffset, length } = floats(values.length);
    const area = new Int32Array(buffer, byteOffset, length);
    area.set(values);
    return area;
  };
  return { floats, integers };
};

const at = (area: Float32Array | Int32Array): number => area.byteOffset;

const assertNear = (actual: number, expected: number, bound: number, what: string): void =>
  assert.ok(
    Math.abs(actual - expected) <= bound * Math.abs(expected),
    `${what}: ${actual} is not ${expected}`,
  );

/** How close e^x comes: ln 2 is rounded to float32, which is felt in what is far from 0. */
const expBound = (x: number): number => 2e-7 + 3e-9 * Math.abs(x);

/** A difference as float32 has it, and no lower than what is told from 0. */
const below = (x: number, top: number): number => Math.max(Math.fround(x - top), -87);

/** What the rows see: everything, nothing, something that begins and ends at any lane, one column. */
const intervals = (columns: number, seed: number) => {
  const random = uniform(seed);
  const pairs = Array.from({ length: rows }, (_, i) => {
    if (i === 0) return [0, columns];
    if (i === 1) return [Math.min(3, columns), Math.min(3, columns)];
    const lo = Math.floor(random() * columns);
    return [lo, i === 2 ? lo + 1 : lo + 1 + Math.floor(random() * (columns - lo))];
  });
  return { lo: pairs.map(([lo]) => lo!), hi: pairs.map(([, hi]) => hi!) };
};

/** Every number of columns from 1 on, unmasked once and masked often. */
function* cases() {
  for (let columns = 1; columns <= stride; columns++) {
    yield { columns, masked: false, lo: Array(rows).fill(0), hi: Array(rows).fill(columns) };
    for (let seed = 1; seed <= 8; seed++) {
      yield { columns, masked: true, ...intervals(columns, seed * 31 + columns) };
    }
  }
}

for (const [name, functions] of Object.entries({ relaxed, simd })) {
  const { floats, integers } = { ...areas(functions) };
  const [scores, products] = [floats(tile), floats(tile)];
  const [sums, tops, keeps] = [floats(rows), floats(rows), floats(rows)];
  const [lo, hi] = [integers(Array(rows).fill(0)), integers(Array(rows).fill(0))];
  const mask = (masked: boolean) => [masked ? at(lo) : 0, masked ? at(hi) : 0] as const;

  Deno.test(`${name}: e^x over the whole range`, () => {
    let most = 0;
    for (let step = -87 * 512; step <= 88 * 512; step += 4) {
      scores.set([step, step + 1, step + 2, step + 3].map((x) => x / 512));
      const exact = Array.from(scores.subarray(0, 4), Math.exp);
      sums.fill(0);
      functions.weigh(at(scores), 1, 4, stride, 0, 0, at(sums));
      exact.forEach((e, i) => {
        const error = Math.abs(scores[i]! / e - 1);
        assertNear(scores[i]!, e, expBound(step / 512), `e^${(step + i) / 512}`);
        most = Math.max(most, error);
      });
    }
    assert.ok(most >= 1e-8, "nothing was compared");
  });

  Deno.test(`${name}: weights and their sums, for every width and what rows see of it`, () => {
    for (const { columns, masked, ...seen } of cases()) {
      // What no row sees may be anything.
      const given = normals(columns, tile).map((x, i) => {
        const [row, column] = [Math.floor(i / stride), i % stride];
        return seen.lo[row]! <= column && column < seen.hi[row]! ? 3 * x : NaN;
      });
      scores.set(given);
      lo.set(seen.lo);
      hi.set(seen.hi);
      sums.fill(0.5);
      functions.weigh(at(scores), rows, columns, stride, ...mask(masked), at(sums));
      for (let i = 0; i < rows; i++) {
        let sum = 0.5;
        for (let j = 0; j < columns; j++) {
          const x = given[i * stride + j]!;
          const what = `row ${i}, column ${j} of ${columns}`;
          if (Number.isNaN(x)) assert.equal(scores[i * stride + j], 0, what);
          else assertNear(scores[i * stride + j]!, Math.exp(x), expBound(x), what);
          if (!Number.isNaN(x)) sum += Math.exp(x);
        }
        assertNear(sums[i]!, sum, 1e-6, `the sum of row ${i} of ${columns} columns`);
      }
    }
  });

  Deno.test(`${name}: weights below a maximum that rises, stays, or is the first`, () => {
    for (const { columns, masked, ...seen } of cases()) {
      const given = normals(columns + 7, tile).map((x, i) => {
        const [row, column] = [Math.floor(i / stride), i % stride];
        return seen.lo[row]! <= column && column < seen.hi[row]! ? 200 * x - 500 : NaN;
      });
      scores.set(given);
      lo.set(seen.lo);
      hi.set(seen.hi);
      // Nothing gathered; a maximum above all; a maximum below all; two that were gathered before.
      const before = { sums: [0, 2, 3, 0, 4], tops: [0, 900, -2000, 0, -500] };
      sums.set(before.sums);
      tops.set(before.tops);
      const rescaled = functions.weighWithTops(
        ...[at(scores), rows, columns, stride, ...mask(masked), at(sums), at(tops), at(keeps)],
      );
      let anyKept = false;
      for (let i = 0; i < rows; i++) {
        const visible = Array.from(given.subarray(i * stride, i * stride + columns))
          .filter((x) => !Number.isNaN(x));
        const gathered = before.sums[i]! > 0;
        const top = Math.max(...visible, ...(gathered ? [before.tops[i]!] : []));
        if (visible.length === 0) {
          assert.deepEqual([sums[i], tops[i], keeps[i]], [before.sums[i], before.tops[i], 1]);
        } else {
          const keep = gathered ? Math.exp(below(before.tops[i]!, top)) : 1;
          anyKept ||= keep !== 1;
          assert.equal(tops[i], Math.fround(top));
          assertNear(keeps[i]!, keep, expBound(87), `what row ${i} keeps`);
          const weights = visible.map((x) => Math.exp(below(x, top)));
          const sum = weights.reduce((a, b) => a + b, before.sums[i]! * keep);
          assertNear(sums[i]!, sum, 1e-6, `the sum of row ${i} of ${columns} columns`);
        }
        for (let j = 0; j < columns; j++) {
          const x = given[i * stride + j]!;
          const weight = Number.isNaN(x) ? 0 : Math.exp(below(x, top));
          assertNear(scores[i * stride + j]!, weight, expBound(87), `row ${i}, column ${j}`);
        }
      }
      assert.equal(rescaled !== 0, anyKept);
    }
  });

  Deno.test(`${name}: a score that is no number, or infinite, ends in a sum that is none`, () => {
    for (const bad of [NaN, Infinity]) {
      for (let column = 0; column < 11; column++) {
        scores.fill(1);
        scores[column] = bad;
        sums.fill(0);
        tops.fill(0);
        functions.weighWithTops(
          ...[at(scores), 2, 11, stride, 0, 0, at(sums), at(tops), at(keeps)] as const,
        );
        assert.ok(!Number.isFinite(sums[0]!), `${bad} in column ${column} is lost`);
        assert.equal(sums[1], 11);
        // Nor is it lost when sound scores follow.
        scores.fill(2);
        functions.weighWithTops(
          ...[at(scores), 2, 11, stride, 0, 0, at(sums), at(tops), at(keeps)] as const,
        );
        assert.ok(!Number.isFinite(sums[0]!), `${bad} in column ${column} is forgotten`);
      }
    }
  });

  Deno.test(`${name}: P and dS, for every width and what rows see of it`, () => {
    for (const { columns, masked, ...seen } of cases()) {
      const given = [columns, columns + 50].map((seed) =>
        normals(seed, tile).map((x, i) => {
          const [row, column] = [Math.floor(i / stride), i % stride];
          return seen.lo[row]! <= column && column < seen.hi[row]! ? 3 * x : NaN;
        })
      );
      scores.set(given[0]!);
      products.set(given[1]!);
      lo.set(seen.lo);
      hi.set(seen.hi);
      tops.set([5, 6, 7, 8, 9]);
      sums.set([0.1, -0.2, 0.3, -0.4, 0.5]);
      functions.gradients(
        ...[at(scores), at(products), rows, columns, stride, ...mask(masked), at(tops), at(sums)],
      );
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) {
          const [s, dP] = given.map((of) => of[i * stride + j]!);
          const what = `row ${i}, column ${j} of ${columns}`;
          const [p, dS] = [scores, products].map((of) => of[i * stride + j]!);
          if (Number.isNaN(s)) {
            assert.deepEqual([p, dS], [0, 0], what);
            continue;
          }
          const exact = Math.exp(below(s!, tops[i]!));
          assertNear(p!, exact, expBound(20), what);
          const bound = 2e-6 * exact * (Math.abs(dP!) + 1);
          assert.ok(Math.abs(dS! - exact * (dP! - sums[i]!)) <= bound, what);
        }
      }
    }
  });

  Deno.test(`${name}: a score far above its row's log-sum-exp is not passed over`, () => {
    scores.fill(100);
    products.fill(1);
    tops.fill(0);
    sums.fill(0);
    functions.gradients(at(scores), at(products), 1, 8, stride, 0, 0, at(tops), at(sums));
    assert.ok(scores.subarray(0, 8).every((x) => !Number.isFinite(x)));
  });

  Deno.test(`${name}: squared lengths`, () => {
    for (const width of [4, 8, 20]) {
      const vectors = normals(width, 6 * width);
      const [given, out] = [areas(functions).floats(vectors.length + 8, vectors), floats(8)];
      functions.squares(at(given), 6, width, at(out));
      for (let i = 0; i < 6; i++) {
        const exact = vectors.subarray(i * width, (i + 1) * width).reduce((a, x) => a + x * x, 0);
        assertNear(out[i]!, exact, 1e-6, `vector ${i} of width ${width}`);
      }
    }
  });

  Deno.test(`${name}: all 65,536 patterns of 16 bits are widened`, () => {
    const patterns = Uint16Array.from({ length: 2 ** 16 }, (_, i) => i);
    const from = new Uint16Array(functions.memory.buffer, 8192, patterns.length);
    const to = new Float32Array(functions.memory.buffer, 8192 + 2 ** 17, patterns.length);
    for (const dtype of ["f16", "bf16"] satisfies Array<DType>) {
      from.set(patterns);
      const widen = dtype === "f16" ? functions.widenF16 : functions.widenBf16;
      widen(from.byteOffset, to.byteOffset, patterns.length);
      const expected = decode(dtype, new Uint8Array(patterns.buffer));
      to.forEach((x, i) => assert.ok(Object.is(x, expected[i]!), `${dtype} ${i}: ${x}`));
    }
  });
}

for (const module of Object.keys(variants) as Array<keyof typeof variants>) {
  Deno.test(`${module} is what its source compiles to`, async () => {
    const committed = await Deno.readFile(
      new URL(`../../kernels/softmax/${module}`, import.meta.url),
    );
    assert.deepEqual(await build(module), committed, "run `deno task wasm`");
  });
}
