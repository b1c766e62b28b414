/**
 * `annulus caches`: what `--caches DIR` has kept: which texts there are, whether they are as they were, and away with them.
 *
 * @module
 */
import { Effect } from "effect";
import {
  type Kept,
  keptIn,
  partFile,
  removeKept,
  textFile,
} from "../plugins/models/cache_folder.ts";
import { checkPart } from "../plugins/models/cache_parts.ts";
import { readText, type SavedText } from "../plugins/models/saved_texts.ts";
import { reasonOf } from "../plugins/sealed.ts";
import { FileInvalid } from "../runtime/errors.ts";
import { note, print, printJson, sizeInWords, table } from "./output.ts";
import { join } from "node:path";

/** All that `caches` can be told. */
export interface CachesVerbFlags {
  readonly dir: string;
  /** Some of them; all by default. */
  readonly names: ReadonlyArray<string>;
  readonly json: boolean;
}

/** What is in a folder of these names, all of which must be there, and why what else is there cannot be read. */
const keptOf = Effect.fnUntraced(function* ({ dir, names }: CachesVerbFlags) {
  const refuse = (needed: string, found: string) =>
    new FileInvalid({ attempted: "look for caches in", file: dir, needed, found });
  const skipped = new Map<string, string>();
  const all = yield* Effect.tryPromise({
    try: () => keptIn(dir, (name, reason) => void skipped.set(name, reason)),
    catch: (cause) =>
      refuse(
        "it must be a folder of --caches",
        cause instanceof Deno.errors.NotFound ? "nothing" : reasonOf(cause),
      ),
  });
  const missing = names.find((name) => all.every((kept) => kept.name !== name));
  if (missing !== undefined) {
    return yield* refuse(
      `it must have ${missing}`,
      skipped.get(missing) ?? (all.map(({ name }) => name).join(", ") || "none"),
    );
  }
  return names.length === 0
    ? { kept: all, skipped }
    : { kept: all.filter(({ name }) => names.includes(name)), skipped: new Map<string, string>() };
});

/** The same, where what cannot be read is only said. */
const readableOf = Effect.fnUntraced(function* (flags: CachesVerbFlags) {
  const { kept, skipped } = yield* keptOf(flags);
  for (const [name, reason] of skipped) {
    yield* note(`annulus: cannot read "${join(flags.dir, name)}": ${reason}`);
  }
  return kept;
});

/** What the file of a text says, or what is wrong with it. */
const textOf = (dir: string, { name, finished }: Kept): Promise<SavedText | string | undefined> =>
  finished ? readText(join(dir, name, textFile), name).catch(reasonOf) : Promise.resolve(undefined);

/** What `list` says of one. */
const listed = async (dir: string, kept: Kept) => {
  const { name, bytes, used, parts } = kept;
  const text = await textOf(dir, kept);
  const head = typeof text === "object" ? text.head : undefined;
  return {
    ...{ name, bytes, used: new Date(used).toISOString(), parts_here: parts.length },
    ...(head === undefined ? {} : {
      ...{ tokens: head.tokens, hash: head.hash, model: head.model, annulus: head.version },
      ...{ format: head.shape.dtype, ring: head.parts.length, on_nodes: head.apart },
    }),
    ...(typeof text === "string" ? { wrong: text } : {}),
  };
};

/** What there is. */
export const listCaches = Effect.fn("listCaches")(function* (flags: CachesVerbFlags) {
  const kept = yield* readableOf(flags);
  const all = yield* Effect.promise(() => Promise.all(kept.map((one) => listed(flags.dir, one))));
  if (flags.json) return yield* printJson(all);
  if (all.length === 0) return yield* print("no caches");
  yield* print(table([
    ["NAME", "TOKENS", "FORMAT", "PARTS", "SIZE", "MODEL", "LAST USED"],
    ...all.map((one) => [
      one.name,
      String(one.tokens ?? "?"),
      one.format ?? "?",
      one.ring === undefined
        ? `${one.parts_here} here`
        : one.on_nodes
        ? `${one.ring} on nodes`
        : `${one.parts_here} of ${one.ring}`,
      sizeInWords(one.bytes),
      one.model?.slice(0, 12) ?? "?",
      one.used.slice(0, 19).replace("T", " "),
    ]),
  ]));
});

/** What is wrong with one of them, file by file. */
const faultsOf = async (dir: string, kept: Kept): Promise<ReadonlyArray<string>> => {
  const text = await textOf(dir, kept);
  if (typeof text === "string") return [`${textFile}: ${text}`];
  if (!kept.finished && kept.parts.length === 0) return ["it was never finished"];
  const parts = text === undefined || text.head.apart
    ? kept.parts
    : Array.from(text.head.parts.keys());
  const faults: Array<string> = [];
  for (const part of parts) {
    const file = partFile(part);
    try {
      const { sum, name, part: which } = await checkPart(join(dir, kept.name, file));
      if (name !== kept.name || which !== part) throw new Error(`it is part ${which} of ${name}`);
      if (text !== undefined && text.head.parts[part]?.sum !== sum) {
        throw new Error("it is not the one that was kept with the rest");
      }
    } catch (cause) {
      const found = cause instanceof Deno.errors.NotFound ? "no such file" : reasonOf(cause);
      faults.push(`${file}: ${found}`);
    }
  }
  return faults;
};

/** Reads all of it, and says what is not as it was; true where all is. */
export const verifyCaches = Effect.fn("verifyCaches")(function* (flags: CachesVerbFlags) {
  const { kept, skipped } = yield* keptOf(flags);
  const read = yield* Effect.forEach(
    kept,
    (one) =>
      Effect.map(
        Effect.promise(() => faultsOf(flags.dir, one)),
        (wrong) => ({ name: one.name, ok: wrong.length === 0, wrong }),
      ),
  );
  const all = [
    ...read,
    ...Array.from(skipped, ([name, why]) => ({ name, ok: false, wrong: [why] })),
  ];
  if (flags.json) yield* printJson(all);
  else {
    for (const { name, ok, wrong } of all) {
      yield* print(`${ok ? "✓" : "✗"} ${name}${ok ? "" : `: ${wrong.join("; ")}`}`);
    }
    if (all.length === 0) yield* print("no caches");
  }
  return all.every(({ ok }) => ok);
});

/** Removes them, as far as they are here, and says what is elsewhere. */
export const removeCaches = Effect.fn("removeCaches")(function* (flags: CachesVerbFlags) {
  const kept = yield* readableOf(flags);
  const apart: Array<string> = [];
  yield* Effect.promise(async () => {
    for (const one of kept) {
      const text = await textOf(flags.dir, one);
      if (typeof text === "object" && text.head.apart) apart.push(one.name);
      await removeKept(flags.dir, one.name);
    }
  });
  const [names, bytes] = [
    kept.map(({ name }) => name),
    kept.reduce((sum, { bytes }) => sum + bytes, 0),
  ];
  if (flags.json) return yield* printJson({ removed: names, bytes, on_nodes: apart });
  yield* print(
    `${names.length} removed, ${sizeInWords(bytes)}${
      apart.length === 0
        ? ""
        : `; keys and values of ${apart.length} stay with their nodes until those need the room ` +
          "(--caches-limit), or are told the same"
    }`,
  );
});
