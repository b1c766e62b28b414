/**
 * Checkpoints: what a rank has gathered of its first blocks goes to the driver while the rank goes on, on a link of its
 * own, and whoever takes the rank later begins after those blocks. That the driver keeps them, and not the nodes, lets any
 * node take any rank, and no node needs a disk.
 *
 * @module
 */
import { Effect, type Scope, Semaphore } from "effect";
import { bytesOf } from "./dtype.ts";
import type { FileInvalid, FrameRejected, LinkError } from "./errors.ts";
import type { Attended } from "./kernel.ts";
import type { Link } from "./link.ts";
import { type Manifest, openMark, sealMark } from "./manifest.ts";
import type { RankPlan } from "./plan.ts";
import type { Recorder } from "./recorder.ts";
import { requiredOf } from "./standing.ts";
import { receive, sendBytes } from "./transfer.ts";

/** Which checkpoint of a rank. */
export interface Mark {
  readonly rank: number;
  /** Of the blocks that it computes on, the first so many. */
  readonly merged: number;
  /** Nothing is left to do: these are the rank's rows of the result. */
  readonly final: boolean;
}

/** One that is there. */
export interface Checkpoint extends Mark {
  /** A range of bytes of o, [batch, tokens, heads, headDim], or lse, [batch, heads, tokens], of the rank in float32. */
  readonly read: (
    tensor: "o" | "lse",
    from: number,
    to: number,
  ) => Effect.Effect<Uint8Array, FileInvalid>;
}

/** One that is being written: o, then lse. Where that goes wrong there is none, and the run goes on. */
export interface Keeping {
  readonly write: (bytes: Uint8Array) => Effect.Effect<void>;
  /** It takes the place of the one before, unless that is as late. */
  readonly commit: Effect.Effect<void>;
}

/** Where the checkpoints of a run are. */
export interface Checkpoints {
  /** Blocks from one to the next. */
  readonly every: number;
  /** The last one of a rank. */
  readonly of: (rank: number) => Checkpoint | undefined;
  readonly keep: (mark: Mark) => Effect.Effect<Keeping, never, Scope.Scope>;
}

/** Sends what a rank has gathered, each time that this is called; returns before it is sent, if the one before is. */
export const sendCheckpoints = Effect.fn("sendCheckpoints")(function* (
  link: Link,
  { checkpoint }: Manifest,
  mine: RankPlan,
  recorder: Recorder,
) {
  const scope = yield* Effect.scope;
  const one = yield* Semaphore.make(1);
  let n = 0;
  return Effect.fnUntraced(function* (attended: Attended, merged: number) {
    yield* Semaphore.take(one, 1);
    const { mark, o, lse } = checkpoint(mine, ++n);
    const sent = recorder.timed(
      { activity: "keep", step: 0, block: -1, bytes: o.bytes + lse.bytes },
      Effect.gen(function* () {
        yield* sendBytes(link, mark, sealMark(merged));
        yield* sendBytes(link, o, bytesOf(attended.o));
        yield* sendBytes(link, lse, bytesOf(attended.lse));
      }),
    );
    // A link that fails is noticed by whoever waits for the rank's work.
    const sending = Effect.ensuring(Effect.ignore(sent), Semaphore.release(one, 1));
    yield* Effect.forkIn(sending, scope);
  });
});

/** Keeps a rank's rows of the result, where anything is kept. */
export const keepRows = (checkpoints: Checkpoints | undefined, mine: RankPlan) =>
  checkpoints === undefined
    ? Effect.succeed(undefined)
    : checkpoints.keep({ rank: mine.rank, merged: requiredOf(mine).length, final: true });

/** Keeps what a rank sends, for as long as it does. */
export const receiveCheckpoints = (
  link: Link,
  { checkpoint }: Manifest,
  mine: RankPlan,
  { keep }: Checkpoints,
): Effect.Effect<never, LinkError | FrameRejected> => {
  let n = 0;
  const next = Effect.gen(function* () {
    const { mark, o, lse } = checkpoint(mine, ++n);
    let merged = 0;
    yield* receive(link, mark, (_, bytes) => Effect.sync(() => void (merged = openMark(bytes))));
    const keeping = yield* keep({ rank: mine.rank, merged, final: false });
    yield* receive(link, o, (_, bytes) => keeping.write(bytes));
    yield* receive(link, lse, (_, bytes) => keeping.write(bytes));
    // Whatever a rank says, it has not merged more than there is.
    if (merged < requiredOf(mine).length) yield* keeping.commit;
  });
  return Effect.forever(Effect.scoped(next));
};
