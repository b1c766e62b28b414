/**
 * The K/V that one rank holds in memory: each block until its last user is done with it. The peak is what the plan
 * promised as `kvBytes`, and tests compare the two.
 *
 * @module
 */
import type { BlockPlan } from "./plan.ts";

/** Counts the bytes of the blocks in use. */
export class Held {
  #bytes = 0;
  #peak = 0;
  readonly #users = new Map<number, number>();

  /** Most bytes held at once so far. */
  get peak(): number {
    return this.#peak;
  }

  /** From now on the block's memory counts, until `users` have released it. */
  hold(block: BlockPlan, users: number): void {
    this.#bytes += block.bytes;
    this.#peak = Math.max(this.#peak, this.#bytes);
    this.#users.set(block.id, users);
  }

  /** One user is done with the block; true when it was the last one. */
  release(block: BlockPlan): boolean {
    const users = this.#users.get(block.id)! - 1;
    this.#users.set(block.id, users);
    if (users === 0) this.#bytes -= block.bytes;
    return users === 0;
  }
}
