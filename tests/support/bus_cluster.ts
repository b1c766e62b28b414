/**
 * A cluster on a bus, in virtual time: real nodes, and a real driver.
 *
 * @module
 */
import { Context, Effect, Fiber, Layer, type Scope } from "effect";
import { TestClock } from "effect/testing";
import assert from "node:assert/strict";
import { referenceKernel } from "../../kernels/reference.ts";
import { definitions } from "../../plugins/attention.ts";
import type { NatsLine } from "../../plugins/nats.ts";
import { rollCall } from "../../plugins/nats_cluster.ts";
import { crewOf } from "../../plugins/nats_cluster/crew.ts";
import { type NodeState, serveNode } from "../../plugins/nats_cluster/node.ts";
import { natsLinks } from "../../plugins/nats_links.ts";
import { attend, type AttendOptions } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import { Device } from "../../runtime/device.ts";
import type { NodeCard } from "../../runtime/membership.ts";
import type { Interval } from "../../runtime/timeline.ts";
import type { Definition } from "../../runtime/variant.ts";
import { version } from "../../runtime/version.ts";
import { type Bus, makeBus } from "../simulation/bus.ts";
import { inProcess } from "./in_process.ts";

/** Its name. */
export const cluster = "bus";

/** What a node is, and what it says that it is. */
export interface NodeOptions {
  readonly device?: Device["Service"];
  readonly known?: ReadonlyArray<Definition>;
  readonly card?: Partial<NodeCard>;
  /** Milliseconds until it has answered. */
  readonly slow?: number;
  readonly tell?: (state: NodeState) => Effect.Effect<void>;
}

/** A node until the scope ends. */
export const nodeOn = Effect.fnUntraced(function* (
  bus: Bus,
  id: string,
  options: NodeOptions = {},
) {
  const { device = inProcess(referenceKernel()), known = definitions, card, slow = 0 } = options;
  const { tell = () => Effect.void } = options;
  const lines = bus.member();
  const links = yield* Layer.build(Layer.fresh(natsLinks(lines, { cluster, tick: "50 millis" })));
  const plugins = known.flatMap(({ name, hash }) => hash === undefined ? [] : [{ name, hash }]);
  const full = {
    ...{ id, version, host: "here", pid: 1, device: device.info, plugins },
    ...{ attentionGflops: 1, linkMegabytes: 1, ...card },
  };
  const control: NatsLine = {
    ...lines.control,
    server: "bus",
    publish: (...message) =>
      slow === 0
        ? lines.control.publish(...message)
        : bus.after(slow, () => lines.control.publish(...message)),
  };
  yield* serveNode({ control }, cluster, full, known, tell).pipe(
    Effect.provide(Context.add(links, Device, device)),
    Effect.forkScoped({ startImmediately: true }),
  );
  return lines;
});

/** A driver of the first nodes that answer; `hear` hears of the ranks. */
export const driverOn = Effect.fnUntraced(function* (
  bus: Bus,
  ring: number,
  hear: (interval: Interval) => void = () => {},
) {
  const driver = bus.member();
  const idle = (patience?: number) =>
    Effect.map(
      rollCall(driver, cluster, patience),
      (all) => all.filter(({ state }) => state === "idle"),
    );
  const links = yield* Layer.build(Layer.fresh(natsLinks(driver, { cluster, tick: "50 millis" })));
  const crew = yield* Effect.provide(
    crewOf(driver.control, cluster, (yield* idle()).slice(0, ring), idle),
    links,
  );
  const heard = Crew.of({
    ...crew,
    run: (job, rank, observer) =>
      crew.run(job, rank, {
        ...observer,
        interval: (interval) =>
          Effect.andThen(Effect.sync(() => hear(interval)), observer.interval(interval)),
      }),
  });
  return Context.add(links, Crew, heard);
});

/** Runs attention on the first nodes that answer; `hear` hears of the ranks. */
export const attendOn = Effect.fnUntraced(function* (
  bus: Bus,
  options: AttendOptions & { readonly ring: number },
  hear?: (interval: Interval) => void,
) {
  return yield* attend(options).pipe(Effect.provide(yield* driverOn(bus, options.ring, hear)));
});

/** Runs what happens on a bus to its end, for which it has an hour. */
export const onBus = <A, E>(
  story: (bus: Bus) => Effect.Effect<A, E, Scope.Scope>,
): Promise<A> =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(
      Effect.scoped(Effect.flatMap(makeBus(0), story)),
      { startImmediately: true },
    );
    for (let i = 0; i < 3600 && fiber.pollUnsafe() === undefined; i++) {
      yield* TestClock.adjust("1 second");
    }
    assert.ok(fiber.pollUnsafe() !== undefined, "it stands still");
    return yield* Fiber.join(fiber);
  }).pipe(Effect.provide(TestClock.layer()), Effect.runPromise);
