/**
 * Flags that several verbs have.
 *
 * @module
 */
import { Option } from "effect";
import { Flag } from "effect/cli";
import { devices } from "./devices.ts";

/** Undefined where it is not given. */
export const optional = <A>(flag: Flag.Flag<A>) =>
  flag.pipe(Flag.optional, Flag.map((value) => Option.getOrUndefined(value)));
/** False where it is not given. */
export const boolean = (name: string) => Flag.withDefault(Flag.Boolean(name), false);
/** For every command. */
export const json = boolean("json").pipe(Flag.withDescription("Print the result as JSON"));
/** What computes. */
export const device = Flag.String("device").pipe(
  Flag.withDefault("auto"),
  Flag.withDescription(
    `What computes: ${
      devices.map(({ name }) => name).join(", ")
    }, or one of a --plugin; auto takes the ` +
      "best that is there",
  ),
);
/** Files of one's own. */
export const plugin = Flag.String("plugin").pipe(
  Flag.atLeast(0),
  Flag.withDescription(
    "A file with an attention or a device of your own; may be given several times",
  ),
);
/** Which server. */
export const nats = Flag.String("nats").pipe(
  Flag.withDescription("A running NATS server, nats://host:port; without it one is started"),
);
/** How to speak to it. */
export const access = {
  tls: optional(
    Flag.String("tls").pipe(
      Flag.withDescription("The folder of a member's certificate, as `annulus certs` makes it"),
    ),
  ),
  insecure: boolean("insecure").pipe(
    Flag.withDescription("Use a server on another machine without --tls and without credentials"),
  ),
};
/** Which nodes. */
export const cluster = Flag.String("cluster").pipe(
  Flag.filter((name) => /^[\w-]+$/.test(name), () => "a name of letters, digits, - and _"),
);
/** Not less than that. */
export const atLeast = (least: number) => (flag: Flag.Flag<number>) =>
  Flag.filter(flag, (value) => value >= least, () => `a number of at least ${least}`);
/** "1.5GiB" in bytes. */
const sizeOf = (words: string): number => {
  const [, number, unit] = /^(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)?$/i.exec(words.trim()) ?? [];
  const power = ["b", "kib", "mib", "gib", "tib"].indexOf((unit ?? "B").toLowerCase());
  return Math.floor(Number(number) * 2 ** (10 * power));
};
/** Where keys and values of texts are kept beyond the process. */
export const caches = {
  caches: optional(
    Flag.String("caches").pipe(
      Flag.withDescription("A folder that keeps keys and values of long texts for another time"),
    ),
  ),
  cachesLimit: Flag.String("caches-limit").pipe(
    Flag.withDefault("64GiB"),
    Flag.map(sizeOf),
    Flag.filter((bytes) => bytes > 0, () => "a size like 64GiB"),
    Flag.withDescription("What it may have in all; what was used longest ago goes first"),
  ),
};
/** Every rank plans the whole ring: beyond this, planning takes longer than computing. */
const mostRanks = 1024;
/** Not more than that. */
export const ringSize = (flag: Flag.Flag<number>) =>
  Flag.filter(flag, (n) => n >= 1 && n <= mostRanks, () => `a number from 1 to ${mostRanks}`);

/** Who computes, as every command that has a ring is told. */
export const crew = {
  ring: optional(Flag.Int("ring").pipe(ringSize, Flag.withDescription("Ranks in the ring"))),
  device,
  plugin,
  link: optional(
    Flag.Literals("link", ["memory", "nats"]).pipe(
      Flag.withDescription(
        "One process, or a process a rank; nats where --nats or --cluster is given, else memory",
      ),
    ),
  ),
  nats: optional(nats),
  ...access,
  cluster: optional(
    cluster.pipe(Flag.withDescription("Use the nodes of this cluster at --nats")),
  ),
};
