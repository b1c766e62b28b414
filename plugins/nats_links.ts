/**
 * Links over NATS. Frames from `from` to `to` travel on one subject,
 * `annulus.<cluster>.<run>.<from>.<to>.<from's name>.<to's name>` with the lane's name behind it where there is one; what
 * is said about them on another one and over another connection, the same with `.ctl` behind it. The names are those of
 * certificates, so that a server can tell who may speak and listen there. NATS drops, and it drops without a word; what
 * it dropped is sent again.
 *
 * @module
 */
import { Clock, Duration, Effect, Exit, Layer, Schedule } from "effect";
import { type LinkError, LinkFailed } from "../runtime/errors.ts";
import { farewellOf } from "../runtime/farewell.ts";
import { type Ends, type Link, Links, type Slot, slotName } from "../runtime/link.ts";
import { Conversation } from "./nats_links/conversation.ts";
import type { Lines, LineWatcher } from "./nats_links/line.ts";
import { headerBytes } from "./nats_links/message.ts";
import { tickMilliseconds } from "./nats_links/outgoing.ts";
import { anyone, driverName, nameOf, type Roster, rosterOf } from "./nats_roster.ts";

/** Where links meet, what they hold, and how long they wait. */
export interface NatsLinksOptions {
  /** A name of letters, digits, `-` and `_`; links of other clusters are out of reach. */
  readonly cluster: string;
  /**
   * The names of members, where they have some.
   * @default all nodes have the same
   */
  readonly roster?: Roster;
  /**
   * How long a peer may stay away when its end opens.
   * @default "10 seconds"
   */
  readonly deadline?: Duration.Input;
  /**
   * How long a peer that is alive may let a sender wait because it computes.
   * @default "10 minutes"
   */
  readonly patience?: Duration.Input;
  /**
   * Bytes on their way or waiting to be taken, per direction.
   * @default 16777216
   */
  readonly windowBytes?: number;
  /**
   * Between two looks at what may be lost.
   * @default "10 millis"
   */
  readonly tick?: Duration.Input;
}

const largestFrame = 512 * 1024;
/** Between two greetings of a peer that has not answered. */
const greeting = "100 millis";
/** How long a peer has to hear that this end is done, or that it failed. */
const [goodbye, lastWords] = ["2 seconds", "500 millis"] as const;

/** The name of each slot where nodes have no names of their own. */
const nameless = (slot: Slot) => slot === "driver" ? driverName : anyone;

/** The subject on which `from` speaks to `to`. */
export const subjectOf = (
  cluster: string,
  run: string,
  from: Slot,
  to: Slot,
  lane?: Ends["lane"],
  name: (slot: Slot) => string = nameless,
): string =>
  ["annulus", cluster, run, from, to, name(from), name(to), ...(lane === undefined ? [] : [lane])]
    .join(".");

