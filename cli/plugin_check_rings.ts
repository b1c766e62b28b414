/**
 * Rings of a device with one variant, of every size and layout, against float64: a part of `annulus plugin check`.
 *
 * @module
 */
import { Effect, Result } from "effect";
import { KeyGradientOracle, QueryGradientOracle } from "../kernels/gradient_oracle.ts";
import { denseAttention, type Judged, type Judgement } from "../kernels/oracle.ts";
import { attend } from "../runtime/attend.ts";
import { type Attention, namesOf, resolveAttention } from "../runtime/attention.ts";
import type { Crew } from "../runtime/crew.ts";
import { Device } from "../runtime/device.ts";
import type { DeviceInfo } from "../runtime/kernel.ts";
import { layouts } from "../runtime/layout.ts";
import type { Links } from "../runtime/link.ts";
import type { Shape, Variant } from "../runtime/variant.ts";
import { lacksForReference } from "./judge.ts";
import { Distance } from "./judge_gradients.ts";
import type { Check } from "./plugin_check.ts";
import { normals } from "./random.ts";

const bounds = { o: 2e-6, lse: 1e-5, gradient: 5e-6 };

/** Which element of [batch, tokens, heads, headDim] is the first that is off, in words. */
const worst = (
  found: ArrayLike<number>,
  wanted: ArrayLike<number>,
  { heads, headDim, tokens }: Shape,
): string => {
  let at = 0, apart = -1;
  for (let i = 0; i < wanted.length; i++) {
    const here = Math.abs(found[i]! - wanted[i]!);
    if (!(here <= apart)) [at, apart] = [i, here];
  }
  const row = Math.floor(at / headDim);
  const token = Math.floor(row / heads) % tokens;
  return `at batch entry ${Math.floor(row / heads / tokens)}, token ${token}, head ${
    row % heads
  }: ` +
    `${found[at]}, not ${wanted[at]}`;
};

const relative = (...numbers: Parameters<Distance["add"]>): number => {
  const distance = new Distance();
  distance.add(...numbers);
  return distance.relative;
};

type Tensors = Readonly<Record<"q" | "k" | "v" | "cotangent", Float32Array>>;

/** Gradients in float64, and the squares of the terms of which they are the sums. */
const gradientsOf = (judged: Judged, { q, k, v, cotangent }: Tensors, forward: Judgement) => {
  const { batch, tokens } = judged;
  const positions = Array.from({ length: tokens }, (_, i) => i);
  const [o, lse] = [Float32Array.from(forward.o), Float32Array.from(forward.lse)];
  const entries = Array.from({ length: batch }, (_, entry) => {
    const of = (x: Float32Array) =>
      x.subarray(entry * x.length / batch, (entry + 1) * x.length / batch);
    const picked = { ...judged, entry, positions };
    const queries = new QueryGradientOracle({ ...picked, q: of(q) }, of(cotangent));
    for (const pass of ["prepare", "absorb"] as const) queries[pass](0, of(k), of(v));
    const keys = new KeyGradientOracle({ ...picked, k: of(k), v: of(v) });
    keys.absorb(0, { q: of(q), cotangent: of(cotangent), o: of(o), lse: of(lse) });
    return { queries, ...keys.finish() };
  });
  const all = (of: (entry: typeof entries[number]) => Float64Array) =>
    entries.flatMap((entry) => Array.from(of(entry)));
  return {
    dq: {
      wanted: all(({ queries }) => queries.finish()),
      squares: all(({ queries }) => queries.squares),
    },
    dk: { wanted: all(({ dk }) => dk), squares: all(({ squares }) => squares) },
    dv: { wanted: all(({ dv }) => dv), squares: [] },
  };
};

/** The first ring that is off. */
const wrongRing = Effect.fnUntraced(function* (
  variant: Variant,
  attention: Attention,
  shape: Shape,
  sloped: boolean,
) {
  const { info } = yield* Device;
  const { batch, tokens, heads, kvHeads, headDim } = shape;
  const random = normals(1);
  const rows = batch * tokens * headDim;
  const [q, k, v, cotangent] = [rows * heads, rows * kvHeads, rows * kvHeads, rows * heads]
    .map(random) as [Float32Array, Float32Array, Float32Array, Float32Array];
  const judged = { ...shape, scale: 1 / Math.sqrt(headDim), rules: attention };
  const expected = denseAttention(judged, q, k, v);
  const gradients = sloped ? gradientsOf(judged, { q, k, v, cotangent }, expected) : undefined;
  for (const ring of [1, 2, 3, 5]) {
    for (const layout of layouts) {
      const where = `on ${info.name}, ring of ${ring}, ${layout}`;
      const given = gradients === undefined ? {} : { cotangent };
      const result = yield* attend({
        ...{ ...shape, q, k, v, ...given, ring, layout },
        attention: [variant],
      });
      if (!(relative(result.o, expected.o) <= bounds.o)) {
        return `${where}: o is wrong ${worst(result.o, expected.o, shape)}`;
      }
      const odd = result.lse.findIndex((x, i) => {
        const wanted = expected.lse[i]!;
        return x !== wanted && !(Math.abs(x - wanted) <= bounds.lse + Math.abs(wanted) * 2 ** -22);
      });
      if (odd >= 0) {
        return `${where}: the log-sum-exp of head ${Math.floor(odd / tokens) % heads}, query ` +
          `${odd % tokens} is ${result.lse[odd]}, not ${expected.lse[odd]}`;
      }
      for (const name of gradients === undefined ? [] : ["dq", "dk", "dv"] as const) {
        const found = result.gradients![name], { wanted, squares } = gradients![name];
        if (relative(found, wanted, squares) <= bounds.gradient) continue;
        const own = name === "dq" ? shape : { ...shape, heads: kvHeads };
        return `${where}: ${name} is wrong ${worst(found, wanted, own)}`;
      }
    }
  }
});

/** What a variant lacks for the float64 reference or a device, if anything, in words. */
const lackingOf = (
  { lacking, variants: [variant] }: Attention,
  { forms }: DeviceInfo,
  form: "mask" | "score" | "slope",
): string | undefined => {
  if (lacksForReference(variant!.definition, form)) return `it has no ${form} in TypeScript`;
  if (lacking(form, forms) === undefined) return;
  return forms === undefined ? `the device asks for no ${form}` : `it has no ${form} in ${forms}`;
};

/** Compares what there is to compare on this device. */
export const checkRings = Effect.fn("checkRings")(function* (
  variant: Variant,
  shape: Shape,
): Effect.fn.Return<ReadonlyArray<Check>, never, Crew | Device | Links> {
  const { info } = yield* Device;
  const attention = Result.getOrThrow(resolveAttention([variant], shape));
  const what = `on ${info.name}: ${namesOf([variant])}`;
  const unasked = lackingOf(attention, info, "mask") ?? lackingOf(attention, info, "score");
  if (unasked !== undefined) return [{ name: `rings ${what}`, skipped: unasked }];
  const skipped = info.gradients
    ? lackingOf(attention, info, "slope")
    : "the device has no backward pass";
  const complaint = yield* wrongRing(variant, attention, shape, skipped === undefined).pipe(
    Effect.catch((error) => Effect.succeed(error.message)),
  );
  return [
    { name: `rings ${what}`, ...(complaint === undefined ? {} : { complaint }) },
    ...(skipped === undefined ? [] : [{ name: `gradients ${what}`, skipped }]),
  ];
});
