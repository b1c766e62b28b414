/**
 * Many seeds of one simulation, and what happened in them.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Outcome } from "./link.ts";

/** Lives through seeds, and says how to do that again with one that fails. */
export const campaign = async (
  name: string,
  simulate: (seed: number) => Outcome | Promise<Outcome>,
  [from, to]: readonly [number, number],
): Promise<ReadonlyMap<string, number>> => {
  const seen = new Map<string, number>();
  for (let seed = from; seed < to; seed++) {
    try {
      for (const [what, times] of (await simulate(seed)).seen) {
        seen.set(what, (seen.get(what) ?? 0) + times);
      }
    } catch (cause) {
      const command = `deno run -A tests/simulation/replay.ts ${name} ${seed}`;
      throw new Error(`seed ${seed} fails; again with: ${command}`, { cause });
    }
  }
  console.log(`${to - from} seeds:`, Object.fromEntries(seen));
  return seen;
};

/** A campaign that sees little shows little. */
export const assertSeen = (
  seen: ReadonlyMap<string, number>,
  least: number,
  ...what: ReadonlyArray<string>
): void => {
  for (const name of what) {
    const times = seen.get(name) ?? 0;
    assert.ok(times >= least, `${name} happened ${times} times, and ${least} are needed`);
  }
};
