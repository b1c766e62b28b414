/** A run that loses nodes: it goes on without them, and its result has the bits of an undisturbed one. */
import { Context, Effect, Layer, type Scope } from "effect";
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { causal, definitions } from "../../plugins/attention.ts";
import { connectNats } from "../../plugins/nats.ts";
import { rollCall, serveNode } from "../../plugins/nats_cluster.ts";
import { crewOf } from "../../plugins/nats_cluster/crew.ts";
import { natsLinks } from "../../plugins/nats_links.ts";
import type { Line } from "../../plugins/nats_links/line.ts";
import { reference } from "../../plugins/reference.ts";
import { bytesOf } from "../../runtime/dtype.ts";
import { attend, type AttendOptions, type AttendResult } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import { Device } from "../../runtime/device.ts";
import { Links } from "../../runtime/link.ts";
import type { Interval } from "../../runtime/timeline.ts";
import { version } from "../../runtime/version.ts";
import { natsServer, noNatsServer } from "../support/nats.ts";
import { normals } from "../support/random.ts";

const cluster = "test";
const hasty = { beat: "50 millis", silence: "2 seconds" } as const;

/** A line that says and hears nothing more once it is dead. */
const mortal = <L extends Line>(line: L, isDead: () => boolean): L => ({
  ...line,
  publish: (...message) => isDead() || line.publish(...message),
  subscribe: (subject, hear) =>
    line.subscribe(subject, (...message) => isDead() || hear(...message)),
});

/** A node that can die without a word. */
const startNode = Effect.fnUntraced(function* (url: string, id: string) {
  let dead = false;
  const nats = yield* connectNats(url, hasty);
  const lines = {
    control: mortal(nats.control, () => dead),
    bulk: mortal(nats.bulk, () => dead),
  };
  const services = yield* Layer.build(
    Layer.mergeAll(Layer.fresh(natsLinks(lines, { cluster })), Layer.fresh(reference.layer)),
  );
  const { info } = Context.get(services, Device);
  const card = {
    ...{ id, version, host: "here", pid: 1, device: info, plugins: [] },
    ...{ attentionGflops: 1, linkMegabytes: 1 },
  };
  const waiting = Promise.withResolvers<void>();
  yield* serveNode(lines, cluster, card, definitions, ({ state }) =>
    Effect.sync(() => {
      if (state === "waiting") waiting.resolve();
    })).pipe(Effect.provide(services), Effect.forkScoped);
  yield* Effect.promise(() => waiting.promise);
  return { id, kill: () => void (dead = true) };
});

/** What a driver needs, and a way to act on what it hears of the ranks. */
const driver = (url: string, ring: number, hear: (interval: Interval) => void) =>
  Layer.effectContext(Effect.gen(function* () {
    const nats = yield* connectNats(url, hasty);
    const links = yield* Layer.build(natsLinks(nats, { cluster }));
    const idle = Effect.map(
      rollCall(nats, cluster),
      (all) => all.filter(({ state }) => state === "idle"),
    );
    const nodes = (yield* idle).slice(0, ring);
    const crew = yield* crewOf(nats.control, cluster, nodes, idle).pipe(
      Effect.provideService(Links, Context.get(links, Links)),
    );
    return Context.add(links, Crew, {
      ...crew,
      run: (job, rank, observer) =>
        crew.run(job, rank, {
          ...observer,
          interval: (interval) =>
            Effect.andThen(Effect.sync(() => hear(interval)), observer.interval(interval)),
        }),
    });
  }));

const [tokens, heads, headDim] = [523, 2, 16];
const size = tokens * heads * headDim;
const problem: AttendOptions = {
  ...{ tokens, heads, headDim, attention: [causal()], layout: "zigzag" },
  ...{ q: normals(1, size), k: normals(2, size), v: normals(3, size) },
};

const sameBits = (found: AttendResult, needed: AttendResult) => {
  for (const tensor of ["o", "lse"] as const) {
    assert.ok(Buffer.from(bytesOf(found[tensor])).equals(bytesOf(needed[tensor])), tensor);
  }
};

type Node = Effect.Success<ReturnType<typeof startNode>>;

const withNodes = <E>(
  name: string,
  count: number,
  test: (url: string, nodes: ReadonlyArray<Node>) => Effect.Effect<void, E, Scope.Scope>,
) =>
  Deno.test({
    name,
    ignore: noNatsServer,
    fn: () =>
      Effect.gen(function* () {
        const { url } = yield* natsServer();
        const nodes = yield* Effect.forEach(
          Array.from({ length: count }, (_, i) => `n${i}`),
          (id) => startNode(url, id),
        );
        yield* test(url, nodes);
      }).pipe(Effect.scoped, Effect.timeout("60 seconds"), Effect.runPromise),
  });

withNodes(
  "a run loses a node at its first step, in the middle and at its last",
  5,
  (url, nodes) =>
    Effect.gen(function* () {
      const run = (hear: (interval: Interval) => void) =>
        attend({ ...problem, ring: 3 }).pipe(Effect.provide(driver(url, 3, hear)));
      const clean = yield* run(() => {});
      assert.equal(clean.recoveries.length, 0);
      let computed = 0;
      const hurt = yield* run(({ rank, activity }) => {
        if (activity === "compute" && rank === 1 && ++computed === 2) nodes[1]!.kill();
      });
      sameBits(hurt, clean);
      console.log(hurt.recoveries);
    }),
);
