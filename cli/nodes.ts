/**
 * `annulus nodes`: who is in a cluster.
 *
 * @module
 */
import { Effect } from "effect";
import { rollCall } from "../plugins/nats_cluster.ts";
import { connectNats } from "../plugins/nats.ts";
import type { NodeCard } from "../runtime/membership.ts";
import { type AccessFlags, accessOf } from "./access.ts";
import { note, print, printJson, sizeInWords, table } from "./output.ts";

/** All that `nodes` can be told. */
export interface NodesFlags extends AccessFlags {
  readonly nats: string;
  readonly cluster: string;
  readonly json: boolean;
}

/** The cards of a cluster's nodes as a table. */
export const cardTable = (cards: ReadonlyArray<NodeCard>): string =>
  table([
    ["id", "host", "device", "on", "memory", "GFLOP/s", "link MB/s", "version", "state"],
    ...cards.map((card) => [
      card.id,
      `${card.host}:${card.pid}`,
      card.device.software ? `${card.device.name} (software)` : card.device.name,
      card.device.backend,
      sizeInWords(card.device.memory),
      card.attentionGflops.toPrecision(3),
      card.linkMegabytes.toPrecision(3),
      card.version,
      card.state,
    ]),
  ]);

/** Lists the nodes that answer within a second. */
export const listNodes = Effect.fn("listNodes")(function* (flags: NodesFlags) {
  const nats = yield* connectNats(flags.nats, yield* accessOf(flags, "driver"));
  const cards = yield* rollCall(nats, flags.cluster);
  if (flags.json) return yield* printJson(cards);
  if (cards.length > 0) return yield* print(cardTable(cards));
  yield* note(
    `annulus: no node answers in cluster "${flags.cluster}" at ${nats.server}; start one with ` +
      `\`annulus node --nats nats://${nats.server} --cluster ${flags.cluster}\``,
  );
}, Effect.scoped);
