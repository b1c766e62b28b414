import { Context, Effect, Fiber, Layer, Scope } from "effect";
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { connectNats, type Nats, type NatsOptions } from "../../plugins/nats.ts";
import { natsLinks, type NatsLinksOptions, subjectOf } from "../../plugins/nats_links.ts";
import type { Lines } from "../../plugins/nats_links/line.ts";
import {
  decodeMessage,
  encodeMessage,
  headerBytes,
  type Message,
} from "../../plugins/nats_links/message.ts";
import { startNatsServer } from "../../plugins/nats_server.ts";
import { Condition } from "../../runtime/condition.ts";
import { LinkFailed } from "../../runtime/errors.ts";
import { type Link, Links } from "../../runtime/link.ts";
import { type MakeLinks, testLinks } from "../contract/link.ts";
import { faultyLines } from "../support/faulty_lines.ts";
import { away, natsMembers, noNatsServer } from "../support/nats.ts";
import { uniform } from "../support/random.ts";

const cluster = "test";

const linksOver = (lines: Lines, options: Partial<NatsLinksOptions> = {}) =>
  Effect.map(
    Layer.build(natsLinks(lines, { cluster, ...options })),
    (context) => Context.get(context, Links),
  );

const contract =
  (lines: (member: Nats, index: number) => Lines): MakeLinks => ({ window, deadline }) =>
    Effect.gen(function* () {
      const { members } = yield* natsMembers(2);
      const windowBytes = window.frames * Math.max(1024, window.frameBytes + headerBytes);
      const [even, odd] = yield* Effect.forEach(
        members,
        (member, i) => linksOver(lines(member, i), { deadline, windowBytes }),
      );
      return (self) => typeof self === "number" && self % 2 === 1 ? odd! : even!;
    });

testLinks("nats", contract((member) => member), {
  ignore: noNatsServer ? "nats-server is not installed" : undefined,
});

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

/** Beats so short that a test need not wait for them. */
const hasty: NatsOptions = { beat: "20 millis", silence: "200 millis" };

const openBoth = (a: Links["Service"], b: Links["Service"]) =>
  Effect.all([a.open(here), b.open(there)], { concurrency: "unbounded" });

const assertFailed = (error: unknown, sentence: RegExp) => {
  assert.ok(error instanceof LinkFailed, String(error));
  assert.match(error.message, sentence);
};

const total = (counts: Readonly<Record<string, number>>, ...names: ReadonlyArray<string>) =>
  names.reduce((sum, name) => sum + (counts[name] ?? 0), 0);

/** Random frames of every size, and what must come of them. */
const framesOf = (seed: number, count: number, largest: number): ReadonlyArray<Uint8Array> => {
  const next = uniform(seed);
  const noise = Uint8Array.from({ length: largest }, () => 256 * next());
  return Array.from({ length: count }, () => {
    const from = Math.floor(next() * largest);
    return noise.subarray(from, from + Math.ceil(next() * (largest - from)));
  });
};

const carry = (from: Link, to: Link, frames: ReadonlyArray<Uint8Array>) =>
  Effect.all([
    Effect.forEach(frames, from.send, { discard: true }),
    Effect.forEach(frames, (frame, i) =>
      Effect.map(to.receive, (found) =>
        assert.ok(Buffer.from(found).equals(frame), `frame ${i} differs`)), { discard: true }),
  ], { concurrency: "unbounded", discard: true });

for (
  const faults of [
    { loss: 0.01, duplicate: 0.05, reorder: 0.05, corrupt: 0.01 },
    { loss: 0.1, duplicate: 0.1, reorder: 0.2, corrupt: 0.05 },
  ]
) {
  const { loss, duplicate, reorder, corrupt } = faults;
  it(
    `are exact where ${loss} of all messages are lost, ${duplicate} doubled, ${reorder} overtaken and ${corrupt} damaged`,
    Effect.scoped(Effect.gen(function* () {
      const { members } = yield* natsMembers(2);
      const [a, b] = yield* Effect.forEach(
        members,
        (member, i) => linksOver(faultyLines(member, faults, 7 + i)),
      );
      const [near, far] = yield* openBoth(a!, b!);
      yield* Effect.all([
        carry(near, far, framesOf(1, 300, 300_000)),
        carry(far, near, framesOf(2, 300, 3_000)),
      ], { concurrency: "unbounded" });
      for (const counts of [a!.counts(), b!.counts()]) {
        assert.ok(total(counts, "resent") > 0, "something was lost");
        assert.ok(total(counts, "magic", "header", "body") > 0, "something was damaged");
        assert.ok(total(counts, "duplicate") > 0, "something came twice");
        assert.equal(total(counts, "foreign", "odd", "outside", "stale", "ahead"), 0);
      }
    })),
  );
}

