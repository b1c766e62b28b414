/**
 * `annulus node`: one process that owns one device and takes ranks of a cluster's runs.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import { type NodeState, serveNode } from "../plugins/nats_cluster.ts";
import { modelsIn, openModel } from "../plugins/models.ts";
import { CacheFolder } from "../plugins/models/cache_folder.ts";
import { partsIn } from "../plugins/models/cache_parts.ts";
import { connectNats } from "../plugins/nats.ts";
import { natsLinks } from "../plugins/nats_links.ts";
import { rosterOf } from "../plugins/nats_roster.ts";
import { measureAttention, measureLink } from "../runtime/calibrate.ts";
import { Device } from "../runtime/device.ts";
import { chooseDevice } from "../runtime/plugin.ts";
import { version } from "../runtime/version.ts";
import { type AccessFlags, accessOf } from "./access.ts";
import { print } from "./output.ts";
import { knownPlugins } from "./plugins.ts";

/** All that `node` can be told. */
export interface NodeFlags extends AccessFlags {
  readonly nats: string;
  readonly cluster: string;
  readonly device: string;
  /** Files of plugins that its operator trusts. */
  readonly plugin: ReadonlyArray<string>;
  /** Folders of models that it may run. */
  readonly model: ReadonlyArray<string>;
  /** Where it keeps parts of texts, and how many bytes. */
  readonly caches: string | undefined;
  readonly cachesLimit: number;
  readonly json: boolean;
  /** End when standard input does, so as not to outlive the process that started this one. */
  readonly untilStdinEnds: boolean;
}

const stdinEnds: Effect.Effect<void> = Effect.promise(async () => {
  for await (const _ of Deno.stdin.readable);
});

/** Joins the cluster and serves it until its server is gone for good. */
export const runNode = Effect.fn("runNode")(function* (flags: NodeFlags) {
  const { attentions, devices } = yield* knownPlugins(flags.plugin, flags.device);
  const access = yield* accessOf(flags, "node");
  const nats = yield* connectNats(flags.nats, access);
  const name = access.identity?.name;
  const roster = rosterOf(name);
  const plugin = yield* chooseDevice(devices, flags.device);
  const models = yield* Effect.forEach(flags.model, openModel);
  const caches = flags.caches === undefined
    ? Layer.empty
    : partsIn(yield* CacheFolder.open(flags.caches, flags.cachesLimit));
  const services = yield* Layer.build(
    Layer.mergeAll(modelsIn(models), caches).pipe(
      Layer.provideMerge(
        Layer.mergeAll(plugin.layer, natsLinks(nats, { cluster: flags.cluster, roster })),
      ),
    ),
  );
  const serve = Effect.gen(function* () {
    const { info } = yield* Device;
    const card = {
      id: crypto.randomUUID().slice(0, 8),
      ...(name === undefined ? {} : { name }),
      version,
      host: Deno.hostname(),
      pid: Deno.pid,
      device: info,
      plugins: attentions.flatMap(({ name, hash }) => hash === undefined ? [] : [{ name, hash }]),
      models: models.map(({ folder, hash }) => ({ folder, hash })),
      attentionGflops: yield* measureAttention,
      linkMegabytes: yield* measureLink,
    };
    const tell = (state: NodeState) => {
      if (flags.json) {
        const { state: event, ...rest } = state;
        return print(JSON.stringify({
          event,
          ...rest,
          ...(event === "waiting" ? { card: { ...card, state: "idle" } } : {}),
        }));
      }
      switch (state.state) {
        case "waiting":
          return print(
            `node ${card.id} (${info.name} on ${info.backend}${
              info.software ? ", software" : ""
            }) ` +
              `waits for a driver of cluster "${flags.cluster}" at ${nats.server}`,
          );
        case "working":
          return print(`node ${card.id} computes rank ${state.rank} of run ${state.run}`);
        case "failed":
          return print(
            `node ${card.id} gave up rank ${state.rank} of run ${state.run}: ${state.reason}`,
          );
      }
    };
    return yield* serveNode(nats, flags.cluster, card, attentions, tell, roster);
  }).pipe(Effect.provideContext(services));
  yield* flags.untilStdinEnds ? Effect.raceFirst(serve, stdinEnds) : serve;
}, Effect.scoped);
