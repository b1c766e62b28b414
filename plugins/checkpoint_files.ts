/**
 * Checkpoints as files: two generations of each rank in a folder, the last one and the one before. A file is written
 * under another name, forced to the disk and renamed, so that whatever happens one of them is whole.
 *
 * Such a file (`sealed.ts`) has o, then lse.
 *
 * @module
 */
import { join } from "node:path";
import { Effect, Result, Schema, Semaphore } from "effect";
import type { Checkpoint, Checkpoints, Mark } from "../runtime/checkpoint.ts";
import { FileInvalid } from "../runtime/errors.ts";
import { readFully, readSealed, reasonOf, Sealing, settle } from "./sealed.ts";

/** What the first line of a file says. */
const Head = Schema.fromJsonString(Schema.Struct({
  annulus: Schema.Literal("checkpoint 1"),
  /** Of what: a rank of another job is none of ours. */
  job: Schema.String,
  rank: Schema.Natural,
  merged: Schema.Natural,
  final: Schema.Boolean,
  bytes: Schema.Struct({ o: Schema.Natural, lse: Schema.Natural }),
}));
const [encodeHead, decodeHead] = [Schema.encodeSync(Head), Schema.decodeUnknownResult(Head)];

/** A longer first line is none. */
const longestHead = 4096;

/** What a job's checkpoints have in common. */
export interface CheckpointFilesOptions {
  /** It need not be there yet. */
  readonly folder: string;
  /** The same for the same job alone. */
  readonly job: string;
  /** Bytes of each rank's o and lse. */
  readonly bytes: ReadonlyArray<{ readonly o: number; readonly lse: number }>;
  /** Blocks from one checkpoint to the next. */
  readonly every: number;
  /** Hears what was not kept or cannot be read, and why. */
  readonly tell: (words: string) => Effect.Effect<void>;
}

/** Throws an error that says what is wrong with a file, if it is not a whole checkpoint of that rank. */
const check = async (
  path: string,
  rank: number,
  { job, bytes }: Pick<CheckpointFilesOptions, "job" | "bytes">,
): Promise<Omit<Checkpoint, "read"> & { readonly begin: number }> => {
  let mark: Mark | undefined;
  const { begin } = await readSealed(path, {
    longestHead,
    head: (line) => {
      const head = decodeHead(line);
      if (Result.isFailure(head)) throw new Error("it does not begin as a checkpoint does");
      const { rank: whose, merged, final, bytes: { o, lse }, job: which } = head.success;
      const needed = bytes[rank]!;
      if (which !== job || whose !== rank || o !== needed.o || lse !== needed.lse) {
        throw new Error("it is of another rank or another run");
      }
      mark = { rank, merged, final };
      return o + lse;
    },
  });
  return { ...mark!, begin };
};

/** Removes what a driver that was killed had begun to write. */
const sweep = async (folder: string): Promise<void> => {
  try {
    for await (const { name } of Deno.readDir(folder)) {
      if (/^\.rank-\d+\.[0-9a-f]{8}\.part/.test(name)) await Deno.remove(join(folder, name));
    }
  } catch {
    // There is no folder yet, or whoever may not write to it will be told soon.
  }
};

/** Removes the checkpoints of so many ranks, and their folder if nothing else is in it. */
export const forgetCheckpoints = async (folder: string, ranks: number): Promise<void> => {
  await sweep(folder);
  for (let rank = 0; rank < ranks; rank++) {
    for (const path of [pathOf(folder, rank), formerOf(folder, rank)]) {
      await Deno.remove(path).catch(() => {}); // none was kept
    }
  }
  await Deno.remove(folder).catch(() => {}); // what is in it is not ours
};

const pathOf = (folder: string, rank: number) => join(folder, `rank-${rank}.checkpoint`);
const formerOf = (folder: string, rank: number) => join(folder, `rank-${rank}.former`);