/** A server that can be killed, and is there again at once at the same address; it ends with the scope. */
const mortalServer = Effect.gen(function* () {
  const scope = yield* Effect.scope;
  let { url, pid } = yield* startNatsServer();
  const port = Number(new URL(url.replace("nats:", "http:")).port);
  const kill = Effect.gen(function* () {
    Deno.kill(pid, "SIGKILL");
    pid = (yield* Scope.provide(startNatsServer({ port }), scope)).pid;
  });
  return { url, kill };
});

it(
  "are exact over a server that is killed three times",
  Effect.scoped(Effect.gen(function* () {
    const server = yield* mortalServer;
    yield* Effect.scoped(Effect.gen(function* () {
      const [a, b] = yield* Effect.forEach(
        Array.from({ length: 2 }),
        () => Effect.flatMap(connectNats(server.url), (nats) => linksOver(nats)),
      );
      const [near, far] = yield* openBoth(a!, b!);
      for (let round = 0; round < 3; round++) {
        const frames = framesOf(round, 200, 400_000);
        const sending = yield* Effect.forkScoped(Effect.forEach(frames, near.send));
        for (const [i, frame] of frames.entries()) {
          if (i === 100) yield* server.kill;
          assert.ok(Buffer.from(yield* far.receive).equals(frame), `frame ${i} of round ${round}`);
        }
        yield* Fiber.join(sending);
      }
      assert.ok(total(a!.counts(), "resent") > 0, "what was on its way was lost");
    }));
  })),
);

it(
  "go on after a server that was frozen with frames on their way",
  Effect.scoped(Effect.gen(function* () {
    const { server, members } = yield* natsMembers(2, hasty);
    const [a, b] = yield* Effect.forEach(members, (member) => linksOver(member));
    const [near, far] = yield* openBoth(a!, b!);
    const frames = framesOf(5, 400, 400_000);
    const sending = yield* Effect.forkScoped(Effect.forEach(frames, near.send));
    const gone = Effect.forEach(members, away, { concurrency: "unbounded" });
    for (const [i, frame] of frames.entries()) {
      if (i === 100) {
        Deno.kill(server.pid, "SIGSTOP");
        // Both ends have noticed, and neither has blamed the other.
        yield* Effect.ensuring(gone, Effect.sync(() => Deno.kill(server.pid, "SIGCONT")));
      }
      assert.ok(Buffer.from(yield* far.receive).equals(frame), `frame ${i}`);
    }
    yield* Fiber.join(sending);
  })),
);

it(
  "fail at both ends when the server stays away",
  Effect.scoped(Effect.gen(function* () {
    const { server, members } = yield* natsMembers(2, { patience: "300 millis" });
    const [a, b] = yield* Effect.forEach(members, (member) => linksOver(member));
    const [near, far] = yield* openBoth(a!, b!);
    Deno.kill(server.pid, "SIGKILL");
    const sentence =
      /it needs a NATS server: found .* to be away for less than 300ms: found .*refused/;
    const sending = Effect.forever(near.send(new Uint8Array(200_000)));
    for (const use of [sending, near.broken, far.broken, far.receive]) {
      assertFailed(yield* Effect.flip(use), sentence);
    }
  })),
);

