/** A run that loses nodes: it goes on without them, and its result has the bits of an undisturbed one. */
import { Context, Effect, Layer, type Scope } from "effect";
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { causal, definitions } from "../../plugins/attention.ts";
import { connectNats, type NatsOptions } from "../../plugins/nats.ts";
import { rollCall, serveNode } from "../../plugins/nats_cluster.ts";
import { crewOf } from "../../plugins/nats_cluster/crew.ts";
import { natsLinks } from "../../plugins/nats_links.ts";
import type { Line } from "../../plugins/nats_links/line.ts";
import { reference } from "../../plugins/reference.ts";
import type { NatsServer } from "../../plugins/nats_server.ts";
import { bytesOf } from "../../runtime/dtype.ts";
import { attend, type AttendOptions, type AttendResult } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import { Device } from "../../runtime/device.ts";
import { Links } from "../../runtime/link.ts";
import type { Interval } from "../../runtime/timeline.ts";
import { version } from "../../runtime/version.ts";
import { Kept } from "../support/kept.ts";
import { natsServer, noNatsServer } from "../support/nats.ts";
import { normals } from "../support/random.ts";

const cluster = "test";
const hasty = { beat: "100 millis", silence: "2 seconds" } as const;

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
const driver = (
  url: string,
  ring: number,
  hear: (interval: Interval) => void,
  options: NatsOptions = {},
) =>
  Layer.effectContext(Effect.gen(function* () {
    const nats = yield* connectNats(url, { ...hasty, ...options });
    const links = yield* Layer.build(natsLinks(nats, { cluster }));
    const idle = (patience?: number) =>
      Effect.map(
        rollCall(nats, cluster, patience),
        (all) => all.filter(({ state }) => state === "idle"),
      );
    const nodes = (yield* idle()).slice(0, ring);
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
  test: (
    url: string,
    nodes: ReadonlyArray<Node>,
    server: NatsServer,
  ) => Effect.Effect<void, E, Scope.Scope>,
) =>
  Deno.test({
    name,
    ignore: noNatsServer,
    fn: () =>
      Effect.gen(function* () {
        const server = yield* natsServer();
        const { url } = server;
        const nodes = yield* Effect.forEach(
          Array.from({ length: count }, (_, i) => `n${i}`),
          (id) => startNode(url, id),
        );
        yield* test(url, nodes, server);
      }).pipe(Effect.scoped, Effect.timeout("60 seconds"), Effect.runPromise),
  });

/** Pairs that all ranks computed, as far as the driver heard. */
const computedOf = ({ plan, timeline }: AttendResult): number => {
  let pairs = 0;
  for (const { rank, block, activity } of timeline) {
    if (activity !== "compute") continue;
    pairs += plan.ranks[rank]!.steps.find((step) => step.block.id === block)!.pairs;
  }
  return pairs;
};

/** Calls `act` once, at the nth computation of a rank. */
const atStep = (rank: number, nth: number, act: () => void) => {
  let computed = 0;
  return (interval: Interval) => {
    if (interval.activity === "compute" && interval.rank === rank && ++computed === nth) act();
  };
};

const ring = 5;
const run = (url: string, hear: (interval: Interval) => void) =>
  attend({ ...problem, ring }).pipe(Effect.provide(driver(url, ring, hear)));

/** How many blocks a rank computes on. */
const stepsOf = ({ plan }: AttendResult, rank: number) =>
  plan.ranks[rank]!.steps.filter(({ state }) => state !== "skip").length;

const movedOf = ({ recoveries }: AttendResult) =>
  recoveries.flatMap(({ moved }) => moved.map(({ rank }) => rank));

const assertRecovered = (hurt: AttendResult, clean: AttendResult) => {
  sameBits(hurt, clean);
  const moved = movedOf(hurt);
  assert.ok(moved.length > 0, "nothing was lost");
  // What was lost is computed again, and a step of it at most that nobody had heard of.
  const redone = computedOf(hurt) - clean.plan.pairs;
  const { ranks } = clean.plan;
  const oneStep = Math.max(...ranks.flatMap(({ steps }) => steps.map(({ pairs }) => pairs)));
  const bound = moved.reduce((sum, rank) => sum + ranks[rank]!.pairs + oneStep, 0);
  assert.ok(redone <= bound, `${redone} pairs again, of ${clean.plan.pairs}`);
};

withNodes(
  "a run loses a node at its first step, in the middle, or at its last one",
  8,
  (url, nodes) =>
    Effect.gen(function* () {
      const clean = yield* run(url, () => {});
      assert.deepEqual([clean.recoveries, computedOf(clean)], [[], clean.plan.pairs]);
      const steps = stepsOf(clean, 1);
      for (const [i, nth] of [1, Math.ceil(steps / 2), steps].entries()) {
        // Nodes are taken in the order of their names: each time there is one less.
        const hurt = yield* run(url, atStep(1, nth, nodes[1 + i]!.kill));
        assertRecovered(hurt, clean);
        assert.deepEqual(movedOf(hurt), [1]);
      }
    }),
);

withNodes(
  "a run of all nodes loses two, the second while it recovers from the first",
  5,
  (url, nodes) =>
    Effect.gen(function* () {
      const clean = yield* run(url, () => {});
      const first = atStep(1, 2, nodes[1]!.kill);
      // The rank that moved loads again: that is the next epoch.
      let loads = 0;
      const hurt = yield* run(url, (interval) => {
        first(interval);
        if (interval.rank === 1 && interval.activity === "load" && interval.block < 0) loads++;
        if (loads === 2) nodes[3]!.kill();
      });
      assert.equal(hurt.recoveries.length, 2);
      assertRecovered(hurt, clean);
      const left = yield* rollCall(yield* connectNats(url), cluster);
      assert.deepEqual(left.map(({ id, state }) => [id, state]), [
        ["n0", "idle"],
        ["n2", "idle"],
        ["n4", "idle"],
      ]);
    }),
);

withNodes(
  "gradients of a run that loses a node have the bits of an undisturbed one",
  3,
  (url, nodes) =>
    Effect.gen(function* () {
      const withGradients = (hear: (interval: Interval) => void) =>
        attend({ ...problem, ring: 3, cotangent: normals(4, size) }).pipe(
          Effect.provide(driver(url, 3, hear)),
        );
      const clean = yield* withGradients(() => {});
      const inSecondPass = stepsOf(clean, 1) + 2;
      const hurt = yield* withGradients(atStep(1, inSecondPass, nodes[1]!.kill));
      sameBits(hurt, clean);
      for (const tensor of ["dq", "dk", "dv"] as const) {
        const [found, needed] = [hurt, clean].map((result) => bytesOf(result.gradients![tensor]));
        assert.ok(Buffer.from(found!).equals(needed!), tensor);
      }
      assert.deepEqual(movedOf(hurt), [1]);
    }),
);

withNodes(
  "a run whose nodes are all lost fails with the first cause",
  2,
  (url, nodes) =>
    Effect.gen(function* () {
      const kill = () => nodes.forEach((node) => node.kill());
      const failed = yield* Effect.flip(
        attend({ ...problem, ring: 2 }).pipe(Effect.provide(driver(url, 2, atStep(1, 1, kill)))),
      );
      assert.match(failed.message, /no other node is there to take it, after: .*silence$/);
    }),
);

withNodes(
  "a run whose server stays away fails, and says so",
  2,
  (url, _, server) =>
    Effect.gen(function* () {
      const gone = atStep(1, 1, () => Deno.kill(server.pid, "SIGKILL"));
      const failed = yield* Effect.flip(
        attend({ ...problem, ring: 2 }).pipe(
          Effect.provide(driver(url, 2, gone, { patience: "300 millis" })),
        ),
      );
      assert.equal(failed._tag, "ServerUnavailable");
      assert.match(failed.message, /away for less than 300ms/);
    }),
);

/** Where what ranks have gathered is kept, in memory. */
const storeFor = ({ plan }: AttendResult, before?: Kept) =>
  new Kept(
    1,
    (rank) => {
      const rows = plan.ranks[rank]!.tokens * heads;
      return { o: rows * headDim * 4, lse: rows * 4 };
    },
    plan.ranks.flatMap(({ rank }) => before?.of(rank) ?? []),
  );

withNodes(
  "what a run had kept when its server went for good is where another one begins, on other nodes",
  2,
  (url, _, server) =>
    Effect.gen(function* () {
      const whole = (checkpoints?: Kept) =>
        ({ ...problem, ring: 2, ...(checkpoints === undefined ? {} : { checkpoints }) }) as const;
      const clean = yield* attend(whole()).pipe(Effect.provide(driver(url, 2, () => {})));
      const kept = yield* attend(whole(storeFor(clean))).pipe(
        Effect.provide(driver(url, 2, () => {})),
      );
      const store = storeFor(clean);
      const gone = atStep(1, 3, () => Deno.kill(server.pid, "SIGKILL"));
      const failed = yield* Effect.flip(
        attend(whole(store)).pipe(
          Effect.provide(driver(url, 2, gone, { patience: "300 millis" })),
        ),
      );
      assert.equal(failed._tag, "ServerUnavailable");
      const spared = store.all.length;
      assert.ok(spared > 0);

      const other = yield* natsServer();
      for (const id of ["n7", "n8"]) yield* startNode(other.url, id);
      const resumed = yield* attend(whole(storeFor(clean, store))).pipe(
        Effect.provide(driver(other.url, 2, () => {})),
      );
      sameBits(resumed, kept);
      assert.ok(computedOf(resumed) < clean.plan.pairs);
    }),
);

withNodes(
  "a rank that is lost goes on from its checkpoint, with the bits of a run that lost none",
  3,
  (url, nodes) =>
    Effect.gen(function* () {
      const attended = (hear: (interval: Interval) => void, checkpoints?: Kept) =>
        attend({ ...problem, ring: 2, ...(checkpoints === undefined ? {} : { checkpoints }) }).pipe(
          Effect.provide(driver(url, 2, hear)),
        );
      const clean = yield* attended(() => {});
      const kept = yield* attended(() => {}, storeFor(clean));
      const store = storeFor(clean);
      const hurt = yield* attended((interval) => {
        // Once there is a checkpoint of the rank.
        if (interval.rank === 1 && store.of(1) !== undefined) nodes[1]!.kill();
      }, store);
      sameBits(hurt, kept);
      assert.deepEqual(movedOf(hurt), [1]);
      const redone = computedOf(hurt) - clean.plan.pairs;
      assert.ok(redone < clean.plan.ranks[1]!.pairs, `${redone} pairs again`);
    }),
);
