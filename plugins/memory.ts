/**
 * Links between members of one process: a bounded queue of frames in either direction.
 *
 * @module
 */
import { Duration, Effect, Layer } from "effect";
import { Condition } from "../runtime/condition.ts";
import { Crew } from "../runtime/crew.ts";
import type { Device } from "../runtime/device.ts";
import {
  type DeviceUnavailable,
  LinkClosed,
  type LinkError,
  LinkFailed,
} from "../runtime/errors.ts";
import { type Farewell, farewellOf } from "../runtime/farewell.ts";
import { type Ends, type Link, Links, slotName } from "../runtime/link.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";

/** How much a link holds, and how long it waits for the other end to open. */
export interface MemoryLinksOptions {
  /**
   * Frames sent but not yet taken, per direction.
   * @default 16
   */
  readonly windowFrames?: number;
  /**
   * The largest frame in bytes.
   * @default 524288
   */
  readonly maxFrame?: number;
  /** @default "10 seconds" */
  readonly deadline?: Duration.Input;
}

/** One member's side of a link. */
class Side {
  /** What the peer sent and this member has not yet taken. */
  readonly inbox: Array<Uint8Array> = [];
  left: Farewell | undefined;
}

/** Both sides; the second stays away until that member opens its end. */
interface Pair {
  readonly change: Condition;
  readonly first: Side;
  readonly opener: string;
  second: Side | undefined;
}

/** Links for all members that share the built layer. */
export const memoryLinks = (options: MemoryLinksOptions = {}): Layer.Layer<Links> =>
  Layer.sync(Links, () => {
    const { windowFrames = 16, maxFrame = 512 * 1024, deadline = "10 seconds" } = options;
    // A pair is known by name only until both ends are open, so nothing stays behind when they close.
    const halfOpen = new Map<string, Pair>();

    const open = Effect.fnUntraced(function* (ends: Ends) {
      const [self, peer] = [slotName(ends.self), slotName(ends.peer)];
      const failed = (needed: string, found: string) =>
        new LinkFailed({ run: ends.run, self, peer, needed, found });
      if (self === peer) return yield* failed("two different members", "one");

      const name = JSON.stringify([ends.run, ends.lane, ...[self, peer].sort()]);
      const waiting = halfOpen.get(name);
      if (waiting?.opener === self) {
        return yield* failed("to be opened once by each member", "it opened twice");
      }
      const mine = new Side();
      const pair = waiting ??
        { change: new Condition(), first: mine, opener: self, second: undefined };
      const { change } = pair;
      yield* Effect.addFinalizer((exit) =>
        Effect.sync(() => {
          mine.left = farewellOf(exit);
          change.changed();
        })
      );
      if (waiting === undefined) {
        halfOpen.set(name, pair);
        yield* change.until(() => pair.second === undefined ? undefined : Effect.void).pipe(
          Effect.timeoutOrElse({
            duration: deadline,
            orElse: () => {
              const limit = Duration.format(Duration.fromInputUnsafe(deadline));
              return Effect.fail(failed(`${peer} to open its end within ${limit}`, "it did not"));
            },
          }),
          Effect.onExit(() =>
            Effect.sync(() => void (halfOpen.get(name) === pair && halfOpen.delete(name)))
          ),
        );
      } else {
        halfOpen.delete(name);
        pair.second = mine;
        change.changed();
      }
      const theirs = waiting === undefined ? pair.second! : pair.first;

      type Failing = Effect.Effect<never, LinkError> | undefined;
      const closed = (): Failing =>
        theirs.left && Effect.fail(
          new LinkClosed({ run: ends.run, self, peer, ...theirs.left }),
        );
      const unusable = (): Failing =>
        mine.left && Effect.fail(failed("an open end", "this end was closed"));
      const link: Link = {
        send: (frame) =>
          frame.length > maxFrame
            ? Effect.fail(failed(`frames of at most ${maxFrame} bytes`, `one of ${frame.length}`))
            : change.until((): Effect.Effect<void, LinkError> | undefined => {
              const over = unusable() ?? closed();
              if (over !== undefined || theirs.inbox.length >= windowFrames) return over;
              theirs.inbox.push(new Uint8Array(frame)); // the sender may use its own again
              change.changed();
              return Effect.void;
            }),
        receive: change.until((): Effect.Effect<Uint8Array, LinkError> | undefined => {
          if (mine.left !== undefined || mine.inbox.length === 0) return unusable() ?? closed();
          const frame = mine.inbox.shift()!;
          change.changed();
          return Effect.succeed(frame);
        }),
        drain: change.until((): Effect.Effect<void, LinkError> | undefined =>
          unusable() ?? (theirs.inbox.length === 0 ? Effect.void : closed())
        ),
        // A peer that is done has broken nothing: what it sent is still to be taken.
        broken: change.until(() =>
          unusable() ?? (theirs.left?.done === true ? undefined : closed())
        ),
      };
      return link;
    });

    return Links.of({ name: "memory", maxFrame, open, counts: () => ({}) });
  });

/**
 * Everything that `attend` needs, in this process: memory links, and one device that all ranks share.
 *
 * @param models What ranks can run beside attention.
 */
export const inProcess = <M = never>(
  device: DevicePlugin,
  models: Layer.Layer<M, never, Device> = Layer.empty as Layer.Layer<never> as Layer.Layer<M>,
): Layer.Layer<Crew | Device | Links | M, DeviceUnavailable> =>
  Crew.local().pipe(
    Layer.provideMerge(models),
    Layer.provideMerge(Layer.mergeAll(memoryLinks(), device.layer)),
  );
