/**
 * What a member keeps of a rank for as long as it holds it, over all epochs of a run: inputs, accumulator, and which
 * blocks are merged into it.
 *
 * @module
 */
import type { Scope } from "effect";
import type { Block } from "./block.ts";
import type { Gathering } from "./gathering.ts";
import type { Attended, Queries } from "./kernel.ts";
import type { Ledger } from "./ledger.ts";
import type { Plan } from "./plan.ts";
import { nothing, type Standing } from "./standing.ts";

/** Inputs that a rank was sent. */
export interface Loaded {
  readonly queries: Queries;
  /** Its own blocks, by id. */
  readonly home: ReadonlyMap<number, Block>;
  /** What its queries have gathered, and of which blocks. */
  readonly gathering: Gathering;
  readonly ledger: Ledger;
}

/** One rank, held by one member. */
export class Tenure {
  /** Of the whole run, as if nothing had been done of it. */
  plan: Plan | undefined;
  loaded: Loaded | undefined;
  attended: Attended | undefined;
  /** Bytes that went to other ranks so far. */
  readonly sent = { keysAndValues: 0, gradients: 0 };

  /**
   * @param scope Frees what the device holds.
   * @param ranks How many ranks share the device: a member that takes the ranks of others holds several.
   */
  constructor(
    readonly rank: number,
    readonly scope: Scope.Scope,
    readonly ranks: () => number = () => 1,
  ) {}

  /** To be read when nothing is in progress. */
  get standing(): Standing {
    if (this.loaded === undefined) return nothing;
    return { loaded: true, merged: this.loaded.ledger.merged, collected: false };
  }
}
