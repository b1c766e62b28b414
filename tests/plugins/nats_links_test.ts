import type { NatsConnection } from "@nats-io/transport-node";
import { Context, Effect, Fiber, Layer } from "effect";
import assert from "node:assert/strict";
import { connectNats } from "../../plugins/nats_connection.ts";
import { natsLinks, type NatsLinksOptions, subjectOf } from "../../plugins/nats_links.ts";
import {
  decodeMessage,
  encodeMessage,
  headerBytes,
  type Message,
} from "../../plugins/nats_links/message.ts";
import { LinkFailed } from "../../runtime/errors.ts";
import { Links } from "../../runtime/link.ts";
import { type MakeLinks, testLinks } from "../contract/link.ts";
import { natsConnections, noNatsServer } from "../support/nats.ts";

const cluster = "test";

const linksOver = (connection: NatsConnection, options: Partial<NatsLinksOptions> = {}) =>
  Effect.map(
    Layer.build(natsLinks(connection, { cluster, ...options })),
    (context) => Context.get(context, Links),
  );

const contract = (config?: string): MakeLinks => ({ window, deadline }) =>
  Effect.gen(function* () {
    const { connections } = yield* natsConnections(2, config);
    const windowBytes = window.frames * (window.frameBytes + headerBytes);
    const [even, odd] = yield* Effect.forEach(
      connections,
      (connection) => linksOver(connection, { deadline, windowBytes }),
    );
    return (self) => typeof self === "number" && self % 2 === 1 ? odd! : even!;
  });

testLinks("nats", contract(), { ignore: noNatsServer });

const it = <A, E>(name: string, test: Effect.Effect<A, E, never>) =>
  Deno.test({
    name: `nats links ${name}`,
    ignore: noNatsServer,
    fn: () => test.pipe(Effect.asVoid, Effect.timeout("30 seconds"), Effect.runPromise),
  });

const here = { run: "run", self: 0, peer: 1 } as const;
const there = { run: "run", self: 1, peer: 0 } as const;
const toHere = subjectOf(cluster, "run", 1, 0);
const toThere = subjectOf(cluster, "run", 0, 1);

/** A link between two connections, and a third connection that meddles. */
const meddled = Effect.gen(function* () {
  const { server, connections } = yield* natsConnections(3);
  const [a, b] = yield* Effect.forEach(connections.slice(0, 2), (c) => linksOver(c));
  const heard: Array<Uint8Array> = [];
  const meddler = connections[2]!;
  meddler.subscribe(toThere, { callback: (_, { data }) => void heard.push(new Uint8Array(data)) });
  yield* Effect.promise(() => meddler.flush());
  const [near, far] = yield* Effect.all([a!.open(here), b!.open(there)], {
    concurrency: "unbounded",
  });
  /** What `near` has said so far. */
  const overheard = Effect.promise(async () => {
    await connections[0]!.flush();
    await meddler.flush();
    return heard.map((bytes) => decodeMessage(bytes)!);
  });
  const say = (bytes: Uint8Array) => Effect.sync(() => meddler.publish(toThere, bytes));
  return { server, near, far, overheard, say };
});

const assertFailed = (error: unknown, sentence: RegExp) => {
  assert.ok(error instanceof LinkFailed, String(error));
  assert.match(error.message, sentence);
};

it(
  "fail at once on a replayed, skipped or foreign frame, and never deliver it",
  Effect.gen(function* () {
    const forgeries: ReadonlyArray<readonly [(last: Message) => Message, RegExp]> = [
      [(last) => last, /needs frame 4: found frame 3$/],
      [(last) => ({ ...last, sent: 2 }), /needs frame 4: found frame 2$/],
      [(last) => ({ ...last, sent: 5 }), /needs frame 4: found frame 5$/],
      [
        (last) => ({ ...last, sent: 4, from: last.from ^ 1 }),
        /one rank 0: found two that speak as rank 0$/,
      ],
      [
        (last) => ({ ...last, sent: 4, to: last.to ^ 1 }),
        /one rank 0: found two that speak as rank 0$/,
      ],
      [(last) => ({ ...last, sent: 4, received: 1 }), /counts of at least 0 .*: found 1 received/],
      [(last) => ({ ...last, sent: 4, taken: 1 }), /counts of at least 0 .*: found .* 1 taken/],
      [(last) => ({ ...last, kind: "alive", sent: 4 }), /all of the 4 frames sent: found 3/],
      [(last) => ({ ...last, kind: "done", sent: 2 }), /all of the 2 frames sent: found 3/],
    ];
    for (const [forge, sentence] of forgeries) {
      yield* Effect.scoped(Effect.gen(function* () {
        const { near, far, overheard, say } = yield* meddled;
        for (const byte of [1, 2, 3]) {
          yield* near.send(Uint8Array.of(byte));
          assert.deepEqual(yield* far.receive, Uint8Array.of(byte));
        }
        const last = (yield* overheard).findLast(({ kind }) => kind === "frame")!;
        yield* say(encodeMessage(forge(last)));
        assertFailed(yield* Effect.flip(far.broken), sentence);
        assertFailed(yield* Effect.flip(far.receive), sentence);
        assertFailed(yield* Effect.flip(far.send(Uint8Array.of(0))), sentence);
      }));
    }
  }),
);

