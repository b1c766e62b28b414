/**
 * Four nodes and a driver over NATS.
 *
 * ```sh
 * deno run -A examples/02_four_nodes.ts
 * ```
 *
 * Each node has a connection and a device of its own, as on four machines; there, a node is the command
 * `annulus node --nats URL --cluster NAME`, and everything from `onCluster` on stays as it is.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import { attend, causal, connectNats, natsLinks, onCluster, reference, version } from "../mod.ts";
import { definitions } from "../plugins/attention.ts";
import { serveNode } from "../plugins/nats_cluster.ts";
import { startNatsServer } from "../plugins/nats_server.ts";
import { Device } from "../runtime/device.ts";

const cluster = "example";

/** A node until its scope ends; returns when it waits for work. */
const startNode = (url: string, id: string) =>
  Effect.gen(function* () {
    const waiting = Promise.withResolvers<void>();
    const nats = yield* connectNats(url);
    yield* Effect.gen(function* () {
      const { info } = yield* Device;
      const card = {
        id,
        version,
        host: Deno.hostname(),
        pid: Deno.pid,
        device: info,
        plugins: [],
        attentionGflops: 0, // `annulus node` measures both
        linkMegabytes: 0,
      };
      yield* serveNode(nats, cluster, card, definitions, ({ state, ...about }) =>
        Effect.sync(() => {
          console.log(`${id}: ${state}`, "rank" in about ? `on rank ${about.rank}` : "");
          if (state === "waiting") {
            waiting.resolve();
          }
        }));
    }).pipe(
      Effect.provide(Layer.fresh(Layer.mergeAll(
        reference.layer,
        natsLinks(nats, { cluster }),
      ))),
      Effect.forkScoped,
    );
    yield* Effect.promise(() => waiting.promise);
  });

const program = Effect.gen(function* () {
  const { url } = yield* startNatsServer();
  const ids = ["anna", "bert", "carl", "dora"];
  yield* Effect.forEach(ids, (id) => startNode(url, id), { concurrency: "unbounded" });

  const [tokens, heads, headDim] = [500, 2, 16];
  const noise = (seed: number) =>
    Float32Array.from({ length: tokens * heads * headDim }, (_, i) => Math.sin(seed + i * i));
  const { o, lse, seconds } = yield* attend({
    tokens,
    heads,
    headDim,
    q: noise(1),
    k: noise(2),
    v: noise(3),
    ring: ids.length,
    attention: [causal()],
  }).pipe(Effect.provide(onCluster({ url, cluster, ring: ids.length })));
  console.log(`${o.length} outputs and ${lse.length} log-sum-exps in ${seconds} s`);
});

await program.pipe(Effect.scoped, Effect.runPromise);