/** The checkpoints of a job in a folder, with those that are there. */
export const checkpointFiles = Effect.fn("checkpointFiles")(function* (
  options: CheckpointFilesOptions,
) {
  const { folder, job, bytes, every, tell } = options;
  const there = new Map<number, Checkpoint & { readonly path: string }>();
  /** Two of one rank may end at once: its rows of the result, and the last checkpoint on its way to them. */
  const one = yield* Semaphore.make(1);
  yield* Effect.promise(() => sweep(folder));

  const noted = (path: string, { begin, ...mark }: Effect.Success<ReturnType<typeof open>>) => {
    const { o } = bytes[mark.rank]!;
    const read: Checkpoint["read"] = (tensor, from, to) =>
      Effect.tryPromise({
        try: async () => {
          using file = await Deno.open(path);
          await file.seek(begin + (tensor === "o" ? 0 : o) + from, Deno.SeekMode.Start);
          const part = new Uint8Array(to - from);
          await readFully(file, part);
          return part;
        },
        catch: (cause) =>
          new FileInvalid({
            attempted: "go on from",
            file: path,
            needed: "it must stay where it is",
            found: reasonOf(cause),
          }),
      });
    there.set(mark.rank, { ...mark, read, path });
  };
  const open = (path: string, rank: number) =>
    Effect.tryPromise({ try: () => check(path, rank, options), catch: (cause) => cause });

  for (const rank of bytes.keys()) {
    for (const path of [pathOf(folder, rank), formerOf(folder, rank)]) {
      const found = yield* Effect.result(open(path, rank));
      if (Result.isSuccess(found)) {
        noted(path, found.success);
        break;
      }
      if (found.failure instanceof Deno.errors.NotFound) continue;
      yield* tell(`cannot go on from "${path}": ${reasonOf(found.failure)}`);
    }
  }

  const keep = Effect.fnUntraced(function* ({ rank, merged, final }: Mark) {
    const temporary = join(folder, `.rank-${rank}.${crypto.randomUUID().slice(0, 8)}.part`);
    const { o, lse } = bytes[rank]!;
    let failed: unknown;
    let begin = 0;
    let file: Sealing | undefined;
    /** Nothing further is tried after something went wrong. */
    const unlessFailed = (work: () => Promise<void>) =>
      Effect.promise(async () => {
        if (failed !== undefined) return;
        await work().catch((cause) => void (failed = cause ?? "nothing"));
      });
    yield* Effect.addFinalizer(() =>
      Effect.promise(async () => {
        if (file === undefined) return;
        file[Symbol.dispose]();
        await Deno.remove(temporary).catch(() => {}); // it has its name by now
      })
    );
    yield* unlessFailed(async () => {
      // Not what it is in: without that, this would be nobody's.
      await Deno.mkdir(folder, { mode: 0o700 }).catch((cause) => {
        if (!(cause instanceof Deno.errors.AlreadyExists)) throw cause;
      });
      file = await Sealing.create(
        temporary,
        encodeHead({
          ...{ annulus: "checkpoint 1", job, rank, merged, final },
          bytes: { o, lse },
        }),
      );
      begin = file.written;
    });
    const commit = unlessFailed(async () => {
      if (merged <= (there.get(rank)?.merged ?? 0)) return;
      const rows = file!.written - begin;
      if (rows !== o + lse) throw new Error(`${rows} bytes are not a rank`);
      await file!.seal();
      const [path, former] = [pathOf(folder, rank), formerOf(folder, rank)];
      // One that is whole becomes the one before, and keeps its name until the other one takes it.
      if (there.get(rank)?.path === path) {
        const second = `${temporary}.former`;
        await Deno.link(path, second).then(
          () => Deno.rename(second, former),
          () => Deno.rename(path, former), // there are no links on every disk
        );
      }
      await Deno.rename(temporary, path);
      noted(path, { rank, merged, final, begin });
      await settle(folder);
    }).pipe(
      Effect.andThen(
        Effect.suspend(() =>
          failed === undefined
            ? Effect.void
            : tell(`no checkpoint of rank ${rank}, and the run goes on: ${reasonOf(failed)}`)
        ),
      ),
      Effect.uninterruptible,
      Semaphore.withPermits(one, 1),
    );
    return { write: (part: Uint8Array) => unlessFailed(() => file!.write(part)), commit };
  });

  return { every, of: (rank: number) => there.get(rank), keep } satisfies Checkpoints;
});