/** Links over two lines, which tell when they were away. */
export const natsLinks = (
  { bulk, control }: Lines,
  options: NatsLinksOptions,
): Layer.Layer<Links> =>
  Layer.effect(
    Links,
    Effect.gen(function* () {
      const { cluster, deadline = "10 seconds", patience = "10 minutes" } = options;
      const { windowBytes = 16 * 1024 * 1024, tick = tickMilliseconds } = options;
      const { roster = rosterOf() } = options;
      const inWords = (duration: Duration.Input) =>
        Duration.format(Duration.fromInputUnsafe(duration));
      const maxFrame = Math.min(bulk.maxPayload - headerBytes, largestFrame);
      const clock = yield* Clock.Clock;
      const counts = new Map<string, number>();

      const conversations = new Map<Conversation, ReadonlyArray<string>>();
      const each = (act: (conversation: Conversation) => void, about?: string) => {
        for (const [conversation, subjects] of conversations) {
          if (about === undefined || subjects.includes(about)) act(conversation);
        }
      };
      const watcher: LineWatcher = {
        back: () => each((conversation) => conversation.resume()),
        refused: (sentence, subject) =>
          each((conversation) => conversation.fail("its NATS connection", sentence), subject),
        gone: (sentence) => each((conversation) => conversation.fail("a NATS server", sentence)),
      };
      const watching = [
        control.watch({ ...watcher, pulse: () => each((conversation) => conversation.pulse()) }),
        bulk.watch(watcher),
      ];
      yield* Effect.addFinalizer(() => Effect.sync(() => watching.forEach((end) => end())));
      yield* Effect.sync(() => each((conversation) => conversation.tick())).pipe(
        Effect.repeat(Schedule.spaced(tick)),
        Effect.forkScoped,
      );

      const open = Effect.fnUntraced(function* (ends: Ends) {
        const [self, peer] = [slotName(ends.self), slotName(ends.peer)];
        const failed = (needed: string, found: string) =>
          new LinkFailed({ run: ends.run, self, peer, needed, found });
        if (self === peer) return yield* failed("two different members", "one");
        // A wildcard or a dot would reach into other links.
        const odd = [cluster, ends.run].find((name) => !/^[\w-]+$/.test(name));
        if (odd !== undefined) {
          return yield* failed(
            "a cluster and a run named with letters, digits, - and _",
            `"${odd}"`,
          );
        }

        const subject = (from: Slot, to: Slot) =>
          subjectOf(cluster, ends.run, from, to, ends.lane, (slot) =>
            nameOf(roster, slot, ends.self));
        const [outgoing, incoming] = [subject(ends.self, ends.peer), subject(ends.peer, ends.self)];
        const ways = {
          bulk: { line: bulk, suffix: "" },
          control: { line: control, suffix: ".ctl" },
        } as const;
        const conversation = new Conversation(ends, {
          session: 1 + Math.floor(Math.random() * (2 ** 32 - 1)),
          windowBytes,
          maxBody: maxFrame,
          publish: (way, bytes) => {
            const { line, suffix } = ways[way];
            line.publish(outgoing + suffix, bytes);
          },
          now: () =>
            Number(clock.monotonicTimeNanosUnsafe()) / 1e6,
          count: (what) =>
            counts.set(what, (counts.get(what) ?? 0) + 1),
        });
        yield* Effect.acquireRelease(
          Effect.try({
            try: () => {
              const subjects = [outgoing, incoming].flatMap((
                subject,
              ) => [subject, `${subject}.ctl`]);
              conversations.set(conversation, subjects);
              return Object.values(ways).map(({ line, suffix }) =>
                line.subscribe(incoming + suffix, (bytes) =>
                  conversation.hear(bytes))
              );
            },
            catch: (cause) =>
              failed("to subscribe over its NATS connection", String(cause)),
          }),
          (unsubscribe) =>
            Effect.sync(() => {
              conversations.delete(conversation);
              unsubscribe.forEach((end) =>
                end()
              );
            }),
        );
        yield* Effect.addFinalizer((exit) =>
          Effect.suspend(() => {
            conversation.close(farewellOf(exit));
            const told = Effect.timeout(
              conversation.departed,
              Exit.isSuccess(exit) ? goodbye : lastWords,
            );
            // A process that exits now must not take its last words along.
            const gone = Effect.timeout(Effect.promise(() => control.flush()), lastWords);
            return Effect.andThen(Effect.ignore(told), Effect.ignore(gone));
          })
        );

        yield* Effect.sync(() => conversation.greet()).pipe(
          Effect.repeat(Schedule.spaced(greeting)),
          Effect.andThen(Effect.never),
          Effect.raceFirst(conversation.met),
          Effect.timeoutOrElse({
            duration: deadline,
            orElse: () =>
              Effect.fail(
                failed(`${peer} to open its end within ${inWords(deadline)}`, "it did not"),
              ),
          }),
        );

        /** Waits only as long as a living peer may let us wait. */
        const patiently = (waiting: Effect.Effect<void, LinkError>) =>
          Effect.timeoutOrElse(waiting, {
            duration: patience,
            orElse: () =>
              Effect.suspend(() => {
                conversation.fail(
                  `${peer} to take a frame within ${inWords(patience)}`,
                  "it did not",
                );
                return conversation.over()!;
              }),
          });
        const link: Link = {
          send: (frame) =>
            Effect.suspend(() =>
              frame.length > maxFrame
                ? Effect.fail(
                  failed(`frames of at most ${maxFrame} bytes`, `one of ${frame.length}`),
                )
                : conversation.offer(frame) ?? patiently(conversation.send(frame))
            ),
          receive: conversation.receive,
          drain: Effect.suspend(() => conversation.settled() ?? patiently(conversation.drain)),
          broken: conversation.broken,
        };
        return link;
      });

      return Links.of({ name: "nats", maxFrame, open, counts: () => Object.fromEntries(counts) });
    }),
  );
