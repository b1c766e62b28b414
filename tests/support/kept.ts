/**
 * Checkpoints in memory, with all that ever was.
 *
 * @module
 */
import { Effect } from "effect";
import assert from "node:assert/strict";
import type { Checkpoint, Checkpoints } from "../../runtime/checkpoint.ts";

/** Keeps every checkpoint, and begins with those given. */
export class Kept implements Checkpoints {
  /** All, in the order in which they were kept. */
  readonly all: Array<Checkpoint> = [];
  readonly #last: Map<number, Checkpoint>;

  /** @param sizes Bytes of each rank's o and lse. */
  constructor(
    readonly every: number,
    readonly sizes: (rank: number) => { readonly o: number; readonly lse: number },
    before: Iterable<Checkpoint> = [],
  ) {
    this.#last = new Map([...before].map((one) => [one.rank, one]));
  }

  readonly of = (rank: number): Checkpoint | undefined => this.#last.get(rank);

  readonly keep: Checkpoints["keep"] = (mark) =>
    Effect.sync(() => {
      const parts: Array<Uint8Array> = [];
      return {
        write: (bytes) => Effect.sync(() => void parts.push(bytes.slice())),
        commit: Effect.promise(async () => {
          const whole = await new Blob(parts as Array<Uint8Array<ArrayBuffer>>).bytes();
          const { o, lse } = this.sizes(mark.rank);
          assert.equal(whole.length, o + lse);
          if (mark.merged <= (this.of(mark.rank)?.merged ?? 0)) return;
          const checkpoint: Checkpoint = {
            ...mark,
            read: (tensor, from, to) => {
              const at = tensor === "o" ? 0 : o;
              return Effect.succeed(whole.slice(at + from, at + to));
            },
          };
          this.all.push(checkpoint);
          this.#last.set(mark.rank, checkpoint);
        }),
      };
    });
}
