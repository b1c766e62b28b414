/**
 * `annulus pull`: fetches a model's folder from the Hugging Face hub, or from another server with its API. What was there
 * already is not fetched again, what was cut goes on, and everything is checked.
 *
 * @module
 */
import { createHash, type Hash } from "node:crypto";
import { dirname, join } from "node:path";
import { Effect, Schedule, Schema } from "effect";
import { digestOf } from "../plugins/models/files.ts";
import { DownloadFailed } from "../runtime/errors.ts";
import { misuse } from "./command_line.ts";
import { draw, note, print, printJson, sizeInWords } from "./output.ts";

/** All that `pull` can be told. */
export interface PullFlags {
  /** ORG/NAME. */
  readonly name: string;
  readonly revision: string;
  /** Where to put it; a folder of the same name by default. */
  readonly out: string | undefined;
  /** Only look whether all is there. */
  readonly offline: boolean;
  /** Seconds in which some byte must come. */
  readonly silence: number;
  readonly json: boolean;
}

/** What of a repository a model needs. */
const wanted =
  /^([\w.-]*config\.json|tokenizer\.json|special_tokens_map\.json|chat_template\.jinja|(?!consolidated)[\w.-]+\.safetensors(\.index\.json)?)$/;

const Entries = Schema.Array(Schema.Struct({
  type: Schema.String,
  path: Schema.String,
  size: Schema.Natural,
  /** Of a Git blob. */
  oid: Schema.String,
  lfs: Schema.optionalKey(Schema.NullOr(Schema.Struct({ oid: Schema.String }))),
}));
type Entry = typeof Entries.Type[number];
const decodeEntries = Schema.decodeUnknownEffect(Entries);

/** The file that keeps, in the folder, what was fetched and checked. */
const listName = ".annulus-pull.json";

/** The hash that the hub has of a file: SHA-256 of large ones, Git's of the others. */
const hashFor = ({ size, lfs }: Entry): Hash =>
  lfs == null ? createHash("sha1").update(`blob ${size}\0`) : createHash("sha256");
const sumOf = ({ oid, lfs }: Entry): string => lfs?.oid ?? oid;

const sizeAt = (path: string): Promise<number> =>
  Deno.stat(path).then(({ size, isFile }) => isFile ? size : 0, () => 0);

/** A connection that was cut is tried again, from where it was. */
const tries = { times: 4, schedule: Schedule.exponential("200 millis") };

/** What timers know: for more milliseconds they do not wait at all. */
const longest = 2 ** 31 - 1;

/** Runs what waits for a server, and gives it up where that takes so many seconds, or with the outer signal. */
const listening = (seconds: number, outer: AbortSignal) => {
  const silent = new AbortController();
  const wait = async <A>(what: Promise<A>): Promise<A> => {
    const timer = setTimeout(
      () => silent.abort(new Error(`nothing came for ${seconds} seconds`)),
      Math.min(longest, 1000 * seconds),
    );
    try {
      return await what;
    } finally {
      clearTimeout(timer);
    }
  };
  return { signal: AbortSignal.any([silent.signal, outer]), wait };
};

/** The pieces of a body, each of which is waited for. */
async function* piecesOf(
  body: ReadableStream<Uint8Array<ArrayBuffer>>,
  wait: <A>(what: Promise<A>) => Promise<A>,
) {
  const pieces = body[Symbol.asyncIterator]();
  try {
    for (;;) {
      const { done, value } = await wait(pieces.next());
      if (done === true) return;
      yield value;
    }
  } finally {
    await pieces.return?.();
  }
}

