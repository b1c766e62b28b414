/**
 * Clusters over NATS: how a driver finds nodes. Tensors travel elsewhere, over `nats_links.ts`.
 *
 * @module
 */
import { Context, Effect, Layer, Result, Schedule } from "effect";
import { Crew } from "../runtime/crew.ts";
import {
  ModelInvalid,
  NotEnoughNodes,
  type NotPermitted,
  type ServerUnavailable,
  type VersionMismatch,
} from "../runtime/errors.ts";
import { Links } from "../runtime/link.ts";
import type { NodeCard } from "../runtime/membership.ts";
import { connectNats } from "./nats.ts";
import type { NatsAccess } from "./nats_connection.ts";
import { driverName, rosterOf } from "./nats_roster.ts";
import { barredFrom, cards, nameIn, pulses, subjects, subscribed } from "./nats_cluster/control.ts";
import { crewOf, sameVersion } from "./nats_cluster/crew.ts";
import { natsLinks } from "./nats_links.ts";
import type { Line } from "./nats_links/line.ts";

export { type NodeState, serveNode } from "./nats_cluster/node.ts";

/** How often the server answers before a roll call is over: that is about a second. */
const rollCallPatience = 2;
/** Between two calls, of which some may be lost. */
const callAgain = "400 millis";

/**
 * The nodes that answer, by id.
 *
 * @param patience How often the server answers before the call is over: twice a second.
 */
export const rollCall = (
  { control }: { readonly control: Line },
  cluster: string,
  patience = rollCallPatience,
): Effect.Effect<ReadonlyArray<NodeCard>, NotPermitted> =>
  Effect.scoped(Effect.gen(function* () {
    const found = new Map<string, NodeCard>();
    const { roll, answers } = subjects(cluster);
    const reply = answers();
    const barred = barredFrom(control, cluster, "call nodes", [roll, `${reply}.*`]);
    const inbox = yield* subscribed(control, `${reply}.*`);
    const calling = Effect.sync(() => control.publish(roll, new Uint8Array(0), reply)).pipe(
      Effect.repeat(Schedule.spaced(callAgain)),
    );
    yield* Effect.forkScoped(calling, { startImmediately: true });
    const hearing = Effect.map(inbox, ({ bytes, subject }) => {
      const card = cards.decode(bytes);
      // The server lets nobody answer under another's name.
      if (Result.isFailure(card) || subject !== `${reply}.${nameIn(card.success)}`) return;
      found.set(card.success.id, card.success);
    });
    yield* Effect.raceAllFirst([Effect.forever(hearing), pulses(control, patience), barred]);
    return [...found.values()].sort((a, b) => a.id < b.id ? -1 : 1);
  }));

/** Which nodes to take. */
export interface ClusterOptions extends NatsAccess {
  /** The server, `nats://host:port`. */
  readonly url: string;
  readonly cluster: string;
  /** Ranks; all idle nodes by default. */
  readonly ring?: number | undefined;
  /** Only nodes with this device; any by default. */
  readonly device?: string | undefined;
  /** Only nodes that have this model. */
  readonly model?: { readonly folder: string; readonly hash: string } | undefined;
}

/** Nodes that wait and have other models. */
const othersThan = (
  { folder, hash }: { readonly folder: string; readonly hash: string },
  nodes: ReadonlyArray<NodeCard>,
): ModelInvalid => {
  const found = nodes.map(({ id, host, models = [] }) =>
    `${id} on ${host} has ${
      models.map((model) => `"${model.folder}" (${model.hash.slice(0, 12)})`).join(", ") || "none"
    }`
  );
  return new ModelInvalid({
    model: folder,
    needed: `every node must have it, with the hash ${hash.slice(0, 12)} (node --model DIR)`,
    found: found.join("; "),
  });
};

/** Takes idle nodes of a cluster, by rank, and gives what a driver needs to use them. */
export const joinCluster = Effect.fn("joinCluster")(function* (
  { url, cluster, ring, device, model, ...access }: ClusterOptions,
) {
  const nats = yield* connectNats(url, access);
  const able = (patience?: number) =>
    Effect.map(
      rollCall(nats, cluster, patience),
      (all) => all.filter((node) => device === undefined || node.device.name === device),
    );
  const isIdle = ({ state }: NodeCard) => state === "idle";
  const hasModel = ({ models = [] }: NodeCard) =>
    model === undefined || models.some(({ hash }) => hash === model.hash);
  const all = yield* able();
  const there = all.filter(hasModel);
  const without = all.filter((node) => isIdle(node) && !hasModel(node));
  if (model !== undefined && without.length > 0 && there.filter(isIdle).length < (ring ?? 1)) {
    return yield* othersThan(model, without);
  }
  const idle = there.filter(isIdle);
  const needed = ring ?? Math.max(1, idle.length);
  if (idle.length < needed) {
    return yield* new NotEnoughNodes({
      cluster,
      url: nats.server,
      device: device ?? "auto",
      needed,
      found: idle.length,
      busy: there.length - idle.length,
    });
  }
  const nodes = idle.slice(0, needed);
  yield* sameVersion(nodes);
  const roster = rosterOf(driverName);
  const links = yield* Layer.build(natsLinks(nats, { cluster, roster }));
  const spare = (patience: number) => Effect.map(able(patience), (all) => all.filter(isIdle));
  const crew = yield* crewOf(nats.control, cluster, nodes, spare, roster).pipe(
    Effect.provideService(Links, Context.get(links, Links)),
  );
  return { services: Context.add(links, Crew, crew), nodes };
});

/** The idle nodes of a cluster, for `attend`. */
export const onCluster = (options: ClusterOptions): Layer.Layer<
  Crew | Links,
  ModelInvalid | NotEnoughNodes | NotPermitted | ServerUnavailable | VersionMismatch
> => Layer.effectContext(Effect.map(joinCluster(options), ({ services }) => services));
