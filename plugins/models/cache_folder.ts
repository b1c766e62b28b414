/**
 * A folder of texts' keys and values: a folder for each of them, with the parts that are here, and where a driver made it
 * with the text's own file. What was used longest ago goes first where there is a limit. Several processes may use one.
 *
 * @module
 */
import { join } from "node:path";
import { Effect, type Scope } from "effect";
import { FileInvalid } from "../../runtime/errors.ts";
import { reasonOf, Sealing, settle } from "../sealed.ts";

/** What is in the folder of a text: the file of its own, and those of its parts. */
export const textFile = "text.cache";
/** The file of a part. */
export const partFile = (part: number): string => `rank-${part}.cache`;
/** A driver has begun a text here, and the parts beside this are that text's: never finished where its own file is not. */
const markFile = "text.begun";

const ours = /^[0-9a-f]{16}-[0-9a-f]{8}$/;
const partName = /^rank-(\d+)\.cache$/;
const torn = /^\..*\.[0-9a-f]{8}\.part$/;
const lockName = "lock";

/** Only its user may read what is in it: it tells the text. */
const [folderMode, fileMode] = [0o700, 0o600];

/** What is there of one text. */
export interface Kept {
  readonly name: string;
  /** Of all its files. */
  readonly bytes: number;
  /** When it was made or used, in milliseconds. */
  readonly used: number;
  readonly parts: ReadonlyArray<number>;
  /** A driver finished it. */
  readonly finished: boolean;
  /** A driver began it here, and did not come to say that it is finished. */
  readonly begun: boolean;
}

const namesIn = async (folder: string): Promise<ReadonlyArray<string>> =>
  (await Array.fromAsync(Deno.readDir(folder), ({ name }) => name)).sort();

/**
 * All that is there, from what was used longest ago on.
 *
 * @param skipped Hears of what cannot be read, and why: others may have put it there, and it is in nobody's way.
 */
export const keptIn = async (
  folder: string,
  skipped: (name: string, reason: string) => void = () => {},
): Promise<ReadonlyArray<Kept>> => {
  const found: Array<Kept> = [];
  for (const name of (await namesIn(folder)).filter((name) => ours.test(name))) {
    const own = join(folder, name);
    try {
      const files = await namesIn(own);
      const sizes = await Promise.all(
        files.map((file) => Deno.stat(join(own, file)).then(({ size }) => size)),
      );
      found.push({
        name,
        bytes: sizes.reduce((sum, size) => sum + size, 0),
        used: (await Deno.stat(own)).mtime?.getTime() ?? 0,
        parts: files.flatMap((file) => partName.exec(file)?.[1] ?? []).map(Number),
        finished: files.includes(textFile),
        begun: files.includes(markFile),
      });
    } catch (cause) {
      // Or another process has removed it meanwhile.
      if (!(cause instanceof Deno.errors.NotFound)) skipped(name, reasonOf(cause));
    }
  }
  return found.sort((a, b) => a.used - b.used || (a.name < b.name ? -1 : 1));
};

/** Removes what is there of a text, and nothing that somebody else has put there. */
export const removeKept = async (folder: string, name: string): Promise<void> => {
  const own = join(folder, name);
  try {
    for (const file of await namesIn(own)) {
      if (file === textFile || file === markFile || partName.test(file) || torn.test(file)) {
        await Deno.remove(join(own, file));
      }
    }
    await Deno.remove(own);
  } catch {
    // Another process was faster, or something of somebody else is in it.
  }
};

/**
 * Removes what was begun and never finished, while nobody else uses the folder. Parts without a text are no sign of that:
 * a node has nothing else, and its folder may be a driver's another time.
 */
const sweep = async (folder: string): Promise<void> => {
  for (const { name, finished, begun } of await keptIn(folder)) {
    const own = join(folder, name);
    try {
      for (const file of await namesIn(own)) {
        if (torn.test(file)) await Deno.remove(join(own, file));
      }
    } catch {
      // What cannot be removed is no reason to keep nothing.
    }
    if (begun && !finished) await removeKept(folder, name);
  }
};

/** A folder that is in use. */
export class CacheFolder {
  readonly #path: string;
  readonly #limit: number;

  private constructor(path: string, limit: number) {
    this.#path = path;
    this.#limit = limit;
  }