/** Fetches what is missing. */
export const runPull = Effect.fn("runPull")(function* (flags: PullFlags) {
  const { name, revision, json } = flags;
  if (!/^[\w.-]+\/[\w.-]+$/.test(name)) {
    return yield* misuse(`pull needs ORG/NAME: found "${name}"`);
  }
  const endpoint = (Deno.env.get("HF_ENDPOINT") ?? "https://huggingface.co").replace(/\/$/, "");
  const token = Deno.env.get("HF_TOKEN");
  const folder = flags.out ?? name.split("/")[1]!;
  const offline = flags.offline || Deno.env.get("HF_HUB_OFFLINE") === "1";
  const failed = (file: string, needed: string) => (cause: unknown) =>
    cause instanceof DownloadFailed ? cause : new DownloadFailed({
      ...{ name, file, needed },
      found: cause instanceof Error ? cause.message : String(cause),
    });
  const list = join(folder, listName);

  const sumAt = (entry: Entry, path: string) =>
    Effect.tryPromise({
      try: () => digestOf(hashFor(entry), path),
      catch: failed(entry.path, "it must be readable"),
    });

  const whole = Effect.fnUntraced(function* (entries: ReadonlyArray<Entry>) {
    const missing: Array<Entry> = [];
    for (const entry of entries) {
      const path = join(folder, entry.path);
      const size = yield* Effect.promise(() => sizeAt(path));
      if (size !== entry.size) {
        missing.push(entry);
        continue;
      }
      if ((yield* sumAt(entry, path)) !== sumOf(entry)) missing.push(entry);
    }
    return missing;
  });

  if (offline) {
    const known = yield* Effect.tryPromise({
      try: async (): Promise<unknown> => JSON.parse(await Deno.readTextFile(list)),
      catch: failed(list, "offline, the folder must have been pulled before"),
    });
    const entries = yield* Effect.mapError(decodeEntries(known), failed(list, "its own list"));
    const [missing] = yield* whole(entries);
    if (missing !== undefined) {
      return yield* failed(missing.path, "offline, it must be there as it was")("another file");
    }
    return yield* json
      ? printJson({ folder, files: entries.length, fetched: 0 })
      : print(`${folder} is there: ${entries.length} files`);
  }

  const ask = (url: string, signal: AbortSignal, headers: Record<string, string> = {}) =>
    fetch(url, {
      signal,
      headers: { ...headers, ...(token === undefined ? {} : { authorization: `Bearer ${token}` }) },
    });
  const listed = yield* Effect.tryPromise({
    try: async (outer): Promise<unknown> => {
      const { signal, wait } = listening(flags.silence, outer);
      const all: Array<unknown> = [];
      let page = `${endpoint}/api/models/${name}/tree/${encodeURIComponent(revision)}`;
      for (;;) {
        const response = await wait(ask(page, signal));
        if (!response.ok || response.body === null) {
          await response.body?.cancel();
          throw new Error(`${response.status} ${response.statusText}`.trim());
        }
        const parts = await Array.fromAsync(piecesOf(response.body, wait));
        const entries: unknown = JSON.parse(await new Blob(parts).text());
        if (!Array.isArray(entries)) return entries;
        all.push(...entries);
        const [, next] = /<([^>]+)>;\s*rel="next"/.exec(response.headers.get("link") ?? "") ?? [];
        if (next === undefined) return all;
        page = new URL(next, page).href;
      }
    },
    catch: failed("its list of files", `${endpoint} must have it`),
  });
  const entries = (yield* Effect.mapError(
    decodeEntries(listed),
    failed("its list of files", "the hub's form"),
  )).filter(({ type, path }) => type === "file" && wanted.test(path));
  if (!entries.some(({ path }) => path === "config.json")) {
    return yield* failed("config.json", "a model must have it")("none");
  }
  yield* Effect.tryPromise({
    try: () => Deno.mkdir(folder, { recursive: true }),
    catch: failed(folder, "it must be a folder that can be made"),
  });
  const missing = yield* whole(entries);
  const all = missing.reduce((sum, { size }) => sum + size, 0);
  const terminal = Deno.stderr.isTerminal() && !json;
  let done = 0;
  for (const entry of missing) {
    const path = join(folder, entry.path);
    const part = `${path}.part`;
    const url = `${endpoint}/${name}/resolve/${encodeURIComponent(revision)}/${entry.path}`;
    const before = done;
    /** Goes on where an earlier try, or an earlier run, was cut. */
    const fetching = async (outer: AbortSignal) => {
      const { signal, wait } = listening(flags.silence, outer);
      await Deno.mkdir(dirname(path), { recursive: true });
      let at = await sizeAt(part);
      if (at > entry.size) at = 0;
      if (at < entry.size || entry.size === 0) {
        const response = await wait(ask(url, signal, at > 0 ? { range: `bytes=${at}-` } : {}));
        if (!response.ok || response.body === null) {
          await response.body?.cancel();
          throw new Error(`${response.status} ${response.statusText}`.trim());
        }
        // A server that does not know ranges sends all of it.
        if (response.status !== 206) at = 0;
        using file = await Deno.open(part, { write: true, create: true, truncate: at === 0 });
        await file.seek(at, Deno.SeekMode.Start);
        for await (const bytes of piecesOf(response.body, wait)) {
          for (let from = 0; from < bytes.length;) from += await file.write(bytes.subarray(from));
          at += bytes.length;
          done = before + at;
          if (at > entry.size) throw new Error(`more than its ${entry.size} bytes`);
          if (terminal) {
            Effect.runSync(draw(`\x1b[2K\r${sizeInWords(done)} of ${sizeInWords(all)}`));
          }
        }
      }
      if (at !== entry.size) throw new Error(`${at} of ${entry.size} bytes`);
    };
    const fetch = Effect.retry(
      Effect.tryPromise({
        try: fetching,
        catch: failed(entry.path, `${entry.size} bytes must come of it`),
      }),
      tries,
    );
    const goesOn = (yield* Effect.promise(() => sizeAt(part))) > 0;
    yield* fetch;
    // What was there may have been of another revision.
    if (goesOn && (yield* sumAt(entry, part)) !== sumOf(entry)) {
      yield* Effect.promise(() => Deno.remove(part));
      yield* fetch;
    }
    const sum = yield* sumAt(entry, part);
    if (sum !== sumOf(entry)) {
      yield* Effect.promise(() => Deno.remove(part));
      return yield* failed(entry.path, `its hash must be ${sumOf(entry)}`)(sum);
    }
    yield* Effect.promise(() => Deno.rename(part, path));
    done = before + entry.size;
    if (!json && !terminal) yield* note(`${entry.path}: ${sizeInWords(entry.size)}`);
  }
  yield* Effect.promise(() => Deno.writeTextFile(list, JSON.stringify(entries)));
  if (terminal) yield* draw("\x1b[2K\r");
  yield* json
    ? printJson({ folder, files: entries.length, fetched: missing.length, bytes: all })
    : print(`${folder}: ${entries.length} files, ${missing.length} of them fetched`);
});
