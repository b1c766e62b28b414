/** Who may speak to a server, who may say and hear what there, and what becomes of those who say too much. */
import type { NatsConnection } from "@nats-io/transport-node";
import { errors } from "@nats-io/transport-node";
import { Context, Effect, Fiber, Layer, Option, Result, type Scope } from "effect";
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { makeCertificates } from "../../cli/certs.ts";
import { causal, definitions } from "../../plugins/attention.ts";
import { connectNats, type Nats } from "../../plugins/nats.ts";
import { joinCluster, onCluster, rollCall, serveNode } from "../../plugins/nats_cluster.ts";
import {
  ask,
  cards,
  largestMessage,
  requests,
  sealed,
  subscribed,
} from "../../plugins/nats_cluster/control.ts";
import { dialNats, type NatsAccess } from "../../plugins/nats_connection.ts";
import { mustBe, readIdentity } from "../../plugins/nats_identity.ts";
import { natsLinks, subjectOf } from "../../plugins/nats_links.ts";
import { Incoming } from "../../plugins/nats_links/incoming.ts";
import { encodeMessage, type Message } from "../../plugins/nats_links/message.ts";
import { rosterOf } from "../../plugins/nats_roster.ts";
import { inProcess } from "../../plugins/memory.ts";
import { reference } from "../../plugins/reference.ts";
import { attend, type AttendOptions } from "../../runtime/attend.ts";
import { bytesOf } from "../../runtime/dtype.ts";
import { Device } from "../../runtime/device.ts";
import { FileInvalid, ServerUnavailable } from "../../runtime/errors.ts";
import { Links } from "../../runtime/link.ts";
import { version } from "../../runtime/version.ts";
import { Annulus, annulus } from "../support/cli.ts";
import { certificates, noTls, replaceCertificate, secureServer } from "../support/certificates.ts";
import { away, natsMembers, natsServer, noNatsServer } from "../support/nats.ts";
import { normals } from "../support/random.ts";
import { fileOfTensors } from "../support/tensors.ts";

const cluster = "test";
const run = "0123456789abcdef";

const it = <A, E>(
  name: string,
  test: Effect.Effect<A, E, Scope.Scope>,
  ignore: boolean = noTls,
) =>
  Deno.test({
    name,
    ignore,
    fn: () =>
      test.pipe(Effect.scoped, Effect.asVoid, Effect.timeout("60 seconds"), Effect.runPromise),
  });

const identityOf = (dir: string, member: string) => readIdentity(`${dir}/${member}`);

const refusal = (url: string, access?: NatsAccess) =>
  Effect.map(Effect.flip(Effect.scoped(dialNats(url, access))), (error) => {
    assert.ok(error instanceof ServerUnavailable);
    assert.doesNotMatch(error.message, /\n/);
    return error.message;
  });

it(
  "certs makes keys that only their owner reads, and overwrites nothing",
  Effect.gen(function* () {
    const dir = yield* certificates(cluster);
    const members = ["ca", "server", "driver", "node-0", "node-1"];
    assert.deepEqual([...Deno.readDirSync(dir)].map(({ name }) => name).sort(), members.sort());
    const key = (member: string) => `${dir}/${member}/key.pem`;
    for (const member of members) {
      assert.equal(Deno.statSync(key(member)).mode! & 0o777, 0o600, member);
    }
    const before = members.map((member) => Deno.readTextFileSync(key(member)));
    const error = yield* Effect.flip(makeCertificates({ dir, nodes: 3, host: [], cluster }));
    assert.match(
      error.message,
      /^Cannot make certificates in .*nothing is overwritten: found .*ca/,
    );
    assert.deepEqual(members.map((member) => Deno.readTextFileSync(key(member))), before);
    const odd = makeCertificates({ dir: `${dir}/x`, nodes: 1, host: ["a,IP:1.2.3.4"], cluster });
    assert.match((yield* Effect.flip(odd)).message, /--host needs names and addresses: found/);
  }),
);

