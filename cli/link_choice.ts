/**
 * Which links a command's flags mean, and which flags do not go together.
 *
 * @module
 */
import { Effect } from "effect";
import { misuse } from "./command_line.ts";

/** What a command can be told of it. */
export interface LinkFlags {
  readonly link?: "memory" | "nats" | undefined;
  readonly nats?: string | undefined;
  readonly cluster?: string | undefined;
  readonly tls?: string | undefined;
}

/** `nats` where a server or a cluster is named, else `memory`. */
export const linkOf = Effect.fn("linkOf")(function* ({ link, nats, cluster, tls }: LinkFlags) {
  const chosen = link ?? (nats ?? cluster ? "nats" : "memory");
  if (chosen === "memory" && (nats ?? cluster) !== undefined) {
    return yield* misuse("--link memory keeps to this process: leave out --nats and --cluster");
  }
  if (cluster !== undefined && nats === undefined) {
    return yield* misuse("--cluster needs --nats, the server where the cluster is");
  }
  if (tls !== undefined && cluster === undefined) {
    return yield* misuse(
      "--tls needs --cluster and --nats: nodes that a run starts have no certificates",
    );
  }
  return chosen;
});
