/**
 * A whole run in virtual time: driver, nodes, links, plan and merge are the real ones, on a bus that misbehaves, with
 * nodes that die or stand still. The result has the bits of an undisturbed run.
 *
 * @module
 */
import { Context, Effect, Fiber, Layer } from "effect";
import { TestClock } from "effect/testing";
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { referenceKernel } from "../../kernels/reference.ts";
import { causal } from "../../plugins/attention.ts";
import { rollCall } from "../../plugins/nats_cluster.ts";
import { crewOf } from "../../plugins/nats_cluster/crew.ts";
import { natsLinks } from "../../plugins/nats_links.ts";
import { attend } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import type { Device } from "../../runtime/device.ts";
import { bytesOf } from "../../runtime/dtype.ts";
import { layouts } from "../../runtime/layout.ts";
import { Links } from "../../runtime/link.ts";
import { cluster, nodeOn } from "../support/bus_cluster.ts";
import { inProcess } from "../support/in_process.ts";
import { normals, uniform } from "../support/random.ts";
import { Bus, makeBus, type Member, type Weather } from "./bus.ts";
import type { Outcome } from "./link.ts";

/** Bad weather ends after this many milliseconds; then there is so much time for the run to end. */
const storm = 30_000, calm = 300_000;
/** What goes wrong does so within this, which is about as long as a run takes. */
const misery = 10_000;
/** So much later than the driver nodes find a server again. */
const latest = 3000;

/** A device that takes its time. */
const slowly = (bus: Bus, device: Device["Service"]): Device["Service"] => ({
  ...device,
  begin: (queries) =>
    Effect.map(device.begin(queries), (accumulator) => ({
      ...accumulator,
      absorb: (...block) =>
        Effect.delay(Effect.suspend(() => accumulator.absorb(...block)), bus.between(10, 4000)),
    })),
});

const startNode = (bus: Bus, id: string) =>
  nodeOn(bus, id, { device: slowly(bus, inProcess(referenceKernel())) });

/** What goes wrong, and when: from the seed. */
const misfortune = (
  bus: Bus,
  nodes: ReadonlyArray<Member>,
  count: (what: string) => void,
  late: () => number,
): void => {
  const odds = (most: number) => bus.between(0, 1) < 0.4 ? 0 : most * bus.between(0, 1);
  const least = bus.between(0, 20);
  const weather: Weather = {
    loss: odds(0.1),
    duplicate: odds(0.1),
    delay: [least, least + bus.between(0, 40)],
  };
  bus.weather = weather;
  bus.after(storm, () => {
    bus.weather = { loss: 0, duplicate: 0, delay: [1, 2] };
  });
  // One node is spared, so that the run can always go on.
  const spared = bus.whole(0, nodes.length - 1);
  const victims = nodes.filter((_, i) => i !== spared);
  for (const node of victims) {
    if (bus.between(0, 1) < 0.6) continue;
    bus.after(bus.between(0, misery), () => {
      if (!node.dead) count("node died");
      node.dead = true;
    });
  }
  for (const node of victims) {
    if (bus.between(0, 1) < 0.6) continue;
    bus.after(bus.between(0, misery), () => {
      count("node cut off");
      node.cut = true;
      bus.after(bus.between(100, 8000), () => node.join());
    });
  }
  if (bus.between(0, 1) < 0.5) {
    bus.after(bus.between(0, misery), () => {
      count("server away");
      bus.stop();
      bus.after(bus.between(100, 10_000), () =>
        bus.start((member) => {
          if (!nodes.includes(member) || late() < 0.5) return 0;
          count("node late");
          return latest * late();
        }));
    });
  }
};

/** Lives through one seed; rejects at the first promise that is broken. */
export const simulateRun = (seed: number): Promise<Outcome> => {
  const seen = new Map<string, number>();
  const count = (what: string) => void seen.set(what, (seen.get(what) ?? 0) + 1);
  const story = Effect.gen(function* () {
    const bus = yield* makeBus(seed);
    const tokens = bus.whole(1, 60);
    const ring = bus.whole(1, 4);
    const size = tokens * 4;
    const problem = {
      ...{ tokens, heads: 1, headDim: 4, ring, layout: layouts[bus.whole(0, layouts.length - 1)]! },
      attention: bus.between(0, 1) < 0.5 ? [causal()] : [],
      ...{ q: normals(1, size), k: normals(2, size), v: normals(3, size) },
    };
    const nodes = yield* Effect.forEach(
      Array.from({ length: ring + bus.whole(0, 2) }, (_, i) => `n${i}`),
      (id) => startNode(bus, id),
    );
    const driver = bus.member();
    const links = yield* Layer.build(
      Layer.fresh(natsLinks(driver, { cluster, tick: "50 millis" })),
    );
    const idle = (patience?: number) =>
      Effect.map(
        rollCall(driver, cluster, patience),
        (all) => all.filter(({ state }) => state === "idle"),
      );
    const run = (before: boolean) =>
      Effect.scoped(Effect.gen(function* () {
        const members = yield* Effect.repeat(idle(), { until: (nodes) => nodes.length >= ring });
        const crew = yield* crewOf(driver.control, cluster, members.slice(0, ring), idle);
        // Nodes are free for a run as soon as the one before is over.
        if (before) yield* attend(problem).pipe(Effect.provideService(Crew, crew));
        return yield* attend(problem).pipe(Effect.provideService(Crew, crew));
      })).pipe(Effect.provideContext(links));
    const clean = yield* run(true);
    const running = yield* Effect.forkScoped(run(false), { startImmediately: true });
    // The first roll call is over.
    yield* Effect.sleep("1500 millis");
    misfortune(bus, nodes, count, uniform(seed + 1));
    const hurt = yield* Fiber.join(running).pipe(Effect.timeout(storm + calm));
    for (const _ of hurt.recoveries) count("recovery");
    for (const [what, times] of Object.entries(Context.get(links, Links).counts())) {
      seen.set(what, (seen.get(what) ?? 0) + times);
    }
    for (const tensor of ["o", "lse"] as const) {
      const [found, needed] = [hurt, clean].map((result) => bytesOf(result[tensor]));
      assert.ok(Buffer.from(found!).equals(needed!), `seed ${seed}: ${tensor} has other bits`);
    }
    return bus.hash;
  });
  return Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(Effect.scoped(story), { startImmediately: true });
    while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust("1 second");
    return { hash: yield* Fiber.join(fiber), seen };
  }).pipe(Effect.provide(TestClock.layer()), Effect.runPromise);
};
