/**
 * `--verify` finds what is wrong with a result.
 *
 * @module
 */
import { Effect, Result } from "effect";
import assert from "node:assert/strict";
import { openInput } from "../../cli/inputs.ts";
import { boundsFor, judge, mustBeExact } from "../../cli/judge.ts";
import { judgeGradients } from "../../cli/judge_gradients.ts";
import { denseAttention, denseGradients } from "../../kernels/oracle.ts";
import { openSafetensors } from "../../plugins/safetensors.ts";
import { planOf } from "../../runtime/plan.ts";
import { scratch } from "../support/cli.ts";
import { normals } from "../support/random.ts";
import { fileOfTensors } from "../support/tensors.ts";
import { causal, judged, type Mask, window } from "../support/masks.ts";

const [batch, tokens, heads, kvHeads, headDim] = [2, 120, 4, 2, 16];
const q = normals(1, batch * tokens * heads * headDim);
const [k, v] = [2, 3].map((seed) => normals(seed, batch * tokens * kvHeads * headDim));
const cotangent = normals(4, q.length);

/** What is right. */
const resultsOf = (mask: Mask) => {
  const scale = 1 / Math.sqrt(headDim);
  const shape = judged({ batch, tokens, heads, kvHeads, headDim, scale, attention: mask });
  return {
    ...denseAttention(shape, q, k!, v!),
    ...denseGradients(shape, q, k!, v!, cotangent),
  };
};

type Results = Record<"o" | "lse" | "dq" | "dk" | "dv", Float32Array>;

/** What `--verify` says of a result that is right but for what `spoil` does to it. */
const verdict = async (spoil: (results: Results) => void, mask: Mask = causal) => {
  const results = Object.fromEntries(
    Object.entries(resultsOf(mask)).map(([name, x]) => [name, Float32Array.from(x)]),
  ) as Results;
  spoil(results);
  await using folder = await scratch();
  const [input, out] = [`${folder.path}/in`, `${folder.path}/out`];
  const kv = [batch, tokens, kvHeads, headDim];
  await Deno.writeFile(
    input,
    fileOfTensors({
      q: { dtype: "f32", shape: [batch, tokens, heads, headDim], values: q },
      k: { dtype: "f32", shape: kv, values: k! },
      v: { dtype: "f32", shape: kv, values: v! },
      do: { dtype: "f32", shape: [batch, tokens, heads, headDim], values: cotangent },
    }),
  );
  await Deno.writeFile(
    out,
    fileOfTensors({
      o: { dtype: "f32", shape: [batch, tokens, heads, headDim], values: results.o },
      lse: { dtype: "f32", shape: [batch, heads, tokens], values: results.lse },
      dq: { dtype: "f32", shape: [batch, tokens, heads, headDim], values: results.dq },
      dk: { dtype: "f32", shape: kv, values: results.dk },
      dv: { dtype: "f32", shape: kv, values: results.dv },
    }),
  );
  return await Effect.gen(function* () {
    const opened = yield* openInput(input, mask);
    const plan = yield* Effect.fromResult(
      planOf({ problem: opened.problem, layout: "zigzag", weights: [1, 1, 1], wire: "f32" }),
    );
    const file = yield* openSafetensors(out);
    const figures = {
      ...(yield* judge(opened, file, plan, 256, () => Effect.void)),
      ...(yield* judgeGradients(opened, file, plan, 256)),
    };
    const bounds = boundsFor(figures.largestLse, undefined);
    return { figures, result: yield* Effect.result(mustBeExact(figures, bounds)) };
  }).pipe(Effect.scoped, Effect.runPromise);
};

Deno.test("--verify passes a result that is rounded to float32, whose every row it judges", async () => {
  const { figures, result } = await verdict(() => {});
  assert.ok(Result.isSuccess(result));
  assert.equal(figures.rows, batch * tokens);
  assert.ok(figures.o < 1e-7 && figures.lse < 1e-6);
  assert.ok(Math.max(figures.dq, figures.dk, figures.dv) < 5e-7);
});

Deno.test("--verify finds what is wrong with gradients whose terms cancel", async () => {
  const alone: Mask = window(1);
  const tiny = (x: Float32Array, error: number) => x.forEach((_, i) => x[i] = error * (-1) ** i);
  const right = await verdict(({ dq, dk }) => [dq, dk].forEach((x) => tiny(x, 2e-8)), alone);
  assert.ok(Result.isSuccess(right.result), `${JSON.stringify(right.figures)}`);
  for (const name of ["dq", "dk"] as const) {
    const { result } = await verdict((results) => tiny(results[name], 1e-4), alone);
    assert.ok(Result.isFailure(result));
    assert.equal(result.failure.what, name);
  }
});

const middle = Math.floor(0.7 * batch * tokens) * heads * headDim;
const faults: ReadonlyArray<readonly [string, keyof Results, (results: Results) => void]> = [
  ["an error of 1e-4 in one row of o", "o", ({ o }) => {
    for (let i = middle; i < middle + heads * headDim; i++) o[i]! += 1e-4;
  }],
  ["an error of 1e-4 in one lse", "lse", ({ lse }) => void (lse[333]! += 1e-4)],
  ["a row of zeros", "o", ({ o }) => void o.fill(0, middle, middle + headDim)],
  ["two rows in each other's place", "o", ({ o }) => {
    const row = o.slice(middle, middle + headDim);
    o.copyWithin(middle, middle + headDim, middle + 2 * headDim);
    o.set(row, middle + headDim);
  }],
  ["NaN", "o", ({ o }) => void (o[middle] = NaN)],
  ["a NaN lse", "lse", ({ lse }) => void (lse[5] = NaN)],
  ["an lse of −∞", "lse", ({ lse }) => void (lse[5] = -Infinity)],
  ["a dq that is 1e-5 too large", "dq", ({ dq }) => dq.forEach((x, i) => dq[i] = x * 1.00001)],
  ["a NaN in dq", "dq", ({ dq }) => void dq.fill(NaN, 0, dq.length / 2)],
  ["dk and dv in each other's place", "dk", ({ dk, dv }) => {
    const copy = dk.slice();
    dk.set(dv);
    dv.set(copy);
  }],
  ["a share that is missing in dv", "dv", ({ dv }) => dv.forEach((x, i) => dv[i] = x * 0.999)],
];
for (const [name, what, spoil] of faults) {
  Deno.test(`--verify finds ${name}`, async () => {
    const { result } = await verdict(spoil);
    assert.ok(Result.isFailure(result));
    assert.equal(result.failure._tag, "NotExact");
    assert.equal(result.failure.what, what);
  });
}
