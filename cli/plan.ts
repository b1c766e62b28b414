/**
 * `annulus plan`: what a run would do, before there is one: for each layer what its attention leaves to compute and to
 * move, and which layout suits it.
 *
 * @module
 */
import { Effect, Result } from "effect";
import { namesOf } from "../runtime/attention.ts";
import { type DType, elementBytes } from "../runtime/dtype.ts";
import type { LatentShape } from "../runtime/latent.ts";
import type { Layout } from "../runtime/layout.ts";
import { costOf, type LayoutCost, layoutCosts, layoutFor } from "../runtime/layout_choice.ts";
import { planOf } from "../runtime/plan.ts";
import type { Definition } from "../runtime/variant.ts";
import { parseAttention } from "./attention.ts";
import { misuse } from "./command_line.ts";
import { print, printJson, sizeInWords, table } from "./output.ts";
import { knownPlugins } from "./plugins.ts";

/** All that `plan` can be told. */
export interface PlanFlags {
  readonly tokens: number;
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number | undefined;
  readonly headDim: number;
  /** Keys and values travel as latents of these sizes: rank, rope and value with commas between them. */
  readonly latent: string | undefined;
  readonly ring: number;
  readonly wire: DType;
  readonly layout: Layout | undefined;
  /** One expression a layer. */
  readonly attention: ReadonlyArray<string>;
  /** How often the layers are repeated. */
  readonly times: number;
  readonly plugin: ReadonlyArray<string>;
  readonly json: boolean;
}

const latentOf = Effect.fnUntraced(function* ({ latent: text, headDim }: PlanFlags) {
  if (text === undefined) return undefined;
  const [rank, rope, value, ...more] = text.split(",").map((part) => Number(part || NaN));
  const whole = [rank, rope, value].every((size) => Number.isInteger(size));
  if (whole && more.length === 0) {
    if (rope! < headDim && value! <= headDim) return { rank: rank!, rope: rope!, value: value! };
    return yield* misuse(
      `--latent ${text} needs a --head-dim of more than its rope, ${rope}, and no less than its value, ${value}: ` +
        `found ${headDim}`,
    );
  }
  return yield* misuse(`--latent needs RANK,ROPE,VALUE, three whole numbers: found "${text}"`);
});

/** Plans one layer. */
const planLayer = Effect.fnUntraced(function* (
  { tokens, batch, heads, kvHeads = heads, headDim, wire, ring, layout }: PlanFlags,
  latent: LatentShape | undefined,
  known: ReadonlyArray<Definition>,
  expression: string,
) {
  const parsed = parseAttention(expression, known);
  if (Result.isFailure(parsed)) return yield* misuse(parsed.failure);
  const attention = parsed.success;
  const problem = {
    ...{ batch, tokens, heads, kvHeads, headDim },
    scale: 1 / Math.sqrt(headDim),
    attention,
    ...(latent === undefined ? {} : { latent }),
  };
  const spec = { problem, weights: Array.from({ length: ring }, () => 1), wire };
  const costs = yield* Effect.fromResult(layoutCosts(spec));
  const best = yield* Effect.fromResult(layoutFor(spec, () => Result.succeed(costs)));
  const plan = yield* Effect.fromResult(planOf({ ...spec, layout: layout ?? best }));
  return {
    attention: namesOf(attention),
    ...costOf(plan),
    pairs: plan.pairs,
    counted: plan.counted,
    untiled: plan.attention.untiled,
    flops: plan.flops,
    bytesReceived: plan.ranks.map(({ receives }) =>
      receives.reduce((sum, { block }) => sum + block.bytes, 0)
    ),
    ...(latent === undefined
      ? {}
      : { latentForms: plan.ranks.map(({ latentForm }) => latentForm!) }),
    memory: Math.max(...plan.ranks.map(({ bytes }) => bytes)),
    layouts: costs,
  };
});

/** Plans every layer and prints it. */
export const runPlan = Effect.fn("runPlan")(function* (flags: PlanFlags) {
  const { tokens, batch, heads, kvHeads = heads, headDim, wire, ring, times } = flags;
  const latent = yield* latentOf(flags);
  const { attentions } = yield* knownPlugins(flags.plugin);
  const expressions = flags.attention.length === 0 ? ["bidirectional"] : flags.attention;
  const layers = yield* Effect.forEach(
    expressions,
    (expression) => planLayer(flags, latent, attentions, expression),
  );
  const sum = (of: (layer: typeof layers[number]) => number) =>
    times * layers.reduce((total, layer) => total + of(layer), 0);
  // What the same layers would take without any mask, each block of keys and values going once around.
  const keyAndValue = headDim + (latent?.value ?? headDim);
  const everything = {
    flops: times * layers.length * 2 * keyAndValue * heads * batch * tokens ** 2,
    sentBytes: times * layers.length * (ring - 1) * tokens * batch * kvHeads * keyAndValue *
      elementBytes(wire),
  };
  const total = { flops: sum(({ flops }) => flops), sentBytes: sum(({ sentBytes }) => sentBytes) };
  if (flags.json) return yield* printJson({ tokens, ring, times, layers, total, everything });
  yield* print(table([
    ["layer", "attention", "layout", "balance", "hops", "moves", "GFLOP", "memory a rank"],
    ...layers.map((layer, i) => [
      String(i),
      layer.attention,
      layer.layout,
      layer.balance.toFixed(3),
      String(layer.hops),
      sizeInWords(layer.sentBytes),
      `${layer.counted ? "" : "≤ "}${(layer.flops / 1e9).toFixed(1)}`,
      sizeInWords(layer.memory),
    ]),
  ]));
  for (const layer of new Map(layers.map((layer) => [layer.attention, layer])).values()) {
    yield* print(`\n${layer.attention}, by layout: ${inWords(layer.layouts)}`);
    if (layer.untiled.length === 0) continue;
    const names = layer.untiled.join(" and ");
    yield* print(
      `${names} ${layer.untiled.length === 1 ? "does" : "do"} not say which tiles to skip`,
    );
  }
  for (const form of ["expand", "absorb"]) {
    const ranks = layers.flatMap(({ latentForms = [] }) => latentForms).filter((x) => x === form);
    if (ranks.length === 0) continue;
    const what = form === "expand" ? "keys and values of latents" : "latents into their queries";
    yield* print(`\n${ranks.length} of ${ring * layers.length} ranks ${form} ${what}`);
  }
  const atMost = layers.every(({ counted }) => counted) ? "" : "≤ ";
  const share = (a: number, b: number) => b === 0 ? "none" : `${(100 * a / b).toFixed(1)} %`;
  yield* print(
    `\n${times * layers.length} layer${times * layers.length === 1 ? "" : "s"}: ` +
      `${atMost}${(total.flops / 1e9).toFixed(1)} GFLOP, ${atMost}${
        share(total.flops, everything.flops)
      } of full ` +
      `attention; ${sizeInWords(total.sentBytes)} travel, ` +
      `${share(total.sentBytes, everything.sentBytes)} of full attention's`,
  );
});

const inWords = (costs: ReadonlyArray<LayoutCost>): string =>
  costs.map(({ layout, balance, sentBytes }) =>
    `${layout} ${balance.toFixed(3)} (${sizeInWords(sentBytes)})`
  ).join(", ");
