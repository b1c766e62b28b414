/**
 * Who computes: ranks in this process over memory links, or nodes over NATS; nodes that are there, or nodes started
 * for this run.
 *
 * @module
 */
import { Context, Effect, Layer, type Scope } from "effect";
import { memoryLinks } from "../plugins/memory.ts";
import { natsCrew, rollCall } from "../plugins/nats_cluster.ts";
import { connectNats } from "../plugins/nats_connection.ts";
import { natsLinks } from "../plugins/nats_links.ts";
import { startNatsServer } from "../plugins/nats_server.ts";
import { Crew } from "../runtime/crew.ts";
import { Device } from "../runtime/device.ts";
import {
  type DeviceUnavailable,
  type NodeRefused,
  NotEnoughNodes,
  type ServerUnavailable,
  type VersionMismatch,
} from "../runtime/errors.ts";
import { newRun } from "../runtime/job.ts";
import type { DeviceInfo } from "../runtime/kernel.ts";
import { Links } from "../runtime/link.ts";
import { chooseDevice } from "../runtime/plugin.ts";
import { startNode } from "./children.ts";
import { devices } from "./devices.ts";

/** How to find a crew. */
export interface CrewOptions {
  readonly link: "memory" | "nats";
  readonly device: string;
  /** Ranks; all idle nodes of a cluster where undefined, else 1. */
  readonly ring: number | undefined;
  /** A server that runs; one is started where undefined. */
  readonly nats: string | undefined;
  /** A cluster whose nodes are there; nodes are started where undefined. */
  readonly cluster: string | undefined;
}

/** A crew that is ready. */
export interface ReadyCrew {
  readonly services: Context.Context<Crew | Links>;
  readonly ring: number;
  /** By rank. */
  readonly devices: ReadonlyArray<DeviceInfo>;
  /** Bytes of memory of the smallest member. */
  readonly memory: number;
}

/** How long a cluster's nodes have to answer a roll call. */
const rollCallMilliseconds = 1000;

const inProcess = Effect.fnUntraced(function* ({ device, ring = 1 }: CrewOptions) {
  const plugin = yield* chooseDevice(devices, device);
  const services = yield* Layer.build(
    Crew.local.pipe(Layer.provideMerge(Layer.mergeAll(memoryLinks(), plugin.layer))),
  );
  const { info } = Context.get(services, Device);
  // The ranks share one machine.
  return { services, ring, devices: Array(ring).fill(info), memory: info.memory / ring };
});

const overNats = Effect.fnUntraced(function* (options: CrewOptions) {
  const url = options.nats ?? (yield* startNatsServer()).url;
  const connection = yield* connectNats(url);
  const cluster = options.cluster ?? `run-${yield* newRun}`;
  if (options.cluster === undefined) {
    const started = Array.from({ length: options.ring ?? 1 }, () =>
      startNode(url, cluster, options.device));
    yield* Effect.all(started, { concurrency: "unbounded" });
  }
  const all = yield* rollCall(connection, cluster, rollCallMilliseconds);
  const able = all.filter(({ device }) => options.device === "auto" || device.name === options.device);
  const idle = able.filter(({ state }) => state === "idle");
  const ring = options.ring ?? Math.max(1, idle.length);
  if (idle.length < ring) {
    return yield* new NotEnoughNodes({
      cluster,
      url: connection.getServer(),
      device: options.device,
      needed: ring,
      found: idle.length,
      busy: able.length - idle.length,
    });
  }
  const nodes = idle.slice(0, ring);
  const links = yield* Layer.build(natsLinks(connection, { cluster }));
  const crew = yield* natsCrew(connection, cluster, nodes);
  // Nodes on one host share its memory.
  const shares = nodes.map(({ host, device }) =>
    device.memory / nodes.filter((other) => other.host === host).length
  );
  return {
    services: Context.add(links, Crew, crew),
    ring,
    devices: nodes.map(({ device }) => device),
    memory: Math.min(...shares),
  };
});

/** Finds or starts a crew; what was started ends with the scope. */
export const findCrew = (options: CrewOptions): Effect.Effect<
  ReadyCrew,
  DeviceUnavailable | NodeRefused | NotEnoughNodes | ServerUnavailable | VersionMismatch,
  Scope.Scope
> => options.link === "memory" ? inProcess(options) : overNats(options);