it(
  "fail at once on bytes that are no message",
  Effect.gen(function* () {
    const garbage = [
      new Uint8Array(0),
      new Uint8Array(27),
      new Uint8Array(500).fill(255),
      new TextEncoder().encode("anl1 and then something else, longer than a header"),
    ];
    for (const bytes of garbage) {
      yield* Effect.scoped(Effect.gen(function* () {
        const { far, say } = yield* meddled;
        yield* say(bytes);
        const error = yield* Effect.flip(far.receive);
        assertFailed(error, new RegExp(`its own format: found ${bytes.length} bytes in another`));
      }));
    }
  }),
);

it(
  "fail when a peer sends more than it was granted",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(2);
    const a = yield* linksOver(connections[0]!, { windowBytes: 4096 });
    const peer = yield* fakePeer(connections[1]!);
    const link = yield* a.open(here);
    for (let sent = 1; sent <= 5; sent++) {
      peer.say({ kind: "frame", sent, body: new Uint8Array(1500) });
    }
    assertFailed(
      yield* Effect.flip(link.broken),
      /at most 4096 bytes .* not taken: found 4584 bytes/,
    );
  })),
);

/** A peer of `here` made by hand: it greets, and then only says what it is told to say. */
const fakePeer = (connection: NatsConnection) =>
  Effect.promise(async () => {
    const session = 77;
    let [heard, greetings] = [0, 0];
    const say = (message: Partial<Message>) =>
      connection.publish(
        toHere,
        encodeMessage({
          kind: "alive",
          from: session,
          to: heard,
          sent: 0,
          received: 0,
          taken: 0,
          body: new Uint8Array(0),
          ...message,
        }),
      );
    connection.subscribe(toThere, {
      callback: (_, { data }) => {
        const { kind, from } = decodeMessage(data)!;
        if (kind === "hello") greetings++;
        if (kind !== "hello" || heard !== 0) return;
        heard = from;
        say({ kind: "hello", body: Uint8Array.of(0, 0, 16, 0) });
      },
    });
    await connection.flush();
    return { say, greetings: () => greetings };
  });

it(
  "give up a peer that falls silent",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(2);
    const a = yield* linksOver(connections[0]!, { deadline: "300 millis" });
    yield* fakePeer(connections[1]!);
    const link = yield* a.open(here);
    const waiting = [
      link.receive,
      link.broken,
      Effect.andThen(link.send(new Uint8Array(9)), link.drain),
    ];
    const errors = yield* Effect.forEach(waiting, (effect) => Effect.flip(effect), {
      concurrency: "unbounded",
    });
    for (const error of errors) {
      assertFailed(error, /a word from rank 1 within 300ms: found silence$/);
    }
  })),
);

it(
  "give up a peer that is alive but does not hear",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(2);
    const a = yield* linksOver(connections[0]!, { deadline: "300 millis" });
    const peer = yield* fakePeer(connections[1]!);
    const link = yield* a.open(here);
    yield* Effect.forkScoped(
      Effect.forever(Effect.delay(Effect.sync(() => peer.say({})), "20 millis")),
    );
    yield* link.send(Uint8Array.of(1));
    const error = yield* Effect.flip(link.drain);
    assertFailed(
      error,
      /1 to receive frame 1 within 300ms: found it is alive and has 0 of 1 frames/,
    );
  })),
);

it(
  "give up a peer that is alive but takes nothing for longer than their patience",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(2);
    const [a, b] = yield* Effect.forEach(
      connections,
      (c) => linksOver(c, { windowBytes: 2000, patience: "300 millis" }),
    );
    const [near] = yield* Effect.all([a!.open(here), b!.open(there)], { concurrency: "unbounded" });
    const error = yield* Effect.flip(Effect.forever(near.send(new Uint8Array(1000))));
    assertFailed(error, /1 to take a frame within 300ms: found it did not$/);
  })),
);

