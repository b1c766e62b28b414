import { Deferred, Effect, Fiber, Schedule, Scope } from "effect";
import { TestClock } from "effect/testing";
import assert from "node:assert/strict";
import { dialNats } from "../../plugins/nats_connection.ts";
import { keepNatsServer, startNatsServer } from "../../plugins/nats_server.ts";
import { ServerUnavailable } from "../../runtime/errors.ts";
import { natsServer, noNatsServer } from "../support/nats.ts";

const it = <A, E>(name: string, test: Effect.Effect<A, E, never>) =>
  Deno.test({
    name,
    ignore: noNatsServer,
    fn: () => test.pipe(Effect.asVoid, Effect.timeout("30 seconds"), Effect.runPromise),
  });

const isGone = (pid: number): boolean => {
  try {
    Deno.kill(pid, "SIGCONT");
    return false;
  } catch {
    return true;
  }
};

const listens = (url: string) =>
  Effect.promise(() =>
    Deno.connect({ hostname: "127.0.0.1", port: Number(new URL(url).port) })
      .then((socket) => (socket.close(), true), () => false)
  );

it(
  "startNatsServer() starts a server that answers, and leaves nothing behind",
  Effect.gen(function* () {
    const { url, pid } = yield* Effect.scoped(Effect.gen(function* () {
      const server = yield* startNatsServer();
      assert.match(server.url, /^nats:\/\/127\.0\.0\.1:\d+$/);
      const connection = yield* dialNats(server.url);
      yield* Effect.promise(() => connection.flush());
      assert.ok(yield* listens(server.url));
      return server;
    }));
    assert.ok(isGone(pid), "the process is gone");
    assert.ok(!(yield* listens(url)), "the port is free");
  }),
);

it(
  "startNatsServer() starts many at once, each on its own port",
  Effect.scoped(Effect.gen(function* () {
    const servers = yield* Effect.all(Array.from({ length: 5 }, () => startNatsServer()), {
      concurrency: "unbounded",
    });
    assert.equal(new Set(servers.map(({ url }) => url)).size, 5);
  })),
);

it(
  "startNatsServer() ends its server when it is interrupted",
  Effect.gen(function* () {
    const started = yield* Deferred.make<number>();
    const fiber = yield* Effect.forkChild(Effect.scoped(Effect.gen(function* () {
      const { pid } = yield* startNatsServer();
      yield* Deferred.succeed(started, pid);
      return yield* Effect.never;
    })));
    const pid = yield* Deferred.await(started);
    yield* Fiber.interrupt(fiber);
    assert.ok(isGone(pid));
  }),
);

it(
  "startNatsServer() keeps its server out of the terminal's process group",
  Effect.scoped(Effect.gen(function* () {
    const { pid } = yield* startNatsServer();
    // Field 5 of /proc/<pid>/stat: Ctrl-C reaches every process of the terminal's group.
    const groupOf = (process: number) =>
      Deno.readTextFileSync(`/proc/${process}/stat`).replace(/^.*\) /, "").split(" ")[2];
    assert.notEqual(groupOf(pid), groupOf(Deno.pid));
  })),
);

it(
  "keepNatsServer() starts its server again where it was, and ends the last one",
  Effect.gen(function* () {
    const url = yield* Effect.scoped(Effect.gen(function* () {
      const { url, pid, ended } = yield* keepNatsServer();
      Deno.kill(pid, "SIGKILL");
      yield* ended;
      yield* Effect.retry(Effect.scoped(dialNats(url)), Schedule.spaced("10 millis"));
      return url;
    }));
    assert.ok(!(yield* listens(url)), "the port is free");
  }),
);

it(
  "startNatsServer() says why a server does not start",
  Effect.scoped(Effect.gen(function* () {
    const missing = yield* Effect.flip(startNatsServer({ program: "no-such-nats-server" }));
    assert.ok(missing instanceof ServerUnavailable);
    assert.match(missing.message, /deno task setup.*found .*no-such-nats-server/s);
    const odd = yield* Effect.flip(natsServer("max_payload: [}"));
    assert.ok(odd instanceof ServerUnavailable);
    assert.match(odd.message, /found nats-server: .*Parse error/);
  })),
);

it(
  "dialNats() says what is wrong with an address",
  Effect.scoped(
    Effect.gen(function* () {
      const refusal = (url: string) => Effect.flip(Effect.scoped(dialNats(url)));
      for (
        const url of ["", "127.0.0.1:4222", "http://127.0.0.1:4222", "nats://", "nats://h:99999"]
      ) {
        const error = yield* refusal(url);
        assert.match(
          error.message,
          /an address of the form nats:\/\/host:port: found another form/,
        );
      }

      const listen = () => {
        const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
        return { listener, url: `nats://127.0.0.1:${(listener.addr as Deno.NetAddr).port}` };
      };
      const nobody = listen();
      nobody.listener.close();
      assert.match(
        (yield* refusal(nobody.url)).message,
        /a NATS server to listen there: found .*refused/,
      );

      const other = listen();
      const refused = yield* Effect.forkScoped(refusal(other.url), { startImmediately: true });
      yield* Effect.promise(async () => {
        using socket = await other.listener.accept();
        await socket.write(new TextEncoder().encode("SSH-2.0-OpenSSH_9.2\r\n"));
      });
      assert.match(
        (yield* Fiber.join(refused)).message,
        /found a greeting of another protocol, "SSH-2\.0-OpenSSH_9\.2/,
      );

      const ignored = yield* Effect.forkScoped(refusal(other.url), { startImmediately: true });
      const socket = yield* Effect.promise(() => other.listener.accept());
      yield* TestClock.adjust("5 seconds");
      assert.match((yield* Fiber.join(ignored)).message, /greet within 5 seconds: found silence/);
      socket.close();
      other.listener.close();
    }).pipe(Effect.provide(TestClock.layer())),
  ),
);

it(
  "dialNats() comes again to somebody who hangs up without a word, three times",
  Effect.scoped(Effect.gen(function* () {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const dialled = yield* Effect.forkScoped(
      Effect.flip(dialNats(`nats://127.0.0.1:${(listener.addr as Deno.NetAddr).port}`)),
      { startImmediately: true },
    );
    yield* Effect.promise(async () => {
      for (let i = 0; i < 4; i++) (await listener.accept()).close();
      listener.close();
    });
    assert.match(
      (yield* Fiber.join(dialled)).message,
      /found somebody who hangs up without a word/,
    );
  })),
);

it(
  "dialNats() gives credentials to the server and to nobody else",
  Effect.scoped(Effect.gen(function* () {
    const { url } = yield* natsServer('authorization: { user: ann, password: "p@ss" }');
    const as = (credentials: string) => url.replace("//", `//${credentials}@`);
    const connection = yield* dialNats(as("ann:p%40ss"));
    yield* Effect.promise(() => connection.flush());
    const refused = yield* Effect.flip(dialNats(as("ann:secret")));
    assert.match(refused.message, /a user it knows, .*: found .*authorization violation/i);
    assert.doesNotMatch(refused.message, /secret/);
    assert.match((yield* Effect.flip(dialNats(url))).message, /a user it knows/);
  })),
);

it(
  "dialNats() does not reconnect",
  Effect.scoped(Effect.gen(function* () {
    const outer = yield* Effect.scope;
    const connection = yield* Effect.scoped(Effect.gen(function* () {
      const { url } = yield* startNatsServer();
      return yield* Scope.provide(dialNats(url), outer);
    }));
    yield* Effect.promise(() => connection.closed());
    assert.ok(connection.isClosed());
  })),
);
