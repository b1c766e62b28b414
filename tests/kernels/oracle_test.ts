import fc from "fast-check";
import assert from "node:assert/strict";
import {
  denseAttention,
  denseGradients,
  type Judgement,
  StreamingOracle,
} from "../../kernels/oracle.ts";
import type { Problem } from "../../runtime/plan.ts";
import { maxAbs } from "../support/closeness.ts";
import { normals } from "../support/random.ts";
import { causal, full, judged, resolved, window } from "../support/masks.ts";

/** Judges every row of a problem of one batch entry, with the keys in chunks that begin at `starts`. */
const stream = (
  problem: Problem,
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
  starts: ReadonlyArray<number>,
): Judgement => {
  const positions = Array.from({ length: problem.tokens }, (_, i) => i);
  const oracle = new StreamingOracle({ ...judged(problem), entry: 0, positions, q });
  const width = problem.kvHeads * problem.headDim;
  starts.forEach((start, i) => {
    const [from, to] = [start * width, (starts[i + 1] ?? problem.tokens) * width];
    oracle.absorb(start, k.subarray(from, to), v.subarray(from, to));
  });
  return oracle.finish();
};

Deno.test("denseAttention() gives what a hand finds", () => {
  const ln = Math.log;
  // Two tokens, one head of four components, of which one is used; scores ln 1, ln 3 for the second query.
  const q = Float32Array.of(5, 0, 0, 0, 2, 0, 0, 0);
  const k = Float32Array.of(0, 0, 0, 0, ln(3), 0, 0, 0);
  const v = Float32Array.of(10, 1, 0, 0, 20, 1, 0, 0);
  const shape = { batch: 1, tokens: 2, heads: 1, kvHeads: 1, headDim: 4, scale: 0.5 };
  const before = denseAttention(judged({ ...shape, attention: causal }), q, k, v);
  assert.ok(maxAbs(before.o, [10, 1, 0, 0, 17.5, 1, 0, 0]) < 1e-6);
  assert.ok(maxAbs(before.lse, [0, ln(4)]) < 1e-7);
  const itself = denseAttention(judged({ ...shape, attention: window(1) }), q, k, v);
  assert.ok(maxAbs(itself.o, v) < 1e-12);
  assert.ok(maxAbs(itself.lse, [0, ln(3)]) < 1e-7);
  const all = denseAttention(judged({ ...shape, attention: full }), q, k, v);
  assert.ok(maxAbs(all.lse, [2.5 * ln(3) + Math.log1p(3 ** -2.5), ln(4)]) < 1e-6);
});

Deno.test("StreamingOracle agrees with denseAttention(), however the keys are cut", () => {
  const problem = fc.record({
    batch: fc.constant(1),
    tokens: fc.integer({ min: 1, max: 150 }),
    group: fc.integer({ min: 1, max: 3 }),
    kvHeads: fc.integer({ min: 1, max: 3 }),
    headDim: fc.constantFrom(4, 8, 20),
    scale: fc.constantFrom(0.1, 0.25, 1),
    attention: fc.oneof(
      fc.constantFrom(full, causal),
      fc.integer({ min: 1, max: 160 }).map(window),
    ),
  }).map(({ group, ...rest }) => ({ ...rest, heads: rest.kvHeads * group }));
  const property = fc.property(problem, fc.nat(), fc.array(fc.nat(149)), (problem, seed, cuts) => {
    const { tokens, heads, kvHeads, headDim } = problem;
    const q = normals(seed, tokens * heads * headDim);
    const k = normals(seed + 1, tokens * kvHeads * headDim);
    const v = normals(seed + 2, tokens * kvHeads * headDim);
    const starts = [...new Set([0, ...cuts])].filter((cut) => cut < tokens).sort((a, b) => a - b);
    const dense = denseAttention(judged(problem), q, k, v);
    const streamed = stream(problem, q, k, v, starts);
    assert.ok(maxAbs(streamed.o, dense.o) <= 1e-13);
    assert.ok(maxAbs(streamed.lse, dense.lse) <= 1e-13);
  });
  fc.assert(property, { numRuns: 60 });
});

Deno.test("StreamingOracle says 0 and −∞ of a row that sees no key", () => {
  const rules = resolved(causal);
  const shape = { heads: 1, kvHeads: 1, headDim: 4, scale: 1, rules, entry: 0 };
  const oracle = new StreamingOracle({ ...shape, positions: [3, 9], q: normals(1, 8) });
  oracle.absorb(5, normals(2, 8), normals(3, 8));
  const { o, lse } = oracle.finish();
  assert.deepEqual([...o.subarray(0, 4)], [0, 0, 0, 0]);
  assert.equal(lse[0], -Infinity);
  assert.ok(Number.isFinite(lse[1]) && o[4] !== 0);
});

Deno.test("StreamingOracle passes a NaN on", () => {
  const rules = resolved(full);
  const shape = { heads: 1, kvHeads: 1, headDim: 4, scale: 1, rules, entry: 0 };
  const oracle = new StreamingOracle({ ...shape, positions: [0], q: normals(1, 4) });
  oracle.absorb(0, normals(2, 8).fill(NaN, 0, 1), normals(3, 8));
  const { o, lse } = oracle.finish();
  assert.ok(Number.isNaN(o[0]) && Number.isNaN(lse[0]));
});

Deno.test("denseGradients() is the slope of Σ dO·o in every direction", () => {
  const shape = { batch: 2, tokens: 9, heads: 4, kvHeads: 2, headDim: 4, scale: 0.7 };
  const [rows, keys] = [shape.batch * shape.tokens * 16, shape.batch * shape.tokens * 8];
  const [q, k, v, dO] = [[1, rows], [2, keys], [3, keys], [4, rows]]
    .map(([seed, count]) => normals(seed!, count!)) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
  for (
    const mask of [full, causal, window(3)] as const
  ) {
    const problem = judged({ ...shape, attention: mask });
    const { dq, dk, dv } = denseGradients(problem, q, k, v, dO);
    for (const [x, gradient] of [[q, dq], [k, dk], [v, dv]] as const) {
      const direction = normals(5, x.length);
      const along = gradient.reduce((sum, g, i) => sum + g * direction[i]!, 0);
      const original = x.slice();
      const at = (step: number): number => {
        x.forEach((_, i) => x[i] = original[i]! + step * direction[i]!);
        const { o } = denseAttention(problem, q, k, v);
        x.set(original);
        return o.reduce((sum, y, i) => sum + y * dO[i]!, 0);
      };
      const step = 2 ** -10;
      const slope = (at(step) - at(-step)) / (2 * step);
      // The inputs are float32, so that a step of 2⁻¹⁰ is off by about 1e-4 of itself.
      assert.ok(Math.abs(slope - along) <= 2e-4 * Math.abs(along) + 1e-3, `${slope} and ${along}`);
    }
  }
});
