/**
 * `annulus up`: a whole cluster on this machine, until Ctrl-C.
 *
 * @module
 */
import { Effect } from "effect";
import { dialNats } from "../plugins/nats_connection.ts";
import { keepNatsServer } from "../plugins/nats_server.ts";
import { NodeRefused } from "../runtime/errors.ts";
import { type AccessFlags, accessOf } from "./access.ts";
import { startNode } from "./children.ts";
import { cardTable } from "./nodes.ts";
import { note, print } from "./output.ts";
import { knownPlugins } from "./plugins.ts";

/** All that `up` can be told. */
export interface UpFlags extends AccessFlags {
  readonly nodes: number;
  readonly nats: string | undefined;
  readonly cluster: string;
  readonly device: string;
  readonly plugin: ReadonlyArray<string>;
  readonly json: boolean;
}

/** Starts a server, unless one was named, and the nodes; ends when one of them does. */
export const runUp = Effect.fn("runUp")(function* (flags: UpFlags) {
  // What cannot be used is better said once than by every node.
  yield* knownPlugins(flags.plugin, flags.device);
  const url = flags.nats ?? (yield* keepNatsServer()).url;
  yield* Effect.scoped(dialNats(url, yield* accessOf(flags, "node")));
  if (!flags.json) yield* note(`starting ${flags.nodes} nodes at ${url}`);
  const children = yield* Effect.all(
    Array.from(
      { length: flags.nodes },
      () => startNode(url, flags.cluster, flags, flags.nodes),
    ),
    { concurrency: "unbounded" },
  );
  const cards = children.map(({ card }) => card);
  if (flags.json) {
    yield* print(JSON.stringify({ event: "up", nats: url, cluster: flags.cluster, nodes: cards }));
  } else {
    yield* print(cardTable(cards));
    yield* print(
      `\ncluster "${flags.cluster}" is up; use it with\n` +
        `  annulus attend IN.safetensors --out OUT.safetensors --nats ${url} --cluster ${flags.cluster}\n` +
        `Ctrl-C stops it`,
    );
  }
  return yield* Effect.raceAllFirst(
    children.map((child) =>
      Effect.flatMap(
        child.ended,
        (words) =>
          Effect.fail(new NodeRefused({ node: child.card.id, reason: words || "it ended" })),
      )
    ),
  );
}, Effect.scoped);
