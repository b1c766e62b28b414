/**
 * Links over NATS. What `from` says to `to` travels on one subject, `annulus.<cluster>.<run>.<from>.<to>` with the
 * lane's name behind it where there is one, whose order NATS keeps; what NATS drops, and it drops without a word, ends
 * the link with an error.
 *
 * @module
 */
import type { NatsConnection, Status } from "@nats-io/transport-node";
import { errors } from "@nats-io/transport-node";
import { Duration, Effect, Exit, Layer, Schedule } from "effect";
import { type LinkError, LinkFailed } from "../runtime/errors.ts";
import { farewellOf } from "../runtime/farewell.ts";
import { type Ends, type Link, Links, type Slot, slotName } from "../runtime/link.ts";
import { beatsOfPatience, Conversation } from "./nats_links/conversation.ts";
import { headerBytes } from "./nats_links/message.ts";

/** Where links meet, what they hold, and how long they wait. */
export interface NatsLinksOptions {
  /** A name of letters, digits, `-` and `_`; links of other clusters are out of reach. */
  readonly cluster: string;
  /**
   * How long a peer may stay away, stay silent, or not receive what was sent. It must exceed the time that the
   * network takes for the windows of all links of one connection.
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
   * @default 4194304
   */
  readonly windowBytes?: number;
}

const largestFrame = 512 * 1024;

/** The subject on which `from` speaks to `to`. */
export const subjectOf = (
  cluster: string,
  run: string,
  from: Slot,
  to: Slot,
  lane?: Ends["lane"],
): string => ["annulus", cluster, run, from, to, ...(lane === undefined ? [] : [lane])].join(".");

/** What a link hears of its connection. */
interface Listener {
  readonly subjects: ReadonlyArray<string>;
  readonly conversation: Conversation;
}

/** What a change of the connection means for links; undefined if nothing. */
const lossIn = (status: Status): string | undefined => {
  switch (status.type) {
    case "disconnect":
      return "the server hung up";
    case "staleConnection":
      return "the server stopped answering";
    case "error":
      return status.error.message;
  }
};

/** Links over a connection, which must not reconnect by itself: what it lost meanwhile would go unnoticed. */
export const natsLinks = (
  connection: NatsConnection,
  options: NatsLinksOptions,
): Layer.Layer<Links> =>
  Layer.effect(
    Links,
    Effect.gen(function* () {
      const { cluster, deadline = "10 seconds", patience = "10 minutes" } = options;
      const { windowBytes = 4 * 1024 * 1024 } = options;
      const beat = Duration.divideUnsafe(Duration.fromInputUnsafe(deadline), beatsOfPatience);
      const inWords = (duration: Duration.Input) =>
        Duration.format(Duration.fromInputUnsafe(duration));
      const maxFrame = Math.min((connection.info?.max_payload ?? 0) - headerBytes, largestFrame);

      const listeners = new Set<Listener>();
      const lose = (found: string, about?: string) => {
        for (const { subjects, conversation } of listeners) {
          if (about !== undefined && !subjects.includes(about)) continue;
          conversation.fail("its NATS connection", found);
        }
      };
      void connection.closed().then((cause) => lose(cause ? cause.message : "it was closed"));
      const statuses = connection.status()[Symbol.asyncIterator]();
      const watch = async () => {
        for (;;) {
          const { done, value } = await statuses.next();
          if (done) return;
          const loss = lossIn(value);
          if (loss === undefined) continue;
          // A subject that is refused concerns only those who use it.
          const refusal = value.type === "error" &&
              value.error instanceof errors.PermissionViolationError
            ? value.error.subject
            : undefined;
          lose(loss, refusal);
        }
      };
      void watch();
      // Not awaited: it takes effect at the next status, or when the connection closes.
      yield* Effect.addFinalizer(() => Effect.sync(() => void statuses.return?.()));

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

        const outgoing = subjectOf(cluster, ends.run, ends.self, ends.peer, ends.lane);
        const incoming = subjectOf(cluster, ends.run, ends.peer, ends.self, ends.lane);
        const conversation = new Conversation(ends, {
          windowBytes,
          maxBody: maxFrame,
          deadline: inWords(deadline),
          publish: (bytes) => connection.publish(outgoing, bytes),
        });
        const listener = { subjects: [outgoing, incoming], conversation };
        yield* Effect.acquireRelease(
          Effect.try({
            try: () => {
              const subscription = connection.subscribe(incoming, {
                // An exception in here would end the connection's reader, without a word to anybody.
                callback: (error, message) =>
                  error === null
                    ? conversation.hear(message.data)
                    : conversation.fail("its NATS connection", error.message),
              });
              listeners.add(listener);
              return subscription;
            },
            catch: (cause) => failed("to subscribe over its NATS connection", String(cause)),
          }),
          (subscription) =>
            Effect.sync(() => {
              listeners.delete(listener);
              subscription.unsubscribe();
            }),
        );
        yield* Effect.addFinalizer((exit) =>
          Effect.suspend(() => {
            if (!conversation.close(farewellOf(exit)) || connection.isClosed()) return Effect.void;
            // A process that exits now must not take its last frames along, or at least its last words.
            return Effect.tryPromise(() => connection.flush()).pipe(
              Effect.timeout(Exit.isSuccess(exit) ? deadline : beat),
              Effect.ignore,
            );
          })
        );

        yield* Effect.sync(() => conversation.greet()).pipe(
          Effect.repeat(Schedule.spaced(Duration.divideUnsafe(beat, 4))),
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
        yield* Effect.sync(() => conversation.beat()).pipe(
          Effect.delay(beat),
          Effect.forever,
          Effect.forkScoped,
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

      return Links.of({ name: "nats", maxFrame, open });
    }),
  );
