/** A node as its cluster sees it: what it says about itself, and which offers it takes. */
import type { NatsConnection } from "@nats-io/transport-node";
import { Context, Effect, Layer, Result, type Scope } from "effect";
import assert from "node:assert/strict";
import { causal, definitions } from "../../plugins/attention.ts";
import { joinCluster, onCluster, rollCall, serveNode } from "../../plugins/nats_cluster.ts";
import { answers, sealed } from "../../plugins/nats_cluster/control.ts";
import { connectNats } from "../../plugins/nats.ts";
import { dialNats } from "../../plugins/nats_connection.ts";
import { natsLinks } from "../../plugins/nats_links.ts";
import { Device } from "../../runtime/device.ts";
import { attend } from "../../runtime/attend.ts";
import { LinkClosed } from "../../runtime/errors.ts";
import { Links } from "../../runtime/link.ts";
import { planOf } from "../../runtime/plan.ts";
import type { Definition } from "../../runtime/variant.ts";
import { version } from "../../runtime/version.ts";
import { natsServer, noNatsServer } from "../support/nats.ts";
import { full } from "../support/masks.ts";

const cluster = "test";
const info = {
  name: "fake",
  backend: "none",
  software: true,
  features: [],
  gradients: false,
  memory: 2 ** 20,
  largestTensor: 2 ** 20,
};
const card = (id: string, ofVersion = version) => ({
  id,
  version: ofVersion,
  host: "here",
  pid: 1,
  device: info,
  plugins: [],
  attentionGflops: 1,
  linkMegabytes: 1,
});
const job = {
  run: "0123456789abcdef",
  epoch: 0,
  problem: {
    batch: 1,
    tokens: 10,
    heads: 1,
    kvHeads: 1,
    headDim: 4,
    scale: 1,
    attention: full,
  },
  layout: "contiguous",
  weights: [1],
  gradients: false,
  dtype: "f32",
  wire: "f32",
  chunkBytes: 1024,
};

/** Serves a node until the scope ends; returns when it waits. */
const startNode = (
  url: string,
  id: string,
  ofVersion?: string,
  known: ReadonlyArray<Definition> = definitions,
) =>
  Effect.gen(function* () {
    const nats = yield* connectNats(url);
    const waiting = Promise.withResolvers<void>();
    const tell = ({ state }: { readonly state: string }) =>
      Effect.sync(() => {
        if (state === "waiting") waiting.resolve();
      });
    const plugins = known.flatMap(({ name, hash }) => hash === undefined ? [] : [{ name, hash }]);
    yield* serveNode(nats, cluster, { ...card(id, ofVersion), plugins }, known, tell).pipe(
      Effect.provide(Layer.fresh(natsLinks(nats, { cluster }))),
      Effect.provide(Layer.mock(Device, { info })),
      Effect.forkScoped,
    );
    yield* Effect.promise(() => waiting.promise);
  });

const nodeA = `annulus.${cluster}.ctl.node.any.a`;
/** Asks node a something, whatever it is, and gives its answer. */
const asked = async (connection: NatsConnection, text: string) => {
  const { data } = await connection.request(nodeA, sealed(new TextEncoder().encode(text)));
  return JSON.parse(new TextDecoder().decode(data.subarray(4)));
};

const inCluster = <E>(name: string, test: (url: string) => Effect.Effect<void, E, Scope.Scope>) =>
  Deno.test({
    name: noNatsServer ? `${name} (ignored: nats-server is not installed)` : name,
    ignore: noNatsServer,
    fn: () =>
      Effect.flatMap(natsServer(), ({ url }) => test(url)).pipe(Effect.scoped, Effect.runPromise),
  });

inCluster(
  "a node answers the roll call of its own cluster, and of no other",
  (url) =>
    Effect.gen(function* () {
      yield* startNode(url, "a");
      yield* startNode(url, "b");
      const nats = yield* connectNats(url);
      assert.deepEqual(yield* rollCall(nats, cluster), [
        { ...card("a"), state: "idle" },
        { ...card("b"), state: "idle" },
      ]);
      assert.deepEqual(yield* rollCall(nats, "other"), []);
    }),
);

