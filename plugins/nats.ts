/**
 * NATS as annulus uses it: two lines to one server, each of which is opened anew when it breaks or hangs.
 *
 * @module
 */
import type { NatsConnection } from "@nats-io/transport-node";
import { errors } from "@nats-io/transport-node";
import { Deferred, Duration, Effect, Exit, Schedule, Scope } from "effect";
import { ServerUnavailable } from "../runtime/errors.ts";
import { dialNats, type NatsAccess } from "./nats_connection.ts";
import type { Line, LineWatcher } from "./nats_links/line.ts";

/** How to speak to a server, and how long it may be away or silent. */
export interface NatsOptions extends NatsAccess {
  /**
   * Between two looks at whether the server answers.
   * @default "500 millis"
   */
  readonly beat?: Duration.Input;
  /**
   * A server that does not answer for so long is dialled anew.
   * @default "3 seconds"
   */
  readonly silence?: Duration.Input;
  /**
   * A server that cannot be reached for so long is given up.
   * @default "30 seconds"
   */
  readonly patience?: Duration.Input;
}

/** A line over one connection after the other. */
export interface NatsLine extends Line {
  /** `host:port`, for sentences. */
  readonly server: string;
}

/** Two lines to one server. */
export interface Nats {
  readonly server: string;
  readonly bulk: NatsLine;
  readonly control: NatsLine;
}

/** A subscription that outlives connections. */
interface Listening {
  readonly subject: string;
  readonly hear: Parameters<Line["subscribe"]>[1];
  stop: () => void;
}

/** Pause between two tries to reach a server that is away. */
const redial = "100 millis";

/** What is said of a line, to whoever watches it. */
const tell = <K extends keyof LineWatcher>(
  watchers: Iterable<LineWatcher>,
  event: K,
  ...words: Parameters<NonNullable<LineWatcher[K]>>
) => {
  for (const watcher of watchers) {
    (watcher[event] as ((...words: ReadonlyArray<unknown>) => void) | undefined)?.(...words);
  }
};

const openLine = Effect.fnUntraced(function* (
  url: string,
  { beat = "500 millis", silence = "3 seconds", patience = "30 seconds", ...access }: NatsOptions,
) {
  const listening = new Set<Listening>();
  const watchers = new Set<LineWatcher>();
  const lost = yield* Deferred.make<never, ServerUnavailable>();
  // Later connections must not close before what was opened over earlier ones.
  const connections = yield* Effect.acquireRelease(
    Scope.make(),
    (scope) => Scope.close(scope, Exit.void),
  );
  let current: NatsConnection | undefined;

  const listen = (connection: NatsConnection, one: Listening) => {
    const subscription = connection.subscribe(one.subject, {
      // An exception in here would end the connection's reader, without a word to anybody.
      callback: (error, message) =>
        error === null
          ? one.hear(message.data, message.reply || undefined, message.subject)
          : tell(watchers, "refused", error.message, one.subject),
    });
    one.stop = () => subscription.unsubscribe();
  };

  /** Reports what the server refuses, until the connection ends. */
  const attend = async (connection: NatsConnection) => {
    for await (const status of connection.status()) {
      if (status.type !== "error") continue;
      const { error } = status;
      // A subject that is refused concerns only those who use it.
      const subject = error instanceof errors.PermissionViolationError ? error.subject : undefined;
      tell(watchers, "refused", error.message, subject);
    }
  };

  /** Asks the server for an answer again and again; returns when none comes, or the connection ends. */
  const beating = (connection: NatsConnection) =>
    Effect.tryPromise(() => connection.flush()).pipe(
      Effect.timeout(silence),
      Effect.tap(() => Effect.sync(() => tell(watchers, "pulse"))),
      Effect.repeat(Schedule.spaced(beat)),
      Effect.raceFirst(Effect.promise(() => connection.closed())),
      Effect.ignore,
    );

  /** Uses one connection until it is of no use any more. */
  const use = Effect.fnUntraced(function* (scope: Scope.Closeable, connection: NatsConnection) {
    current = connection;
    for (const one of listening) listen(connection, one);
    void attend(connection);
    tell(watchers, "back");
    yield* beating(connection);
    current = undefined;
    tell(watchers, "away");
    yield* Effect.forkIn(Scope.close(scope, Exit.void), connections);
  });

  const dial = Effect.gen(function* () {
    const scope = yield* Scope.fork(connections);
    const connection = yield* Scope.provide(dialNats(url, access), scope).pipe(
      Effect.onError(() => Scope.close(scope, Exit.void)),
    );
    return { scope, connection };
  });
  let found = "no answer";
  const again = dial.pipe(
    Effect.tapError((error) => Effect.sync(() => found = error.found)),
    Effect.retry(Schedule.spaced(redial)),
    Effect.timeoutOrElse({
      duration: patience,
      orElse: () =>
        Effect.suspend(() =>
          Effect.fail(
            new ServerUnavailable({
              url: first.connection.getServer(),
              needed: `to be away for less than ${
                Duration.format(Duration.fromInputUnsafe(patience))
              }`,
              found,
            }),
          )
        ),
    }),
  );

  const first = yield* dial;
  const server = first.connection.getServer();
  yield* Effect.gen(function* () {
    yield* use(first.scope, first.connection);
    yield* Effect.forever(Effect.flatMap(again, (next) => use(next.scope, next.connection)));
  }).pipe(
    Effect.catchTag("ServerUnavailable", (error) =>
      Effect.andThen(
        Deferred.fail(lost, error),
        Effect.sync(() => tell(watchers, "gone", error.message)),
      )),
    Effect.forkScoped({ startImmediately: true }),
  );

  return {
    server,
    maxPayload: first.connection.info?.max_payload ?? 0,
    publish: (subject, bytes, reply) => {
      if (current === undefined || current.isClosed()) return;
      current.publish(subject, bytes, reply === undefined ? {} : { reply });
    },
    subscribe: (subject, hear) => {
      const one: Listening = { subject, hear, stop: () => {} };
      listening.add(one);
      if (current !== undefined) listen(current, one);
      return () => {
        listening.delete(one);
        one.stop();
      };
    },
    watch: (watcher) => {
      watchers.add(watcher);
      return () => void watchers.delete(watcher);
    },
    flush: async () => void await current?.flush().catch(() => {}),
    lost: Deferred.await(lost),
  } satisfies NatsLine;
});

/** Connects to `nats://[user:password@|token@]host[:port]`, and stays connected until the scope closes. */
export const connectNats = Effect.fn("connectNats")(function* (
  url: string,
  options: NatsOptions = {},
): Effect.fn.Return<Nats, ServerUnavailable, Scope.Scope> {
  const bulk = yield* openLine(url, options);
  const control = yield* openLine(url, options);
  return { server: control.server, bulk, control };
});
