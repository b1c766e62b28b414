/**
 * The ledger of one query shard: which blocks have been merged into it. A block merged twice or never gives a
 * plausible, wrong answer; so the run fails instead.
 *
 * @module
 */
import { Effect } from "effect";
import { MergeViolation } from "./errors.ts";

/** Counts merges per block of one (run, layer, query shard), over all epochs. */
export class Ledger {
  readonly #merged: Set<number>;

  /** @param before How many of the required ones have been merged, from the first on. */
  constructor(readonly rank: number, readonly required: ReadonlyArray<number>, before = 0) {
    this.#merged = new Set(required.slice(0, before));
  }

  /** How many blocks have been merged. */
  get merged(): number {
    return this.#merged.size;
  }

  /** Enters a block, right before it is merged; fails where it was merged before. */
  enter(block: number): Effect.Effect<void, MergeViolation> {
    return Effect.suspend(() => {
      if (this.#merged.has(block)) {
        return Effect.fail(new MergeViolation({ rank: this.rank, block, times: 2 }));
      }
      this.#merged.add(block);
      return Effect.void;
    });
  }

  /** Succeeds when every required block was merged. */
  get complete(): Effect.Effect<void, MergeViolation> {
    return Effect.suspend(() => {
      const missing = this.required.find((block) => !this.#merged.has(block));
      return missing === undefined
        ? Effect.void
        : Effect.fail(new MergeViolation({ rank: this.rank, block: missing, times: 0 }));
    });
  }
}