inCluster(
  "a node refuses, in a sentence, every offer that it cannot take",
  (url) =>
    Effect.gen(function* () {
      yield* startNode(url, "a");
      const connection = yield* dialNats(url);
      const offer = (payload: string) => Effect.promise(() => asked(connection, payload));
      const cases: ReadonlyArray<readonly [string, RegExp]> = [
        ["", /^it does not understand the offer/],
        ["{", /^it does not understand the offer/],
        [
          JSON.stringify({ ask: "offer", members: ["any"], version, rank: 0 }),
          /^it does not understand the offer: .*job/s,
        ],
        [
          JSON.stringify({
            ask: "offer",
            members: ["any"],
            version,
            rank: 0,
            job: { ...job, run: "../../x" },
          }),
          /^it does not understand the offer: .*run/s,
        ],
        [
          JSON.stringify({ ask: "offer", members: ["any"], version, rank: -1, job }),
          /^it does not understand the offer: .*rank/s,
        ],
        [" ".repeat(600_000), /a message of at most 524288 bytes: found 600000/],
        [
          JSON.stringify({
            ask: "offer",
            members: ["any"],
            version,
            rank: 0,
            job: { ...job, problem: { ...job.problem, attention: [{ name: "odd", params: {} }] } },
          }),
          /^it has no attention "odd"; its operator may add it with --plugin$/,
        ],
        [
          JSON.stringify({ ask: "offer", members: ["any"], version: "9.9.9", rank: 0, job }),
          new RegExp(`^it runs annulus ${version}, the driver 9\\.9\\.9$`),
        ],
        [
          JSON.stringify({ ask: "offer", members: ["any"], version, rank: 1, job }),
          /^rank 1 is none of a ring of 1$/,
        ],
      ];
      for (const [payload, reason] of cases) {
        const answer = yield* offer(payload);
        assert.equal(answer.accepted, false);
        assert.match(answer.reason!, reason);
      }
    }),
);

inCluster(
  "a node does not hear an offer of which a bit has changed",
  (url) =>
    Effect.gen(function* () {
      yield* startNode(url, "a");
      const { control } = yield* connectNats(url);
      const offer = { ask: "offer", members: ["any"], version, rank: 0, job };
      const text = JSON.stringify(offer).replace('"scale":1', '"scale":2');
      const damaged = sealed(new TextEncoder().encode(text));
      // That of a "2" which makes it a "3".
      damaged[4 + text.indexOf('"scale":2') + 8]! ^= 1;
      const first = yield* Effect.callback<Uint8Array>((resume) => {
        control.subscribe("answer", (bytes) => resume(Effect.succeed(bytes.slice())));
        control.publish(nodeA, damaged.slice(0, 3), "answer");
        control.publish(nodeA, damaged, "answer");
        control.publish(nodeA, sealed(new TextEncoder().encode("{")), "answer");
      });
      const { accepted } = Result.getOrThrow(answers.decode(first.subarray(4))) as {
        readonly accepted: boolean;
      };
      assert.equal(accepted, false, "it answered the damaged offer");
    }),
);

inCluster(
  "a node takes no job beyond its memory, says so, and is idle again",
  (url) =>
    Effect.gen(function* () {
      yield* startNode(url, "a");
      const connection = yield* dialNats(url);
      const large = { ...job, problem: { ...job.problem, tokens: 2 ** 20 } };
      const offer = JSON.stringify({
        ask: "offer",
        members: ["any"],
        version,
        rank: 0,
        job: large,
      });
      const answer = yield* Effect.promise(() => asked(connection, offer));
      assert.deepEqual(answer, { accepted: true });
      const nats = yield* connectNats(url);
      const links = Context.get(yield* Layer.build(natsLinks(nats, { cluster })), Links);
      const lane = yield* links.open({
        ...{ run: job.run, epoch: 0, self: "driver", peer: 0, lane: "events" },
      });
      const event = JSON.parse(new TextDecoder().decode(yield* lane.receive));
      assert.equal(event.event, "failed");
      assert.equal(event.tag, "PlanRefused");
      assert.match(event.reason, /bytes of memory on its fullest rank: found 1048576/);
      const end = yield* Effect.flip(lane.receive);
      assert.ok(end instanceof LinkClosed && !end.done);
      const idle = Effect.map(
        rollCall(nats, cluster),
        ([node]) => node!.state === "idle" ? Effect.void : Effect.fail("busy"),
      );
      yield* Effect.retry(Effect.flatten(idle), { times: 5 });
    }),
);

