/**
 * Real NATS servers, and members on them, for tests.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import { findNatsServer } from "../../cli/system.ts";
import { connectNats, type Nats, type NatsOptions } from "../../plugins/nats.ts";
import { type NatsServer, startNatsServer } from "../../plugins/nats_server.ts";
import type { ServerUnavailable } from "../../runtime/errors.ts";

/** True where nats-server is not installed; tests that need one are then ignored. */
export const noNatsServer = findNatsServer() === undefined;
/** The same in words. */
export const missingServer = noNatsServer ? "nats-server" : undefined;

/** A server of the test's own, gone with the scope; `config` is the text of a configuration file. */
export const natsServer = (
  config?: string,
): Effect.Effect<NatsServer, ServerUnavailable, Scope.Scope> =>
  Effect.gen(function* () {
    if (config === undefined) return yield* startNatsServer();
    const file = yield* Effect.acquireRelease(
      Effect.promise(() => Deno.makeTempFile({ suffix: ".conf" })),
      (file) => Effect.promise(() => Deno.remove(file)),
    );
    yield* Effect.promise(() => Deno.writeTextFile(file, config));
    return yield* startNatsServer({ config: file });
  });

/** A server and `count` members of clusters on it. */
export const natsMembers = (
  count: number,
  options: NatsOptions = {},
  config?: string,
): Effect.Effect<
  { readonly server: NatsServer; readonly members: ReadonlyArray<Nats> },
  ServerUnavailable,
  Scope.Scope
> =>
  Effect.gen(function* () {
    const server = yield* natsServer(config);
    const members = yield* Effect.forEach(
      Array.from({ length: count }),
      () => connectNats(server.url, options),
    );
    return { server, members };
  });

/** Returns when a member's line to its server is away. */
export const away = ({ control }: Nats): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    const end = control.watch({ away: () => (end(), resume(Effect.void)) });
    return Effect.sync(end);
  });
