/**
 * How far a rank has come when a run goes on after a failure, and what that leaves of the plan.
 *
 * Blocks take the same ways in the same order as before, so that every rank merges in the order of an undisturbed run
 * and the result has the same bits. What a rank has merged it only passes on, and where nobody further needs a block it
 * stays.
 *
 * @module
 */
import { Schema } from "effect";
import type { BlockPlan, Plan, RankPlan } from "./plan.ts";

/** What a rank has. */
export const Standing = Schema.Struct({
  /** Its queries and its own blocks are there. */
  loaded: Schema.Boolean,
  /** Of the blocks that it computes on, the first so many are merged; by a rank before it, where nothing is loaded. */
  merged: Schema.Natural,
  /** The driver has its rows. */
  collected: Schema.Boolean,
});
/** What a rank has. */
export type Standing = typeof Standing.Type;

/** A rank that has nothing yet. */
export const nothing: Standing = { loaded: false, merged: 0, collected: false };

/** The blocks that a rank computes on, in the order of merging. */
export const requiredOf = ({ steps }: RankPlan): ReadonlyArray<number> =>
  steps.filter(({ state }) => state !== "skip").map(({ block }) => block.id);

/** What is left of a plan for ranks that stand so. */
export const remainingOf = (plan: Plan, standings: ReadonlyArray<Standing>): Plan => {
  const missing = plan.ranks.map((mine, rank) => {
    const { collected, merged } = standings[rank]!;
    return new Set(collected ? [] : requiredOf(mine).slice(merged));
  });
  const blocks = plan.blocks.map((block): BlockPlan => {
    const last = block.path.findLastIndex((rank) => missing[rank]!.has(block.id));
    return { ...block, path: block.path.slice(0, last + 1) };
  });
  const ranks = plan.ranks.map((mine, rank): RankPlan => {
    const steps = mine.steps.map((step) => {
      const block = blocks[step.block.id]!;
      return missing[rank]!.has(block.id)
        ? { ...step, block }
        : { ...step, block, state: "skip" as const, pairs: 0, tiles: [] };
    });
    const receives = mine.receives.flatMap(({ block: { id }, from }) => {
      const block = blocks[id]!;
      const at = block.path.indexOf(rank);
      if (at < 0) return [];
      const to = block.path[at + 1];
      return [{ block, from, ...(to === undefined ? {} : { to }) }];
    });
    const sends = mine.sends.flatMap(({ block: { id }, to }) => {
      const block = blocks[id]!;
      return block.path.includes(to) ? [{ block, to }] : [];
    });
    return {
      ...mine,
      steps,
      receives,
      sends,
      pairs: steps.reduce((sum, { pairs }) => sum + pairs, 0),
      sentBytes: sends.reduce((sum, { block }) => sum + block.bytes, 0),
    };
  });
  return { ...plan, blocks, ranks, pairs: ranks.reduce((sum, { pairs }) => sum + pairs, 0) };
};