inCluster(
  "a node that holds two ranks has half of its memory for each",
  (url) =>
    Effect.gen(function* () {
      yield* startNode(url, "a");
      const connection = yield* dialNats(url);
      // Each fits alone, and both do not.
      const problem = { ...job.problem, tokens: 10_000 };
      const both = { ...job, problem, weights: [1, 1] };
      const plan = Result.getOrThrow(planOf({ ...both, layout: "contiguous", wire: "f32" }));
      const bytes = Math.max(...plan.ranks.map(({ bytes }) => bytes));
      assert.ok(bytes < info.memory && bytes > info.memory / 2);
      const nats = yield* connectNats(url);
      const links = Context.get(yield* Layer.build(natsLinks(nats, { cluster })), Links);
      for (const rank of [0, 1]) {
        const offer = JSON.stringify({
          ask: "offer",
          version,
          rank,
          job: both,
          members: ["any", "any"],
        });
        yield* Effect.promise(() => asked(connection, offer));
      }
      const lane = yield* links.open({
        ...{ run: job.run, epoch: 0, self: "driver", peer: 1, lane: "events" },
      });
      const event = JSON.parse(new TextDecoder().decode(yield* lane.receive));
      assert.equal(event.tag, "PlanRefused");
      assert.match(event.reason, new RegExp(`needs ${bytes} bytes .*: found ${info.memory / 2};`));
    }),
);

inCluster(
  "joinCluster() names what is missing, and refuses nodes of another version",
  (url) =>
    Effect.gen(function* () {
      yield* startNode(url, "a");
      const few = yield* Effect.flip(joinCluster({ url, cluster, ring: 2 }));
      assert.match(few.message, /it needs 2 idle nodes: found 1; start some with `annulus node/);
      const other = yield* Effect.flip(joinCluster({ url, cluster, device: "webgpu" }));
      assert.match(other.message, /it needs 1 idle nodes with device "webgpu": found 0/);
      assert.equal((yield* joinCluster({ url, cluster })).nodes.length, 1);

      yield* startNode(url, "b", "0.0.1");
      const mixed = yield* Effect.result(joinCluster({ url, cluster }));
      assert.ok(Result.isFailure(mixed));
      assert.match(
        mixed.failure.message,
        new RegExp(`^Cannot use node b on here: it must run annulus ${version}.*found 0\\.0\\.1`),
      );
    }),
);

inCluster(
  "nodes that mean different things by the name of an attention refuse to run together",
  (url) =>
    Effect.gen(function* () {
      const own = (hash: string): Definition => ({ ...causal.definition, name: "own", hash });
      const [mine, theirs] = ["a".repeat(64), "b".repeat(64)];
      const x = new Float32Array(40);
      const refusal = (ring: number) =>
        attend({
          ...{ tokens: 10, heads: 1, headDim: 4, q: x, k: x, v: x, ring },
          attention: [{ definition: own(mine), params: {} }],
        }).pipe(Effect.provide(onCluster({ url, cluster, ring })), Effect.flip);
      yield* startNode(url, "a", version, [own(mine)]);
      yield* startNode(url, "b", version, [own(theirs)]);
      const two = yield* refusal(2);
      assert.match(
        two.message,
        /"own" must be the same everywhere: found a{12} on node a on here and b{12} on node b on here/,
      );
      yield* startNode(url, "c", version);
      assert.match(
        (yield* refusal(3)).message,
        /found a{12} on node a on here and b{12} on node b/,
      );
      // Nobody began anything.
      const nats = yield* connectNats(url);
      assert.ok((yield* rollCall(nats, cluster)).every(({ state }) => state === "idle"));
    }),
);

inCluster(
  "a node that does not have an attention refuses to run it",
  (url) =>
    Effect.gen(function* () {
      yield* startNode(url, "a");
      const x = new Float32Array(40);
      const definition = { ...causal.definition, name: "own", hash: "a".repeat(64) };
      const { message } = yield* attend({
        ...{ tokens: 10, heads: 1, headDim: 4, q: x, k: x, v: x, ring: 1 },
        attention: [{ definition, params: {} }],
      }).pipe(Effect.provide(onCluster({ url, cluster, ring: 1 })), Effect.flip);
      assert.match(message, /found a{12} at the driver and not there on node a on here/);
    }),
);
