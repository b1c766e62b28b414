/**
 * A block's bytes in memory that a device's Worker shares: K then V, all there or still arriving. What has arrived can
 * go on to the next rank before the rest is here.
 *
 * @module
 */
import { Effect } from "effect";
import { Condition } from "./condition.ts";
import type { BlockPlan } from "./plan.ts";

/** K and V of one block. */
export class Block {
  readonly #change = new Condition();
  #arrived = 0;

  constructor(readonly plan: BlockPlan, readonly bytes: Uint8Array) {}

  /** A block that is here. */
  static readonly whole = (plan: BlockPlan, bytes: Uint8Array): Block => {
    const block = new Block(plan, bytes);
    block.#arrived = bytes.length;
    return block;
  };

  /** Memory for a block that arrives. */
  static readonly expected = (plan: BlockPlan): Block =>
    new Block(plan, new Uint8Array(new SharedArrayBuffer(plan.bytes)));

  /** Says that the bytes before `end` have arrived. */
  arrivedUntil(end: number): void {
    this.#arrived = end;
    this.#change.changed();
  }

  /** Returns when the bytes before `end` have arrived. */
  readonly until = (end: number): Effect.Effect<void> =>
    this.#change.until(() => this.#arrived >= end ? Effect.void : undefined);
}