it(
  "a member without the right certificate is refused in one sentence",
  Effect.gen(function* () {
    const [dir, elsewhere] = [yield* certificates(cluster), yield* certificates(cluster)];
    const { url } = yield* secureServer(dir);
    const good = yield* identityOf(dir, "node-0");
    const stranger = yield* identityOf(elsewhere, "node-0");
    yield* Effect.scoped(dialNats(url, { identity: good }));
    yield* Effect.scoped(dialNats(url.replace("127.0.0.1", "localhost"), { identity: good }));

    assert.match(yield* refusal(url), /it needs a certificate, as in --tls .*: found none$/);
    assert.match(
      yield* refusal(url, { identity: stranger }),
      /a server that the CA of --tls vouches for: found unable to verify/,
    );
    assert.match(
      yield* refusal(url, { identity: { ...stranger, ca: good.ca } }),
      /a certificate that it accepts: found that of "node-0", and .*BadCertificate/i,
    );
    assert.match(
      yield* refusal(url, { identity: { ...good, key: stranger.key } }),
      /a certificate that it accepts: found that of "node-0"/,
    );
    yield* replaceCertificate(dir, "node-0", { days: -1 });
    assert.match(
      yield* refusal(url, { identity: yield* identityOf(dir, "node-0") }),
      /a certificate that it accepts: found one that has expired on \d{4}-\d\d-\d\d$/,
    );
    yield* replaceCertificate(dir, "node-0", { name: "node-7" });
    assert.match(
      yield* refusal(url, { identity: yield* identityOf(dir, "node-0") }),
      /"node-7" to be a member that it knows: found Authorization Violation$/,
    );

    const server = yield* secureServer(dir);
    const identity = yield* identityOf(dir, "node-1");
    const nats = yield* connectNats(server.url, { identity, patience: "300 millis" });
    const refused = yield* Effect.forkScoped(away(nats), { startImmediately: true });
    yield* Effect.promise(async () => {
      const profile = await Deno.readTextFile(server.config);
      await Deno.writeTextFile(server.config, profile.replace(/^.*CN=node-1"(.*\n){3}/m, ""));
      Deno.kill(server.pid, "SIGHUP");
    });
    yield* Fiber.join(refused);
    assert.match(
      (yield* Effect.flip(nats.control.lost)).message,
      /to be away for less than 300ms: found Authorization Violation$/,
    );
    assert.match(
      yield* refusal(server.url, { identity }),
      /"node-1" to be a member that it knows: found Authorization Violation$/,
    );
  }),
);

it(
  "a server without the right certificate is refused in one sentence",
  Effect.gen(function* () {
    const dir = yield* certificates(cluster);
    const identity = yield* identityOf(dir, "node-0");
    const said = (extensions: string, days?: number) =>
      Effect.gen(function* () {
        yield* replaceCertificate(dir, "server", { extensions, ...(days && { days }) });
        return yield* refusal((yield* secureServer(dir)).url, { identity });
      });
    assert.match(
      yield* said("subjectAltName=DNS:lab.example"),
      /a server whose certificate is for 127\.0\.0\.1: found .*127\.0\.0\.1 is not in/,
    );
    assert.match(
      yield* said("subjectAltName=IP:127.0.0.1", -1),
      /a server that the CA of --tls vouches for: found .*expired/,
    );
    // A member's certificate makes no server.
    assert.match(
      yield* said("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=clientAuth"),
      /a server that the CA of --tls vouches for: found /,
    );
    const { url } = yield* natsServer();
    assert.match(yield* refusal(url, { identity }), /it needs TLS: found a server without it$/);
  }),
);

it(
  "a server on another machine is refused without TLS, credentials or --insecure",
  Effect.gen(function* () {
    for (const host of ["10.0.0.1", "lab.invalid", "127.0.0.1.example.invalid", "[fe80::1]"]) {
      assert.match(
        yield* refusal(`nats://${host}:4222`),
        /needs --tls or credentials .*--insecure/,
      );
    }
    const { url } = yield* natsServer();
    yield* Effect.scoped(dialNats(url.replace("127.0.0.1", "localhost")));
    yield* Effect.scoped(dialNats(url, { insecure: true }));
  }),
  noNatsServer,
);

it(
  "a folder that is no member's, or another's, is refused in one sentence",
  Effect.gen(function* () {
    const dir = yield* certificates(cluster);
    const sentence = (effect: Effect.Effect<unknown, FileInvalid>) =>
      Effect.map(Effect.flip(effect), ({ message }) => message);
    assert.match(yield* sentence(readIdentity(`${dir}/none`)), /ca\.pem.*found .*No such file/);
    yield* Effect.promise(() => Deno.writeTextFile(`${dir}/node-1/cert.pem`, "hello"));
    assert.match(yield* sentence(identityOf(dir, "node-1")), /cert\.pem": .*found no certificate$/);
    const [driver, node] = [yield* identityOf(dir, "driver"), yield* identityOf(dir, "node-0")];
    yield* mustBe("driver", driver);
    yield* mustBe("node", node);
    assert.match(yield* sentence(mustBe("node", driver)), /a node needs .*: found one of "driver"/);
    assert.match(
      yield* sentence(mustBe("driver", node)),
      /a driver needs .*: found one of "node-0"/,
    );
  }),
);

/** What the server has against something that is done over a connection. */
const violation = (connection: NatsConnection, act: () => void) =>
  Effect.promise(async () => {
    const statuses = connection.status()[Symbol.asyncIterator]();
    const next = statuses.next();
    act();
    const { value } = await next;
    await statuses.return?.();
    assert.ok(value !== undefined && value.type === "error");
    assert.ok(value.error instanceof errors.PermissionViolationError, String(value.error));
    return value.error;
  });

it(
  "a node speaks, listens and answers only for itself, whatever it tries",
  Effect.gen(function* () {
    const dir = yield* certificates(cluster);
    const { url } = yield* secureServer(dir);
    const dial = (member: string) =>
      Effect.flatMap(identityOf(dir, member), (identity) => dialNats(url, { identity }));
    const [rogue, victim, driver] = [
      yield* dial("node-0"),
      yield* dial("node-1"),
      yield* dial("driver"),
    ];
    const names = (rank: number | "driver") => rank === "driver" ? "driver" : `node-${rank}`;
    const link = (from: number | "driver", to: number | "driver") =>
      subjectOf(cluster, run, from, to, undefined, names);
    const heard: Array<string> = [];
    const hear = {
      callback: (_: unknown, { subject }: { subject: string }) => void heard.push(subject),
    };
    const nodes = [`annulus.${cluster}.ctl.node.node-1.*`, `annulus.${cluster}.ctl.roll`];
    for (const subject of [...nodes, `annulus.${cluster}.*.*.*.*.node-1.>`, link("driver", 1)]) {
      victim.subscribe(subject, hear);
    }
    for (const subject of [`annulus.${cluster}.ctl.answer.*.*`, link(1, "driver")]) {
      driver.subscribe(subject, hear);
    }
    yield* Effect.promise(() => Promise.all([victim.flush(), driver.flush()]));

    const publishes = [
      `annulus.${cluster}.ctl.roll`,
      `annulus.${cluster}.ctl.node.node-1.x`,
      `annulus.${cluster}.ctl.node.node-0.x`,
      `annulus.${cluster}.ctl.answer.x.node-1`,
      `annulus.${cluster}.ctl.answer.x`,
      link("driver", 1),
      `${link("driver", 1)}.events.ctl`,
      link(1, "driver"),
      // As another one's rank, under another one's name.
      subjectOf(cluster, run, 0, 1, undefined, () => "node-1"),
      // Of another cluster.
      subjectOf("other", run, 0, 1, undefined, names),
      "$SYS.REQ.SERVER.PING",
    ];
    for (const subject of publishes) {
      const { operation, subject: found } = yield* violation(rogue, () => rogue.publish(subject));
      assert.deepEqual([operation, found], ["publish", subject]);
    }
    const subscribes = [
      ">",
      "annulus.>",
      `annulus.${cluster}.>`,
      `annulus.${cluster}.*.*.*.*.*`,
      `annulus.${cluster}.*.*.*.*.*.>`,
      `annulus.${cluster}.${run}.>`,
      link("driver", 1),
      link(1, "driver"),
      `annulus.${cluster}.ctl.>`,
      `annulus.${cluster}.ctl.node.*.*`,
      `annulus.${cluster}.ctl.answer.*.*`,
      "annulus.other.ctl.roll",
      "_INBOX.>",
    ];
    for (const subject of subscribes) {
      const { operation, subject: found } = yield* violation(
        rogue,
        () => void rogue.subscribe(subject, { callback: () => {} }),
      );
      assert.deepEqual([operation, found], ["subscription", subject]);
    }
    // What it may say arrives.
    rogue.publish(link(0, 1) + ".ctl");
    rogue.publish(`annulus.${cluster}.ctl.answer.x.node-0`);
    yield* Effect.promise(async () => {
      for (const connection of [rogue, victim, driver]) await connection.flush();
    });
    assert.deepEqual(
      heard.sort(),
      [
        `annulus.${cluster}.ctl.answer.x.node-0`,
        `${link(0, 1)}.ctl`,
      ].sort(),
    );
  }),
);

const [tokens, heads, headDim] = [101, 2, 8];
const size = tokens * heads * headDim;
const problem: AttendOptions = {
  ...{ tokens, heads, headDim, ring: 2, attention: [causal()], layout: "zigzag" },
  ...{ q: normals(1, size), k: normals(2, size), v: normals(3, size) },
};

/** A node until the scope ends; returns when it waits for work. */
const startNode = Effect.fnUntraced(function* (nats: Nats, id: string, name?: string) {
  const roster = rosterOf(name);
  const services = yield* Layer.build(
    Layer.fresh(Layer.mergeAll(natsLinks(nats, { cluster, roster }), reference.layer)),
  );
  const { info } = Context.get(services, Device);
  const card = {
    ...{ id, version, host: "here", pid: 1, device: info, plugins: [] },
    ...{ attentionGflops: 1, linkMegabytes: 1, ...(name === undefined ? {} : { name }) },
  };
  const waiting = Promise.withResolvers<void>();
  const serving = serveNode(
    nats,
    cluster,
    card,
    definitions,
    ({ state }) =>
      Effect.sync(() => {
        if (state === "waiting") waiting.resolve();
      }),
    roster,
  );
  yield* Effect.forkScoped(Effect.provide(serving, services));
  yield* Effect.promise(() => waiting.promise);
  return Context.get(services, Links);
});

it(
  "a run over TLS has the bits of one without",
  Effect.gen(function* () {
    const dir = yield* certificates(cluster);
    const { url } = yield* secureServer(dir);
    for (const name of ["node-0", "node-1"]) {
      const nats = yield* connectNats(url, { identity: yield* identityOf(dir, name) });
      yield* startNode(nats, `of-${name}`, name);
    }
    const identity = yield* identityOf(dir, "driver");
    const found = yield* attend(problem).pipe(
      Effect.provide(onCluster({ url, cluster, ring: 2, identity })),
    );
    const needed = yield* attend(problem).pipe(Effect.provide(inProcess(reference)));
    for (const tensor of ["o", "lse"] as const) {
      assert.ok(Buffer.from(bytesOf(found[tensor])).equals(bytesOf(needed[tensor])), tensor);
    }
  }),
);

it(
  "a member of another cluster is told that the server does not let it be one",
  Effect.gen(function* () {
    const dir = yield* certificates(cluster);
    const { url } = yield* secureServer(dir);
    const [wrong, identity] = ["other", yield* identityOf(dir, "driver")];
    const driver = yield* Effect.flip(joinCluster({ url, cluster: wrong, ring: 1, identity }));
    assert.equal(driver._tag, "NotPermitted");
    assert.match(
      driver.message,
      /^Cannot call nodes in cluster "other": .*: found .*Permissions Violation.*"annulus\.other\.ctl.*--cluster must be the one/,
    );
    const nats = yield* connectNats(url, { identity: yield* identityOf(dir, "node-0") });
    const { info } = Context.get(yield* Layer.build(Layer.fresh(reference.layer)), Device);
    const card = {
      ...{ id: "a", name: "node-0", version, host: "here", pid: 1, device: info, plugins: [] },
      ...{ attentionGflops: 1, linkMegabytes: 1 },
    };
    const node = yield* serveNode(nats, wrong, card, definitions, () => Effect.void).pipe(
      Effect.provide(Layer.mock(Device, { info })),
      Effect.provide(Layer.fresh(natsLinks(nats, { cluster: wrong }))),
      Effect.flip,
    );
    assert.equal(node._tag, "NotPermitted");
    assert.match(node.message, /^Cannot be a node in cluster "other": /);
  }),
);

it(
  "a cluster of processes works over TLS, with no more permissions than its nodes have",
  Effect.gen(function* () {
    const dir = yield* certificates(cluster);
    const { url } = yield* secureServer(dir);
    const shape = [1, tokens, heads, headDim];
    const tensor = (n: number) => ({ dtype: "f32", shape, values: normals(n, size) }) as const;
    const [input, out] = [`${dir}/in.safetensors`, `${dir}/out.safetensors`];
    const there = (member: string) => [
      // By its name, which is looked up with the permission for that name alone.
      ...["--nats", url.replace("127.0.0.1", "localhost"), "--cluster", cluster],
      ...["--tls", `${dir}/${member}`],
    ];
    yield* Effect.promise(async () => {
      await Deno.writeFile(input, fileOfTensors({ q: tensor(1), k: tensor(2), v: tensor(3) }));
      await using up = new Annulus(["up", "-n", "2", "--device", "reference", ...there("node-1")]);
      await up.line(/is up/);
      const nodes = await annulus(["nodes", "--json", ...there("driver")]);
      const cards: ReadonlyArray<{ name: string; id: string }> = JSON.parse(nodes.stdout);
      assert.deepEqual(cards.map(({ name }) => name), ["node-1", "node-1"]);
      const attended = await annulus(
        ["attend", input, "--out", out, "--verify", "--ring", "2", ...there("driver")],
      );
      assert.equal(attended.code, 0, attended.stderr);
      const asNode = await annulus(["nodes", ...there("node-0")]);
      assert.deepEqual([asNode.code, asNode.stdout], [1, ""]);
      assert.match(asNode.stderr, /a driver needs one of a driver: found one of "node-0"/);
    });
  }),
);

/** What a message says that says nothing in particular. */
const nothing: Message = {
  ...{ kind: "hello", from: 77, to: 0, epoch: 0, number: 0, dispatch: 0, received: 0 },
  ...{ beyond: 0n, heard: 0, taken: 0, granted: 1 << 20, body: new Uint8Array(0) },
};
const flood = 10_000;

it(
  "a link goes on while a rogue floods it, and counts what it hears of it",
  Effect.gen(function* () {
    const { members: [one, other, rogue] } = yield* natsMembers(3);
    const [a, b] = yield* Effect.forEach([one!, other!], (member) =>
      Effect.map(
        Layer.build(Layer.fresh(natsLinks(member, { cluster }))),
        (context) => Context.get(context, Links),
      ));
    const [near, far] = yield* Effect.all([
      a!.open({ run, self: 0, peer: 1 }),
      b!.open({ run, self: 1, peer: 0 }),
    ], { concurrency: "unbounded" });
    const frames = Array.from({ length: 200 }, (_, i) => new Uint8Array(50_000).fill(i));
    const sending = yield* Effect.forkScoped(Effect.forEach(frames, near.send));
    const subject = `${subjectOf(cluster, run, 0, 1)}.ctl`;
    const batch = 100;
    const flooding = yield* Effect.forkScoped(Effect.promise(async () => {
      for (let i = 0; i < flood; i++) {
        // A greeting, a message of another epoch, rubbish, and something for a run that nobody knows.
        rogue!.control.publish(subject, encodeMessage(nothing));
        rogue!.control.publish(subject, encodeMessage({ ...nothing, epoch: 1 + i }));
        rogue!.control.publish(subject, new Uint8Array(64).fill(i));
        rogue!.control.publish(subjectOf(cluster, `run-${i}`, 0, 1), encodeMessage(nothing));
        if (i % batch === 0) await rogue!.control.flush();
      }
      await rogue!.control.flush();
    }));
    for (const frame of frames) {
      assert.ok(Buffer.from(yield* far.receive).equals(frame));
    }
    yield* Fiber.join(sending);
    yield* Fiber.join(flooding);
    yield* Effect.promise(() => other!.control.flush());
    const { foreign, ahead, magic } = b!.counts();
    assert.deepEqual({ foreign, ahead, magic }, { foreign: flood, ahead: flood, magic: flood });
    yield* Effect.all([near.send(Uint8Array.of(7)), far.receive], { concurrency: 2 });
  }),
  noNatsServer,
);

it(
  "a peer that says farewell again and again is held to the first",
  Effect.sync(() => {
    const incoming = new Incoming(4096);
    const done = { ...nothing, kind: "done", body: new Uint8Array(1_000_000) } as const;
    const outcomes = Array.from(
      { length: 100 },
      (_, i) => incoming.accept({ ...done, number: 2 + i }),
    );
    assert.deepEqual(outcomes, ["new", ...outcomes.slice(1).fill("outside")]);
    const frame = { ...nothing, kind: "frame", body: Uint8Array.of(5) } as const;
    assert.equal(incoming.accept({ ...frame, number: 1 }), "new");
    assert.deepEqual(incoming.take(), Uint8Array.of(5));
    assert.equal(incoming.farewell?.kind, "done");
  }),
  false,
);

it(
  "a node that introduces itself under another's name is not heard",
  Effect.gen(function* () {
    const { members: [member, rogue, driver] } = yield* natsMembers(3);
    yield* startNode(member!, "a");
    const card = (id: string, name: string) =>
      cards.encode({
        ...{ id, name, version, host: "here", pid: 1, plugins: [], state: "idle" },
        ...{ attentionGflops: 1, linkMegabytes: 1 },
        device: {
          ...{ name: "fake", backend: "none", software: true, features: [], gradients: true },
          ...{ memory: 1, largestTensor: 1 },
        },
      });
    rogue!.control.subscribe(`annulus.${cluster}.ctl.roll`, (_, reply) => {
      rogue!.control.publish(`${reply}.node-0`, card("b", "node-1"));
      rogue!.control.publish(`${reply}.node-0`, card("c", "node-0"));
    });
    yield* Effect.promise(() => rogue!.control.flush());
    const found = yield* rollCall(driver!, cluster);
    assert.deepEqual(found.map(({ id }) => id), ["a", "c"]);
  }),
  noNatsServer,
);

it(
  "giant and many control messages are dropped beyond a bound, and the node still answers",
  Effect.gen(function* () {
    const { members: [member, rogue, driver] } = yield* natsMembers(3);
    const subject = `annulus.${cluster}.ctl.node.any.a`;
    const giant = sealed(new Uint8Array(1_000_000));
    const drown = Effect.promise(async () => {
      for (let i = 0; i < 100; i++) {
        rogue!.control.publish(subject, giant);
        if (i % 10 === 0) await rogue!.control.flush();
      }
      for (let i = 0; i < flood; i++) {
        // With nobody to answer, and with somebody who is nobody.
        rogue!.control.publish(subject, sealed(Uint8Array.of(i)), i % 2 === 0 ? undefined : "a.>");
      }
      await rogue!.control.flush();
      await member!.control.flush();
    });

    // Nobody takes anything: what is kept is bounded.
    let held = 0;
    yield* Effect.scoped(Effect.gen(function* () {
      const take = yield* subscribed(member!.control, subject);
      yield* Effect.promise(() => member!.control.flush());
      yield* drown;
      for (;;) {
        const heard = yield* Effect.timeoutOption(take, 0);
        if (Option.isNone(heard)) break;
        held += heard.value.bytes.length;
      }
      assert.ok(held > 0 && held <= 8 * largestMessage, `held ${held} bytes`);
      // There is room again.
      rogue!.control.publish(subject, sealed(Uint8Array.of(1, 2, 3)));
      assert.deepEqual((yield* take).bytes, Uint8Array.of(1, 2, 3));
    }));

    yield* startNode(member!, "a");
    yield* drown;
    const ping = requests.encode({ ask: "ping" });
    const answer = yield* ask(driver!.control, cluster, { id: "a" }, ping, 10);
    assert.deepEqual(Option.map(answer, Result.getOrThrow), Option.some({ accepted: true }));
  }),
  noNatsServer,
);