it(
  "keep a window that is full for as long as the peer is alive",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(2);
    const [a, b] = yield* Effect.forEach(
      connections,
      (c) => linksOver(c, { windowBytes: 2000, deadline: "200 millis" }),
    );
    const [near, far] = yield* Effect.all([a!.open(here), b!.open(there)], {
      concurrency: "unbounded",
    });
    yield* near.send(new Uint8Array(1900));
    const sending = yield* Effect.forkScoped(near.send(Uint8Array.of(5)), {
      startImmediately: true,
    });
    // Three deadlines of beats go by.
    yield* Effect.callback<void>((resume) => {
      let beats = 0;
      const callback = () => {
        if (++beats === 30) resume(Effect.void);
      };
      connections[1]!.subscribe(toThere, { callback });
    });
    assert.equal(sending.pollUnsafe(), undefined);
    yield* far.receive;
    assert.deepEqual(yield* far.receive, Uint8Array.of(5));
    yield* Fiber.join(sending);
  })),
);

it(
  "fail at both ends when the server is killed in the middle of a transfer",
  Effect.scoped(Effect.gen(function* () {
    const { server, near, far } = yield* meddled;
    const sending = yield* Effect.forkScoped(
      Effect.flip(Effect.forever(near.send(new Uint8Array(200_000)))),
      { startImmediately: true },
    );
    yield* Effect.repeat(far.receive, { times: 50 });
    Deno.kill(server.pid, "SIGKILL");
    assertFailed(yield* Effect.flip(Effect.forever(far.receive)), /its NATS connection: found/);
    assertFailed(yield* Fiber.join(sending), /its NATS connection: found/);
    for (const link of [near, far]) {
      assertFailed(yield* Effect.flip(link.broken), /its NATS connection/);
    }
  })),
);

/** A link over a server that can be frozen; it thaws when the scope closes, so that it can end. */
const freezable = Effect.gen(function* () {
  const { server, connections } = yield* natsConnections(2);
  const [a, b] = yield* Effect.forEach(
    connections,
    (c) => linksOver(c, { deadline: "300 millis" }),
  );
  yield* Effect.addFinalizer(() => Effect.sync(() => Deno.kill(server.pid, "SIGCONT")));
  const open = Effect.all([a!.open(here), b!.open(there)], { concurrency: "unbounded" });
  return { open, freeze: Effect.sync(() => Deno.kill(server.pid, "SIGSTOP")) };
});

it(
  "fail when the server freezes",
  Effect.scoped(Effect.gen(function* () {
    const { open, freeze } = yield* freezable;
    const links = yield* open;
    yield* freeze;
    for (const link of links) {
      assertFailed(
        yield* Effect.flip(link.receive),
        /a word from rank \d within 300ms: found silence/,
      );
    }
  })),
);

it(
  "close although the server is frozen",
  Effect.scoped(Effect.gen(function* () {
    const { open, freeze } = yield* freezable;
    yield* Effect.scoped(Effect.andThen(open, freeze));
  })),
);

it(
  "fail at once when their own connection closes",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(2);
    const [a, b] = yield* Effect.forEach(connections, (c) => linksOver(c));
    const [near] = yield* Effect.all([a!.open(here), b!.open(there)], { concurrency: "unbounded" });
    const receiving = yield* Effect.forkScoped(Effect.flip(near.receive));
    yield* Effect.promise(() => connections[0]!.close());
    assertFailed(yield* Fiber.join(receiving), /its NATS connection: found it was closed$/);
  })),
);

it(
  "fail when the peer starts anew",
  Effect.scoped(Effect.gen(function* () {
    const { server, far } = yield* meddled;
    const again = yield* linksOver(yield* connectNats(server.url));
    yield* Effect.forkScoped(Effect.ignore(again.open(here)));
    assertFailed(yield* Effect.flip(far.broken), /one rank 0: found two that speak as rank 0$/);
  })),
);

it(
  "open although the last words of an earlier link still arrive",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(3);
    const [a, b] = yield* Effect.forEach(connections, (c) => linksOver(c));
    const meddler = connections[2]!;
    const greeted = Effect.callback<void>((resume) => {
      meddler.subscribe(toThere, { max: 1, callback: () => resume(Effect.void) });
    });
    const [near, far] = yield* Effect.all([
      a!.open(here),
      Effect.gen(function* () {
        yield* greeted;
        const old = { from: 5, to: 6, sent: 3, received: 2, taken: 1, body: new Uint8Array(4) };
        for (const kind of ["hello", "frame", "alive", "left"] as const) {
          meddler.publish(toHere, encodeMessage({ kind, ...old }));
        }
        yield* Effect.promise(() => meddler.flush());
        return yield* b!.open(there);
      }),
    ], { concurrency: "unbounded" });
    yield* far.send(Uint8Array.of(1));
    assert.deepEqual(yield* near.receive, Uint8Array.of(1));
  })),
);

