/**
 * Live progress of a run on standard error: a bar per rank on a terminal, a line for every tenth elsewhere.
 *
 * @module
 */
import { Clock, Effect } from "effect";
import type { Plan } from "../runtime/plan.ts";
import type { Interval } from "../runtime/timeline.ts";
import { draw, note } from "./output.ts";

const width = 30;
const bar = (share: number): string => {
  const filled = Math.round(share * width);
  return "█".repeat(filled) + "░".repeat(width - filled);
};

const inWords = (milliseconds: number): string => `${(milliseconds / 1000).toFixed(1)} s`;

/** Follows a run by its timeline. */
export class Progress {
  /** Passes over the sequence: a second one for gradients. */
  readonly #passes: number;
  readonly #pairs: Array<number>;
  readonly #doing: Array<string>;
  #began: number | undefined;
  #drawn = false;
  #told = 0;

  constructor(
    readonly plan: Plan,
    readonly terminal: boolean,
  ) {
    this.#passes = plan.gradients === true ? 2 : 1;
    this.#pairs = plan.ranks.map(() => 0);
    this.#doing = plan.ranks.map(() => "waiting for its shard");
  }

  /** Takes one interval of the timeline. */
  see({ rank, activity, block }: Interval): Effect.Effect<void> {
    return Effect.flatMap(Clock.currentTimeMillis, (now) => {
      const mine = this.plan.ranks[rank];
      if (mine === undefined) return Effect.void; // a node said so, not the plan
      if (activity === "load") this.#doing[rank] = "taking its shard";
      if (activity === "home") this.#doing[rank] = "done";
      if (activity === "compute") {
        this.#began ??= now;
        const step = mine.steps.findIndex((step) => step.block.id === block);
        this.#pairs[rank]! += (mine.steps[step]?.pairs ?? 0) / this.#passes;
        this.#doing[rank] = `step ${step + 1} of ${mine.steps.length}`;
      }
      return this.#show(now);
    });
  }

  #show(now: number): Effect.Effect<void> {
    const done = this.#pairs.reduce((a, b) => a + b, 0) / this.plan.pairs;
    const spent = now - (this.#began ?? now);
    const eta = done > 0 && done < 1 ? `, ${inWords(spent / done * (1 - done))} to go` : "";
    if (!this.terminal) {
      const tenth = Math.floor(done * 10);
      if (tenth <= this.#told) return Effect.void;
      this.#told = tenth;
      const ranks = this.plan.ranks.map(({ rank, pairs }) =>
        `${rank}: ${Math.round(100 * (pairs === 0 ? 1 : this.#pairs[rank]! / pairs))} %`
      );
      return note(`${tenth * 10} %${eta} (rank ${ranks.join(", ")})`);
    }
    const lines = this.plan.ranks.map(({ rank, pairs }) => {
      const share = pairs === 0 ? 1 : this.#pairs[rank]! / pairs;
      return `\x1b[2Krank ${String(rank).padStart(2)} ${bar(share)} ${this.#doing[rank]}`;
    });
    lines.push(`\x1b[2K${Math.round(100 * done)} %${eta}`);
    const up = this.#drawn ? `\x1b[${lines.length}A` : "";
    this.#drawn = true;
    return draw(`${up}${lines.join("\n")}\n`);
  }
}