it(
  "close although the server is frozen",
  Effect.scoped(Effect.gen(function* () {
    const { server, members } = yield* natsMembers(2);
    const [a, b] = yield* Effect.forEach(
      members,
      (member) => linksOver(member, { deadline: "300 millis" }),
    );
    yield* Effect.addFinalizer(() => Effect.sync(() => Deno.kill(server.pid, "SIGCONT")));
    yield* Effect.scoped(
      Effect.andThen(openBoth(a!, b!), Effect.sync(() => Deno.kill(server.pid, "SIGSTOP"))),
    );
  })),
);

/** What a message says that says nothing in particular. */
const nothing: Message = {
  kind: "alive",
  from: 77,
  to: 0,
  epoch: 0,
  number: 0,
  dispatch: 0,
  received: 0,
  beyond: 0n,
  heard: 0,
  taken: 0,
  granted: 1 << 20,
  body: new Uint8Array(0),
};

/** A peer of `here` made by hand: it opens its end, and then only says what it is told to say. */
const fakePeer = ({ control, bulk }: Nats) =>
  Effect.promise(async () => {
    const heard: Array<Message> = [];
    const change = new Condition();
    let session = 0;
    const say = (message: Partial<Message>) =>
      control.publish(`${toHere}.ctl`, encodeMessage({ ...nothing, to: session, ...message }));
    const hear = (bytes: Uint8Array) => {
      const message = decodeMessage(new Uint8Array(bytes));
      assert.ok(typeof message !== "string");
      heard.push(message);
      change.changed();
      if (message.kind !== "hello" || session !== 0) return;
      session = message.from;
      say({ kind: "hello" });
    };
    control.subscribe(`${toThere}.ctl`, hear);
    bulk.subscribe(toThere, hear);
    await Promise.all([control.flush(), bulk.flush()]);
    const until = (found: () => boolean) => change.until(() => found() ? Effect.void : undefined);
    return { say, heard, until };
  });

/** One end of a link whose other end is made by hand, and a way to let all that was said arrive. */
const withFakePeer = Effect.fnUntraced(function* (
  options: NatsOptions = {},
  linkOptions: Partial<NatsLinksOptions> = {},
) {
  const { members: [one, other] } = yield* natsMembers(2, options);
  // It answers no farewell.
  const links = yield* linksOver(one!, { deadline: "500 millis", ...linkOptions });
  const peer = yield* fakePeer(other!);
  const link = yield* links.open(here);
  const settle = Effect.promise(async () => {
    for (const { control, bulk } of [other!, one!, other!]) {
      await control.flush();
      await bulk.flush();
    }
  });
  return { links, link, settle, ...peer };
});

it(
  "drop and count what is replayed, foreign, stale, damaged or beyond the window, and go on",
  Effect.scoped(Effect.gen(function* () {
    const { links, link, say, settle } = yield* withFakePeer({}, { windowBytes: 4096 });
    const frame = (number: number, bytes = 1) =>
      say({ kind: "frame", number, dispatch: number, body: new Uint8Array(bytes).fill(number) });
    frame(1);
    assert.deepEqual(yield* link.receive, Uint8Array.of(1));
    const rejected: ReadonlyArray<readonly [string, () => void]> = [
      ["duplicate", () => frame(1)],
      ["foreign", () => say({ kind: "frame", number: 2, from: 78 })],
      ["foreign", () => say({ kind: "frame", number: 2, to: 79 })],
      ["ahead", () => say({ kind: "frame", number: 2, epoch: 1 })],
      ["odd", () => say({ kind: "frame", number: 2, received: 1 })],
      ["odd", () => say({ kind: "frame", number: 2, taken: 1 })],
      ["odd", () => say({ kind: "frame", number: 2, heard: 1 })],
    ];
    const expected: Record<string, number> = {};
    for (const [reason, forge] of rejected) {
      forge();
      yield* settle;
      expected[reason] = (expected[reason] ?? 0) + 1;
      assert.deepEqual(links.counts(), expected);
    }
    for (const number of [2, 3, 4, 5]) frame(number, 1500);
    yield* settle;
    assert.equal(links.counts()["outside"], 2);
    assert.deepEqual((yield* link.receive)[0], 2);
    assert.deepEqual((yield* link.receive)[0], 3);
    frame(4);
    assert.deepEqual(yield* link.receive, Uint8Array.of(4));
  })),
);

