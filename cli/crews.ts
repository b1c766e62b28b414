/**
 * Who computes: ranks in this process over memory links, or nodes over NATS; nodes that are there, or nodes started
 * for this run.
 *
 * @module
 */
import { Context, Effect, Layer, type Scope } from "effect";
import { inProcess } from "../plugins/memory.ts";
import { type ModelFolder, modelsIn } from "../plugins/models.ts";
import type { CacheFolder } from "../plugins/models/cache_folder.ts";
import { partsIn } from "../plugins/models/cache_parts.ts";
import { joinCluster } from "../plugins/nats_cluster.ts";
import { dialNats } from "../plugins/nats_connection.ts";
import { keepNatsServer } from "../plugins/nats_server.ts";
import { Crew, type Equipment } from "../runtime/crew.ts";
import {
  type DeviceUnavailable,
  type FileInvalid,
  type ModelInvalid,
  type NodeRefused,
  type NotEnoughNodes,
  type NotPermitted,
  type ServerUnavailable,
  type VersionMismatch,
} from "../runtime/errors.ts";
import { newRun } from "../runtime/job.ts";
import { Links } from "../runtime/link.ts";
import { chooseDevice, type DevicePlugin } from "../runtime/plugin.ts";
import { type AccessFlags, accessOf } from "./access.ts";
import { startNode } from "./children.ts";

/** How to find a crew. */
export interface CrewOptions extends AccessFlags {
  readonly link: "memory" | "nats";
  readonly device: string;
  /** What to choose it from, in this process. */
  readonly devices: ReadonlyArray<DevicePlugin>;
  /** Ranks; all idle nodes of a cluster where undefined, else 1. */
  readonly ring: number | undefined;
  /** A server that runs; one is started where undefined. */
  readonly nats: string | undefined;
  /** Files of attention variants, for nodes that are started. */
  readonly plugin: ReadonlyArray<string>;
  /** A cluster whose nodes are there; nodes are started where undefined. */
  readonly cluster: string | undefined;
  /** A model that members are to run, and who hears how many of its bytes this process has loaded. */
  readonly model?: {
    readonly folder: ModelFolder;
    readonly progress: (done: number, all: number) => Effect.Effect<void>;
  };
  /** Where members that are started keep parts of its texts. */
  readonly caches?: CacheFolder | undefined;
}

/** A crew that is ready. */
export interface ReadyCrew {
  readonly services: Context.Context<Crew | Links>;
  readonly ring: number;
  readonly equipment: Equipment;
}

const ready = (services: ReadyCrew["services"], ring: number): ReadyCrew => ({
  ...{ services, ring },
  equipment: Context.get(services, Crew).equipment,
});

const fibers = Effect.fnUntraced(function* (
  { device, devices, ring = 1, model, caches }: CrewOptions,
) {
  const plugin = yield* chooseDevice(devices, device);
  const services = yield* Layer.build(
    model === undefined ? inProcess(plugin) : inProcess(
      plugin,
      Layer.mergeAll(
        modelsIn([model.folder], model.progress),
        caches === undefined ? Layer.empty : partsIn(caches),
      ),
    ),
  );
  return ready(services, ring);
});

const overNats = Effect.fnUntraced(function* (options: CrewOptions) {
  const url = options.nats ?? (yield* keepNatsServer()).url;
  // Before any node is started, which could only say it in more words.
  const access = yield* accessOf(options, "driver");
  yield* Effect.scoped(dialNats(url, access));
  const cluster = options.cluster ?? `run-${yield* newRun}`;
  if (options.cluster === undefined) {
    const nodes = options.ring ?? 1;
    const started = Array.from(
      { length: nodes },
      () =>
        startNode(
          ...[url, cluster] as const,
          { ...options, model: options.model === undefined ? [] : [options.model.folder.folder] },
          nodes,
        ),
    );
    yield* Effect.all(started, { concurrency: "unbounded" });
  }
  const device = options.device === "auto" ? undefined : options.device;
  const { services, nodes } = yield* joinCluster({
    ...{ url, cluster, ring: options.ring, device, model: options.model?.folder },
    ...access,
  });
  return ready(services, nodes.length);
});

/** Finds or starts a crew; what was started ends with the scope. */
export const findCrew = (options: CrewOptions): Effect.Effect<
  ReadyCrew,
  | DeviceUnavailable
  | FileInvalid
  | ModelInvalid
  | NodeRefused
  | NotEnoughNodes
  | NotPermitted
  | ServerUnavailable
  | VersionMismatch,
  Scope.Scope
> => options.link === "memory" ? fibers(options) : overNats(options);
