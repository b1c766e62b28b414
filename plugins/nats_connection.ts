/**
 * A connection to a running NATS server.
 *
 * @module
 */
import { connect, errors, type NatsConnection } from "@nats-io/transport-node";
import { Effect, type Scope } from "effect";
import { ServerUnavailable } from "../runtime/errors.ts";

/** How long a server may take to greet, and a connection to close. */
const deadline = { milliseconds: 5000, words: "5 seconds" };

/** The address without its credentials, which belong in no error and no log. */
const withoutCredentials = (url: string): string => url.replace(/\/\/[^@/]*@/, "//");

const explain = (cause: unknown): { readonly needed: string; readonly found: string } => {
  if (cause instanceof errors.AuthorizationError) {
    const needed = "a user it knows (nats://user:password@host:port or nats://token@host:port)";
    return { needed, found: cause.message };
  }
  if (cause instanceof errors.TimeoutError) {
    const needed = `a NATS server that greets within ${deadline.words}`;
    return { needed, found: "something that accepts connections and says nothing" };
  }
  const needed = "a NATS server to listen there";
  return { needed, found: cause instanceof Error ? cause.message : String(cause) };
};

/**
 * Connects to `nats://[user:password@|token@]host[:port]`. The connection never reconnects: what was lost meanwhile
 * could not be told, so whoever uses it is to fail. It closes with the scope.
 */
export const connectNats = Effect.fn("connectNats")(
  function* (url: string): Effect.fn.Return<NatsConnection, ServerUnavailable, Scope.Scope> {
    const address = withoutCredentials(url);
    const parts = URL.parse(url);
    if (parts === null || parts.protocol !== "nats:" || parts.hostname === "") {
      return yield* new ServerUnavailable({
        url: address,
        needed: "an address of the form nats://host:port",
        found: "another form",
      });
    }
    const [user, pass] = [decodeURIComponent(parts.username), decodeURIComponent(parts.password)];
    const credentials = pass !== "" ? { user, pass } : user !== "" ? { token: user } : {};
    return yield* Effect.acquireRelease(
      Effect.tryPromise({
        try: () =>
          connect({
            ...credentials,
            servers: address,
            name: "annulus",
            reconnect: false,
            timeout: deadline.milliseconds,
          }),
        catch: (cause) => new ServerUnavailable({ url: address, ...explain(cause) }),
      }),
      // Closing waits for the last bytes to leave, which a frozen server never takes.
      (connection) =>
        Effect.promise(() => connection.close()).pipe(
          Effect.interruptible,
          Effect.timeout(deadline.milliseconds),
          Effect.ignore,
        ),
    );
  },
);
