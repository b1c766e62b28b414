/**
 * What a member keeps of a rank for as long as it holds it, over all epochs of a run: inputs, accumulator, and which
 * blocks are merged into it.
 *
 * @module
 */
import type { Scope } from "effect";
import type { Block } from "./block.ts";
import type { Accumulator } from "./device.ts";
import type { Attended, Queries } from "./kernel.ts";
import { Ledger } from "./ledger.ts";
import type { Plan } from "./plan.ts";
import { nothing, requiredOf, type Standing } from "./standing.ts";

/** Inputs that a rank was sent. */
export interface Loaded {
  readonly queries: Queries;
  /** Its own blocks, by id. */
  readonly home: ReadonlyMap<number, Block>;
}

/** One rank, held by one member. */
export class Tenure {
  /** Of the whole run, as if nothing had been done of it. */
  plan: Plan | undefined;
  loaded: Loaded | undefined;
  accumulator: Accumulator | undefined;
  ledger: Ledger | undefined;
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

  /** What has been merged so far. */
  ledgerOf(plan: Plan): Ledger {
    this.ledger ??= new Ledger(this.rank, requiredOf(plan.ranks[this.rank]!));
    return this.ledger;
  }

  /** To be read when nothing is in progress. */
  get standing(): Standing {
    if (this.loaded === undefined) return nothing;
    return { loaded: true, merged: this.ledger?.merged ?? 0, collected: false };
  }
}