it(
  "count messages of earlier epochs, and deliver none",
  Effect.scoped(Effect.gen(function* () {
    const { members: [one, other] } = yield* natsMembers(2);
    const links = yield* linksOver(one!);
    const opening = yield* Effect.forkScoped(links.open({ ...here, epoch: 3 }));
    const peer = yield* fakePeer(other!);
    yield* Effect.promise(async () => {
      while ((links.counts()["stale"] ?? 0) < 2) {
        peer.say({ kind: "frame", number: 1, epoch: 2, body: Uint8Array.of(9) });
        await other!.control.flush();
      }
    });
    assert.equal(opening.pollUnsafe(), undefined, "a peer of an earlier epoch opens nothing");
  })),
);

it(
  "give up a peer that falls silent, and only while the server answers",
  Effect.scoped(Effect.gen(function* () {
    const { link } = yield* withFakePeer(hasty);
    const waiting = [
      link.receive,
      link.broken,
      Effect.andThen(link.send(new Uint8Array(9)), link.drain),
    ];
    const errors = yield* Effect.forEach(waiting, (effect) => Effect.flip(effect), {
      concurrency: "unbounded",
    });
    for (const error of errors) {
      assertFailed(error, /a word from rank 1 while the server answers 10 times: found silence$/);
    }
  })),
);

it(
  "give up a peer that is alive but does not hear",
  Effect.scoped(Effect.gen(function* () {
    const { link, say } = yield* withFakePeer(hasty);
    yield* Effect.forkScoped(
      Effect.forever(Effect.delay(Effect.sync(() => say({})), "20 millis")),
    );
    yield* link.send(Uint8Array.of(1));
    assertFailed(
      yield* Effect.flip(link.drain),
      /1 to receive frame 1 while the server answers 30 times: found it is alive and has 0 of 1/,
    );
  })),
);

it(
  "ask a peer that does not answer, and send again only what it says that it lacks",
  Effect.scoped(Effect.gen(function* () {
    const { link, say, heard, until, settle } = yield* withFakePeer();
    for (const byte of [1, 2, 3]) yield* link.send(Uint8Array.of(byte));
    yield* until(() => heard.some(({ kind }) => kind === "probe"));
    const frames = () => heard.filter(({ kind }) => kind === "frame").map(({ number }) => number);
    assert.deepEqual(frames(), [1, 2, 3]);
    const probe = heard.findLast(({ kind }) => kind === "probe")!;
    say({ received: 1, beyond: 2n, heard: probe.dispatch });
    yield* until(() => frames().length > 3);
    say({ received: 3, heard: heard.at(-1)!.dispatch });
    yield* settle;
    assert.deepEqual(frames(), [1, 2, 3, 2]);
  })),
);

it(
  "give up a peer that is alive but takes nothing for longer than their patience",
  Effect.scoped(Effect.gen(function* () {
    const { members } = yield* natsMembers(2);
    const [a, b] = yield* Effect.forEach(
      members,
      (member) => linksOver(member, { windowBytes: 2000, patience: "300 millis" }),
    );
    const [near] = yield* openBoth(a!, b!);
    const error = yield* Effect.flip(Effect.forever(near.send(new Uint8Array(1000))));
    assertFailed(error, /1 to take a frame within 300ms: found it did not$/);
  })),
);

it(
  "keep a window that is full for as long as the peer is alive",
  Effect.scoped(Effect.gen(function* () {
    const { members } = yield* natsMembers(2, hasty);
    const [a, b] = yield* Effect.forEach(
      members,
      (member) => linksOver(member, { windowBytes: 2000 }),
    );
    const [near, far] = yield* openBoth(a!, b!);
    yield* near.send(new Uint8Array(1900));
    const sending = yield* Effect.forkScoped(near.send(Uint8Array.of(5)), {
      startImmediately: true,
    });
    // Longer than a silent or a deaf peer would be borne.
    yield* Effect.callback<void>((resume) => {
      let pulses = 0;
      members[0]!.control.watch({ pulse: () => ++pulses === 50 && resume(Effect.void) });
    });
    assert.equal(sending.pollUnsafe(), undefined);
    yield* far.receive;
    assert.deepEqual(yield* far.receive, Uint8Array.of(5));
    yield* Fiber.join(sending);
  })),
);