  /**
   * Makes the folder where it is not there, and keeps others from tidying it up until the scope ends.
   *
   * @param limit Bytes of all that is in it.
   */
  static readonly open = Effect.fnUntraced(function* (
    path: string,
    limit: number,
  ): Effect.fn.Return<CacheFolder, FileInvalid, Scope.Scope> {
    const refuse = (cause: unknown) =>
      new FileInvalid({
        ...{ attempted: "keep caches in", file: path, found: reasonOf(cause) },
        needed: "it must be a folder that may be written to",
      });
    const file = yield* Effect.acquireRelease(
      Effect.tryPromise({
        try: async () => {
          await Deno.mkdir(path, { recursive: true, mode: folderMode });
          const name = join(path, lockName);
          return await Deno.open(name, { create: true, write: true, mode: fileMode });
        },
        catch: refuse,
      }),
      (file) => Effect.sync(() => file.close()),
    );
    yield* Effect.tryPromise({
      try: async () => {
        if (await file.tryLock(true)) await sweep(path);
        await file.lock(false);
      },
      catch: refuse,
    });
    return new CacheFolder(path, limit);
  });

  get path(): string {
    return this.#path;
  }

  get limit(): number {
    return this.#limit;
  }

  pathOf(name: string, file: string): string {
    return join(this.#path, name, file);
  }

  /** Lets go of what was used longest ago, but for one, until there is room for so many bytes; gives what went. */
  async makeRoom(bytes: number, but: string): Promise<ReadonlyArray<string>> {
    if (this.#limit === Infinity) return [];
    const all = await keptIn(this.#path);
    const needed = bytes + (all.find(({ name }) => name === but)?.bytes ?? 0);
    if (needed > this.#limit) {
      throw new Error(`it has ${needed} bytes, and --caches-limit is ${this.#limit}`);
    }
    let sum = all.reduce((sum, { bytes }) => sum + bytes, bytes);
    const gone: Array<string> = [];
    for (const { name, bytes } of all) {
      if (sum <= this.#limit) break;
      if (name === but) continue;
      await this.remove(name);
      gone.push(name);
      sum -= bytes;
    }
    return gone;
  }

  /** A driver is about to have parts of a text made: they are its own to remove until the text is finished. */
  async begin(name: string): Promise<void> {
    await Deno.mkdir(join(this.#path, name), { recursive: true, mode: folderMode });
    await Deno.writeTextFile(this.pathOf(name, markFile), "", { mode: fileMode });
  }

  /** The text has its file. */
  async finish(name: string): Promise<void> {
    await Deno.remove(this.pathOf(name, markFile)).catch(() => {}); // beside that file it says nothing
  }

  /** It was used just now. */
  async touch(name: string): Promise<void> {
    const now = new Date();
    await Deno.utime(join(this.#path, name), now, now).catch(() => {}); // it has gone meanwhile
  }

  remove(name: string): Promise<void> {
    return removeKept(this.#path, name);
  }

  /** Writes a sealed file of a text: whole, or not at all. */
  readonly write = Effect.fnUntraced(function* (
    this: CacheFolder,
    name: string,
    file: string,
    head: string,
    pieces: Iterable<Uint8Array>,
  ): Effect.fn.Return<{ readonly sum: number; readonly bytes: number }, FileInvalid, Scope.Scope> {
    const path = this.pathOf(name, file);
    const part = this.pathOf(name, `.${file}.${crypto.randomUUID().slice(0, 8)}.part`);
    const trying = <A>(work: () => Promise<A>) =>
      Effect.tryPromise({
        try: work,
        catch: (cause) =>
          new FileInvalid({
            ...{ attempted: "write", file: path, found: reasonOf(cause) },
            needed: "it must be written to its end",
          }),
      });
    yield* trying(() => Deno.mkdir(join(this.#path, name), { recursive: true, mode: folderMode }));
    const sealing = yield* Effect.acquireRelease(
      trying(() => Sealing.create(part, head)),
      (sealing) =>
        Effect.promise(async () => {
          sealing[Symbol.dispose]();
          await Deno.remove(part).catch(() => {}); // it has its name by now
        }),
    );
    for (const piece of pieces) yield* trying(() => sealing.write(piece));
    yield* trying(async () => {
      await sealing.seal();
      await Deno.rename(part, path);
      await settle(join(this.#path, name));
      await settle(this.#path);
    });
    return { sum: sealing.sum, bytes: sealing.written };
  }, Effect.scoped);
}
