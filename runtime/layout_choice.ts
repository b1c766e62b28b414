/**
 * Which layout suits a mask: each is planned, and of those whose busiest rank would be done first, or about so, the one
 * that moves least is taken.
 *
 * @module
 */
import { Result } from "effect";
import { resolveAttention } from "./attention.ts";
import type { InvalidProblem, VariantInvalid } from "./errors.ts";
import { type Layout, layouts } from "./layout.ts";
import { unbounded } from "./mask.ts";
import { balanceOf, type Plan, planOf, type PlanSpec } from "./plan.ts";

/**
 * Floating-point operations in the time in which a byte arrives, where nobody measured: 100 GFLOP/s and 1 GB/s. What
 * travels is hidden behind the arithmetic as long as it takes no longer.
 */
const flopsPerByte = 100;

/** A layout that costs up to this share more than the cheapest is as good, if less travels. */
const asGood = 0.08;

/** What a layout would cost. */
export interface LayoutCost {
  readonly layout: Layout;
  /** Pairs of the busiest rank over the mean. */
  readonly balance: number;
  /** Bytes of K and V that travel between ranks, all together. */
  readonly sentBytes: number;
  /** Most stops of a block. */
  readonly hops: number;
  /** Operations of the rank that takes longest, or what it could compute while its K and V arrive, if that is more. */
  readonly cost: number;
}

/** What a plan costs. */
export const costOf = (plan: Plan): LayoutCost => {
  const { batch, heads, headDim } = plan.problem;
  const costs = plan.ranks.map(({ pairs, receives, latentFlops }) => {
    const bytes = receives.reduce((sum, { block }) => sum + block.bytes, 0);
    return Math.max(latentFlops ?? 4 * headDim * heads * batch * pairs, flopsPerByte * bytes);
  });
  return {
    layout: plan.layout,
    balance: balanceOf(plan),
    sentBytes: plan.ranks.reduce((sum, { sentBytes }) => sum + sentBytes, 0),
    hops: Math.max(0, ...plan.blocks.map(({ path }) => path.length)),
    cost: Math.max(...costs),
  };
};

/** From the simplest on. */
export const allLayouts: ReadonlyArray<Layout> = [...layouts, "solved"];

/** What each layout would cost. */
export const layoutCosts = (
  spec: Omit<PlanSpec, "layout">,
): Result.Result<ReadonlyArray<LayoutCost>, InvalidProblem | VariantInvalid> =>
  Result.gen(function* () {
    const costs: Array<LayoutCost> = [];
    for (const layout of allLayouts) costs.push(costOf(yield* planOf({ ...spec, layout })));
    return costs;
  });

/** The layout to take, by what each would cost. */
export const cheapest = (costs: ReadonlyArray<LayoutCost>): Layout => {
  const least = Math.min(...costs.map(({ cost }) => cost));
  return costs.filter(({ cost }) => cost <= least * (1 + asGood))
    .reduce((a, b) => b.sentBytes < a.sentBytes ? b : a).layout;
};

/**
 * The layout that a run takes where it is told none: contiguous without a mask, zigzag where it is causal and nothing
 * else, and else the cheapest.
 */
export const layoutFor = (
  spec: Omit<PlanSpec, "layout">,
  costs = () => layoutCosts(spec),
): Result.Result<Layout, InvalidProblem | VariantInvalid> =>
  Result.gen(function* () {
    const attention = yield* resolveAttention(spec.problem.attention, spec.problem);
    const { band: { back, ahead }, mask } = attention;
    if (mask === undefined && back === unbounded) return ahead === 0 ? "zigzag" : "contiguous";
    return cheapest(yield* costs());
  });