it(
  "greet a peer again that has not heard them",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(2);
    const a = yield* linksOver(connections[0]!);
    const peer = yield* fakePeer(connections[1]!);
    yield* a.open(here);
    const settle = Effect.promise(async () => {
      for (const connection of [1, 0, 1]) await connections[connection]!.flush();
    });
    yield* settle;
    const before = peer.greetings();
    peer.say({ kind: "hello", to: 0, body: Uint8Array.of(0, 0, 16, 0) });
    yield* settle;
    assert.equal(peer.greetings(), before + 1);
  })),
);

it(
  "work with a server of small messages, in smaller frames",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(2, "max_payload: 4096");
    const [a, b] = yield* Effect.forEach(connections, (c) => linksOver(c));
    assert.equal(a!.maxFrame, 4096 - headerBytes);
    const [near, far] = yield* Effect.all([a!.open(here), b!.open(there)], {
      concurrency: "unbounded",
    });
    for (let i = 0; i < 2000; i++) {
      const frame = new Uint8Array(a!.maxFrame).fill(i);
      yield* Effect.all([
        near.send(frame),
        Effect.map(far.receive, (found) => assert.deepEqual(found, frame)),
      ], { concurrency: "unbounded" });
    }
  })),
);

it(
  "fail when the server refuses their subjects, and only theirs",
  Effect.scoped(Effect.gen(function* () {
    const allowed = ["annulus.test.run.>", "annulus.test.mute.1.0"];
    const { connections } = yield* natsConnections(
      2,
      `authorization: { users: [{ user: u, password: p, permissions: {
        publish: ${
        JSON.stringify(allowed)
      }, subscribe: ["annulus.test.run.>", "annulus.test.mute.>"] } }] }
        no_auth_user: u`,
    );
    const [a, b] = yield* Effect.forEach(connections, (c) => linksOver(c));
    const [near, far] = yield* Effect.all([a!.open(here), b!.open(there)], {
      concurrency: "unbounded",
    });
    const deaf = yield* Effect.flip(a!.open({ ...here, run: "other" }));
    assertFailed(deaf, /its NATS connection: found .*Permissions Violation for Subscription/);
    const mute = yield* Effect.flip(a!.open({ ...here, run: "mute" }));
    assertFailed(mute, /its NATS connection: found .*Permissions Violation for Publish/);
    yield* near.send(Uint8Array.of(1));
    assert.deepEqual(yield* far.receive, Uint8Array.of(1));
  })),
);

it(
  "refuse names that would reach into other links",
  Effect.scoped(Effect.gen(function* () {
    const { connections } = yield* natsConnections(1);
    const links = yield* linksOver(connections[0]!);
    for (const run of ["a.b", "*", ">", "", "a b"]) {
      const error = yield* Effect.flip(links.open({ ...here, run }));
      assertFailed(error, /named with letters, digits, - and _: found "/);
    }
    const elsewhere = yield* linksOver(connections[0]!, { cluster: "test.>" });
    assertFailed(yield* Effect.flip(elsewhere.open(here)), /found "test.>"/);
  })),
);

it(
  "fail on a connection that is closed",
  Effect.scoped(Effect.gen(function* () {
    const { server } = yield* natsConnections(0);
    const connection = yield* connectNats(server.url);
    const links = yield* linksOver(connection);
    yield* Effect.promise(() => connection.close());
    assertFailed(yield* Effect.flip(links.open(here)), /to subscribe .*: found .*closed/i);
  })),
);

Deno.test("a NATS message survives its bytes, and other bytes are none", () => {
  const message: Message = {
    kind: "frame",
    from: 0xffffffff,
    to: 1,
    sent: 0xfffffffe,
    received: 3,
    taken: 2,
    body: Uint8Array.of(1, 2, 3),
  };
  const bytes = encodeMessage(message);
  assert.equal(bytes.length, headerBytes + 3);
  // At any offset into a larger buffer, as sockets give them.
  for (const offset of [0, 1, 3]) {
    const buffer = new Uint8Array(64);
    buffer.set(bytes, offset);
    assert.deepEqual(decodeMessage(buffer.subarray(offset, offset + bytes.length)), message);
  }
  for (let at = 0; at < 8; at++) {
    const changed = new Uint8Array(bytes);
    changed[at] = changed[at]! ^ 0x40;
    assert.equal(decodeMessage(changed), undefined);
  }
  assert.equal(decodeMessage(bytes.subarray(0, headerBytes - 1)), undefined);
  assert.equal(decodeMessage(encodeMessage({ ...message, from: 0 })), undefined);
  assert.equal(decodeMessage(encodeMessage({ ...message, kind: "hello" })), undefined);
});
