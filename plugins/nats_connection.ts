/**
 * One connection to a running NATS server, for as long as it lasts.
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

const credentialsIn = (
  { username, password }: URL,
): { readonly user?: string; readonly pass?: string; readonly token?: string } => {
  const [user, pass] = [decodeURIComponent(username), decodeURIComponent(password)];
  if (pass !== "") return { user, pass };
  return user === "" ? {} : { token: user };
};

/**
 * What a listener says, and what it answers to credentials: a NATS server says `INFO {…}`, and then `+OK` or `-ERR …`.
 * Nothing is asked of another protocol, nor of a server that wants TLS first.
 */
const greeting = async (parts: URL, signal: AbortSignal): Promise<string> => {
  const port = Number(parts.port || "4222");
  using socket = await Deno.connect({ hostname: parts.hostname, port, signal });
  const bytes = new Uint8Array(64 * 1024);
  let said = "";
  const listen = async (until: RegExp) => {
    while (!until.test(said)) {
      const count = await socket.read(bytes);
      if (count === null) return;
      said += new TextDecoder().decode(bytes.subarray(0, count));
    }
  };
  await listen(/^(?!INFO ).{5}|\n/s);
  if (!said.startsWith("INFO ") || /"tls_required":\s*true/.test(said)) return said;
  const { token, ...user } = credentialsIn(parts);
  // Alone and with an answer: a server that hangs up on more than it has read resets the connection.
  const hello = { verbose: true, lang: "deno", ...user, ...(token && { auth_token: token }) };
  await socket.write(new TextEncoder().encode(`CONNECT ${JSON.stringify(hello)}\r\n`));
  await listen(/\n(\+OK|-ERR .*\n)/);
  return said;
};

/** How long a connection may take to say goodbye: one to a server that hangs never does. */
const goodbye = "400 millis";

/**
 * Connects to `nats://[user:password@|token@]host[:port]`. The connection never reconnects by itself: the client would
 * not tell what was lost meanwhile, and waits for ever for a server that hangs. It closes with the scope.
 */
export const dialNats = Effect.fn("dialNats")(
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

    // The client lets a listener of another protocol end the process, or a server that refuses the user and resets the
    // connection: such sockets' errors have no handler.
    const listening = "a NATS server to listen there";
    const said = yield* Effect.tryPromise({
      try: (signal) => greeting(parts, signal),
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
        `a greeting of another protocol, ${JSON.stringify(said.slice(0, 80))}`,
      );
    }
    const user = "a user it knows, as in nats://user:password@host:port";
    const [, refusal] = /^-ERR '?(.*?)'?\r?$/m.exec(said) ?? [];
    if (refusal !== undefined) return yield* unavailable(user, refusal);

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
            ? unavailable(user, cause)
            : unavailable(listening, cause),
      }),
      (connection) =>
        Effect.ignore(Effect.timeout(Effect.promise(() => connection.close()), goodbye)),
    );
  },
);
