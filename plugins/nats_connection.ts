/**
 * One connection to a running NATS server, for as long as it lasts.
 *
 * @module
 */
import { connect, errors, type NatsConnection } from "@nats-io/transport-node";
import { Duration, Effect, Schedule, type Scope } from "effect";
import { ServerUnavailable } from "../runtime/errors.ts";
import { credentialsIn, hostOf, refusalOf } from "./nats_greeting.ts";
import type { Identity } from "./nats_identity.ts";

/** How to speak to a server. */
export interface NatsAccess {
  /** Who we are; without it there is no TLS, but where the server wants it. */
  readonly identity?: Identity;
  /**
   * Speak to a server elsewhere without TLS and without credentials: everybody on the way reads along, and may join in.
   * @default false
   */
  readonly insecure?: boolean;
}

/** How long a server may take to greet. */
const deadline = "5 seconds";

/** The address without its credentials, which belong in no error and no log. */
const withoutCredentials = (url: string): string => url.replace(/\/\/[^@/]*@/, "//");

/** Whether only this machine is meant. */
export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || /^127(\.\d+){3}$/.test(host);

/** How long a connection may take to say goodbye: one to a server that hangs never does. */
const goodbye = "400 millis";

/**
 * Connects to `nats://[user:password@|token@]host[:port]`. The connection never reconnects by itself: the client would
 * not tell what was lost meanwhile, and waits for ever for a server that hangs. It closes with the scope.
 */
export const dialNats = Effect.fn("dialNats")(
  function* (
    url: string,
    { identity, insecure = false }: NatsAccess = {},
  ): Effect.fn.Return<NatsConnection, ServerUnavailable, Scope.Scope> {
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
    const credentials = credentialsIn(parts);
    const open = identity === undefined && Object.keys(credentials).length === 0;
    if (open && !insecure && !isLoopback(hostOf(parts))) {
      return yield* unavailable(
        "--tls or credentials on another machine than this one, or --insecure for a network that you trust",
        "none of them",
      );
    }

    const listening = "a NATS server to listen there";
    const greeted = Effect.tryPromise({
      try: (signal) => refusalOf(parts, identity, signal),
      catch: (cause) => unavailable(listening, cause),
    }).pipe(
      Effect.timeoutOrElse({
        duration: deadline,
        orElse: () =>
          Effect.fail(unavailable(`${listening} and greet within ${deadline}`, "silence")),
      }),
    );
    const refusal = yield* Effect.repeat(greeted, {
      while: (refusal) => refusal?.mute === true,
      times: 3,
      schedule: Schedule.spaced("1 second"),
    });
    if (refusal !== undefined) return yield* unavailable(refusal.needed, refusal.found);

    return yield* Effect.acquireRelease(
      Effect.tryPromise({
        try: async () =>
          await connect({
            ...credentials,
            ...(identity === undefined
              ? {}
              : { tls: { ca: identity.ca, cert: identity.cert, key: identity.key } }),
            servers: address,
            name: "annulus",
            reconnect: false,
            // The client would connect to an address that no --allow-net names.
            resolve: false,
            timeout: Duration.toMillis(deadline),
          }),
        catch: (cause) =>
          cause instanceof errors.AuthorizationError
            ? unavailable("a user it knows", cause)
            : unavailable(listening, cause),
      }),
      (connection) =>
        Effect.ignore(Effect.timeout(Effect.promise(() => connection.close()), goodbye)),
    );
  },
);
