/**
 * A connection to a running NATS server.
 *
 * @module
 */
import { connect, errors, type NatsConnection } from "@nats-io/transport-node";
import { Duration, Effect, type Scope } from "effect";
import { ServerUnavailable } from "../runtime/errors.ts";

/** How long a server may take to greet. */
const deadline = "5 seconds";

/** The address without its credentials, which belong in no error and no log. */
const withoutCredentials = (url: string): string => url.replace(/\/\/[^@/]*@/, "//");

const credentialsIn = ({ username, password }: URL) => {
  const [user, pass] = [decodeURIComponent(username), decodeURIComponent(password)];
  if (pass !== "") return { user, pass };
  return user === "" ? {} : { token: user };
};

/** The first bytes that a listener says; a NATS server begins with `INFO `. */
const greeting = async (hostname: string, port: number, signal: AbortSignal): Promise<string> => {
  using socket = await Deno.connect({ hostname, port, signal });
  const bytes = new Uint8Array(80);
  const count = await socket.read(bytes);
  return new TextDecoder().decode(bytes.subarray(0, count ?? 0));
};

/**
 * Connects to `nats://[user:password@|token@]host[:port]`. The connection never reconnects: what was lost meanwhile
 * could not be told, so whoever uses it is to fail. It closes with the scope.
 */
export const connectNats = Effect.fn("connectNats")(
  function* (url: string): Effect.fn.Return<NatsConnection, ServerUnavailable, Scope.Scope> {
    const address = withoutCredentials(url);
    const unavailable = (needed: string, found: unknown) =>
      new ServerUnavailable({
        url: address,
        needed,
        found: found instanceof Error ? found.message : String(found),
      });
    const parts = URL.parse(url);
    if (parts === null || parts.protocol !== "nats:" || parts.hostname === "") {
      return yield* unavailable("an address of the form nats://host:port", "another form");
    }

    // The client lets a listener of another protocol end the process: such a socket's errors have no handler.
    const listening = "a NATS server to listen there";
    const said = yield* Effect.tryPromise({
      try: (signal) => greeting(parts.hostname, Number(parts.port || "4222"), signal),
      catch: (cause) => unavailable(listening, cause),
    }).pipe(
      Effect.timeoutOrElse({
        duration: deadline,
        orElse: () =>
          Effect.fail(unavailable(`${listening} and greet within ${deadline}`, "silence")),
      }),
    );
    if (!said.startsWith("INFO ")) {
      return yield* unavailable(
        listening,
        `a greeting of another protocol, ${JSON.stringify(said)}`,
      );
    }

    return yield* Effect.acquireRelease(
      Effect.tryPromise({
        try: async () =>
          await connect({
            ...credentialsIn(parts),
            servers: address,
            name: "annulus",
            reconnect: false,
            timeout: Duration.toMillis(deadline),
          }),
        catch: (cause) =>
          cause instanceof errors.AuthorizationError
            ? unavailable("a user it knows, as in nats://user:password@host:port", cause)
            : unavailable(listening, cause),
      }),
      (connection) => Effect.promise(() => connection.close()),
    );
  },
);