it(
  "open although the last words of an earlier link still arrive",
  Effect.scoped(Effect.gen(function* () {
    const { members } = yield* natsMembers(3);
    const [a, b] = yield* Effect.forEach(members, (member) => linksOver(member));
    const meddler = members[2]!.control;
    const greeted = Effect.callback<void>((resume) => {
      const end = meddler.subscribe(`${toThere}.ctl`, () => (end(), resume(Effect.void)));
    });
    const [near, far] = yield* Effect.all([
      a!.open(here),
      Effect.gen(function* () {
        yield* greeted;
        for (const kind of ["hello", "frame", "alive", "left"] as const) {
          meddler.publish(`${toHere}.ctl`, encodeMessage({ ...nothing, kind, from: 5, to: 6 }));
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
  "work with a server of small messages, in smaller frames",
  Effect.scoped(Effect.gen(function* () {
    const { members } = yield* natsMembers(2, {}, "max_payload: 4096");
    const [a, b] = yield* Effect.forEach(members, (member) => linksOver(member));
    assert.equal(a!.maxFrame, 4096 - headerBytes);
    const [near, far] = yield* openBoth(a!, b!);
    yield* carry(
      near,
      far,
      Array.from({ length: 2000 }, (_, i) => new Uint8Array(a!.maxFrame).fill(i)),
    );
  })),
);

it(
  "fail when the server refuses their subjects, and only theirs",
  Effect.scoped(Effect.gen(function* () {
    const allowed = ["annulus.test.run.>", "annulus.test.mute.1.0", "annulus.test.mute.1.0.ctl"];
    const { members } = yield* natsMembers(
      2,
      {},
      `authorization: { users: [{ user: u, password: p, permissions: {
        publish: ${
        JSON.stringify(allowed)
      }, subscribe: ["annulus.test.run.>", "annulus.test.mute.>"] } }] }
        no_auth_user: u`,
    );
    const [a, b] = yield* Effect.forEach(members, (member) => linksOver(member));
    const [near, far] = yield* openBoth(a!, b!);
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
    const { members } = yield* natsMembers(1);
    const links = yield* linksOver(members[0]!);
    for (const run of ["a.b", "*", ">", "", "a b"]) {
      const error = yield* Effect.flip(links.open({ ...here, run }));
      assertFailed(error, /named with letters, digits, - and _: found "/);
    }
    const elsewhere = yield* linksOver(members[0]!, { cluster: "test.>" });
    assertFailed(yield* Effect.flip(elsewhere.open(here)), /found "test.>"/);
  })),
);

Deno.test("a NATS message survives its bytes, and other bytes are none", () => {
  const message: Message = {
    kind: "frame",
    from: 0xffffffff,
    to: 1,
    epoch: 7,
    number: 0xfffffffe,
    dispatch: 12,
    received: 3,
    beyond: 2n ** 63n + 1n,
    heard: 11,
    taken: 2,
    granted: 0xfffffff0,
    body: Uint8Array.of(1, 2, 3),
  };
  const bytes = encodeMessage(message);
  assert.equal(bytes.length, headerBytes + 3);
  // At any offset into a larger buffer, as sockets give them.
  for (const offset of [0, 1, 3]) {
    const buffer = new Uint8Array(100);
    buffer.set(bytes, offset);
    assert.deepEqual(decodeMessage(buffer.subarray(offset, offset + bytes.length)), message);
  }
  for (let length = 0; length < bytes.length; length++) {
    assert.equal(typeof decodeMessage(bytes.subarray(0, length)), "string", `${length} bytes`);
  }
  // Whichever bit changes, it is noticed.
  for (let bit = 0; bit < 8 * bytes.length; bit++) {
    const copy = new Uint8Array(bytes);
    copy[bit >> 3]! ^= 1 << (bit & 7);
    assert.equal(typeof decodeMessage(copy), "string", `bit ${bit}`);
  }
});
