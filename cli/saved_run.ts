/**
 * The folder of `--checkpoint`: what the run was told, and the checkpoints of each layer. Whoever goes on with it must get
 * the same inputs, which is compared before anything is merged.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { dirname, join, parse } from "node:path";
import { crc32 } from "node:zlib";
import { Effect, Result, Schema, type Scope } from "effect";
import { checkpointFiles, forgetCheckpoints } from "../plugins/checkpoint_files.ts";
import type { SafetensorsFile } from "../plugins/safetensors.ts";
import { settle } from "../plugins/sealed.ts";
import type { Checkpoints } from "../runtime/checkpoint.ts";
import { FileInvalid, type InvalidProblem, type VariantInvalid } from "../runtime/errors.ts";
import { cardOf, type Job, planOfJob } from "../runtime/job.ts";
import { manifestOf } from "../runtime/manifest.ts";
import { requiredOf } from "../runtime/standing.ts";
import { version } from "../runtime/version.ts";
import { AttendArguments } from "./attend_arguments.ts";
import { note } from "./output.ts";

/** The file of a run, in its folder, and the one that whoever works on it has locked. */
const [runName, lockName] = ["run.json", "lock"] as const;

const SavedRun = Schema.Struct({
  annulus: Schema.Literal("run 1"),
  version: Schema.String,
  /** Tells its checkpoints from those of a run with the same problem. */
  id: Schema.String,
  args: AttendArguments,
  ring: Schema.Natural,
  /** By layer, what makes it this job and no other. */
  jobs: Schema.Array(Schema.String),
  /** CRC-32 of the tensors of the input file. */
  input: Schema.Number,
  /** Where its results are until they are all there. */
  part: Schema.String,
});
/** A run that can go on. */
export type SavedRun = typeof SavedRun.Type;

const json = Schema.fromJsonString(SavedRun);
const [encode, decode] = [Schema.encodeSync(json), Schema.decodeUnknownResult(json)];

/** What to keep of a run, and where. */
export interface KeepOptions {
  readonly folder: string;
  /** Blocks of a rank from one checkpoint to the next. */
  readonly every: number | undefined;
  readonly args: AttendArguments;
  /** How an earlier run began, with which this one goes on. */
  readonly went: SavedRun | undefined;
}

/** So many checkpoints a rank where nobody said how often: they cost as much as its rows each time. */
const usually = 8;

/** The same for two jobs that give the same result. */
const fingerprint = (job: Job): string =>
  createHash("sha256")
    .update(JSON.stringify({ ...cardOf(job), run: "", epoch: 0, chunkBytes: 0 }))
    .digest("hex");

const invalid = (attempted: string, file: string) => (needed: string, found: string) =>
  new FileInvalid({ attempted, file, needed, found });

const isThere = (cause: unknown) => !(cause instanceof Deno.errors.NotFound);

/** The run of a folder. */
export const readRun = Effect.fn("readRun")(function* (folder: string) {
  const path = join(folder, runName);
  const refuse = invalid("go on from", path);
  const text = yield* Effect.tryPromise({
    try: () => Deno.readTextFile(path),
    catch: (cause) =>
      refuse(
        "it must be what `attend --checkpoint DIR` writes",
        isThere(cause) ? String(cause) : "no such file; a run that ended well leaves none",
      ),
  });
  const decoded = decode(text);
  if (Result.isSuccess(decoded)) return decoded.success;
  return yield* refuse("it must be what `attend --checkpoint DIR` writes", decoded.failure.message);
});

/** Only its user may read what is in a run's folder: they may be the only one who may read the input. */
const [folderMode, fileMode] = [0o700, 0o600];

const writeRun = async (folder: string, run: SavedRun): Promise<void> => {
  const part = join(folder, `.${runName}.${crypto.randomUUID().slice(0, 8)}.part`);
  try {
    await Deno.writeTextFile(part, encode(run), { createNew: true, mode: fileMode });
    {
      using file = await Deno.open(part, { write: true });
      await file.sync();
    }
    await Deno.rename(part, join(folder, runName));
  } catch (cause) {
    await Deno.remove(part).catch(() => {}); // it was never there
    throw cause;
  }
  await settle(folder);
};

/** Elements that are read at once. */
const pieceElements = 2 ** 20;

/** CRC-32 of all tensors, with their names and shapes. */
const sumOf = Effect.fnUntraced(function* (file: SafetensorsFile) {
  let sum = 0;
  for (const [name, { dtype, shape }] of file.tensors) {
    sum = crc32(JSON.stringify([name, dtype, shape]), sum);
    const all = shape.reduce((a, b) => a * b, 1);
    for (let offset = 0; offset < all; offset += pieceElements) {
      const length = Math.min(pieceElements, all - offset);
      sum = crc32(yield* file.read(name, [{ offset, length }]), sum);
    }
  }
  return sum;
});

/** Keeps other processes away from a folder until the scope ends, however it does. */
const lock = Effect.fnUntraced(function* (folder: string) {
  const file = yield* Effect.acquireRelease(
    Effect.promise(() =>
      Deno.open(join(folder, lockName), { create: true, write: true, mode: fileMode })
        .catch((cause) => cause instanceof Error ? cause.message : String(cause))
    ),
    (file) => Effect.sync(() => typeof file === "string" || file.close()),
  );
  if (typeof file === "string") return file;
  const ours = yield* Effect.promise(() => file.tryLock(true));
  return ours ? undefined : "another process at work on it";
});

/** What of a name is there that another run, or somebody else, has left. */
const otherThings = async (folder: string): Promise<string | undefined> => {
  const names = await Array.fromAsync(Deno.readDir(folder), ({ name }) => name);
  if (names.includes(runName)) {
    return "a run; `annulus resume` goes on with it, unless you remove it";
  }
  const other = names.find((name) => name !== lockName);
  return other && `"${other}" in it`;
};

/** Prepares the folder for these jobs, or refuses it, and gives the checkpoints of each layer. */
export const keepRun = Effect.fn("keepRun")(function* (
  { folder, every, args, went }: KeepOptions,
  file: SafetensorsFile,
  part: string,
  jobs: ReadonlyArray<Job>,
): Effect.fn.Return<
  {
    readonly checkpointsOf: (
      layer: number,
    ) => Effect.Effect<Checkpoints, InvalidProblem | VariantInvalid>;
    /** All is done: leaves nothing behind. */
    readonly forget: Effect.Effect<void>;
  },
  FileInvalid,
  Scope.Scope
> {
  const layerOf = (layer: number) => join(folder, `layer-${layer}`);
  const refuse = invalid(went === undefined ? "keep checkpoints in" : "go on from", folder);
  const needed = "it must be a folder of its own, which may be written to";
  /** Fails with what `work` gives or throws. */
  const unless = (work: () => Promise<string | undefined>) =>
    Effect.tryPromise({
      try: work,
      catch: (cause) => refuse(needed, cause instanceof Error ? cause.message : String(cause)),
    }).pipe(
      Effect.flatMap((found) =>
        found === undefined ? Effect.void : Effect.fail(refuse(needed, found))
      ),
    );

  if (went === undefined) {
    yield* unless(async () => {
      await Deno.mkdir(folder, { recursive: true, mode: folderMode });
      return undefined;
    });
  }
  const busy = yield* lock(folder);
  if (busy !== undefined) return yield* refuse(needed, busy);
  if (went === undefined) yield* unless(() => otherThings(folder));

  const run: SavedRun = {
    ...{ annulus: "run 1", version, id: went?.id ?? crypto.randomUUID() },
    // Whoever may read the folder is not to learn a password from it.
    args: { ...args, nats: args.nats?.replace(/\/\/[^@/]*@/, "//") },
    ring: jobs[0]!.weights.length,
    jobs: jobs.map(fingerprint),
    input: yield* sumOf(file),
    part,
  };
  if (went !== undefined) {
    if (went.input !== run.input) {
      return yield* refuse(`"${args.input}" must be as it was`, "other tensors or values in it");
    }
    const layer = run.jobs.findIndex((job, i) => job !== went.jobs[i]);
    if (layer >= 0 || run.version !== went.version) {
      return yield* refuse(
        `annulus ${went.version} and the attention that the run began with`,
        layer < 0 ? `annulus ${run.version}` : `another problem in layer ${layer}`,
      );
    }
    // A driver that was killed has left it there.
    const { dir, base } = parse(part);
    const left = parse(went.part);
    if (left.dir === dir && left.base.length === base.length && left.ext === ".part") {
      yield* Effect.promise(() => Deno.remove(went.part).catch(() => {})); // or it has not
    }
  }
  yield* unless(async () => {
    await writeRun(folder, run);
    return undefined;
  });
  return {
    checkpointsOf: Effect.fnUntraced(function* (layer) {
      const job = jobs[layer]!;
      const plan = yield* planOfJob(job);
      const { restored } = manifestOf(job);
      const blocks = Math.max(...plan.ranks.map((mine) => requiredOf(mine).length));
      return yield* checkpointFiles({
        folder: layerOf(layer),
        job: `${run.id} ${run.jobs[layer]!}`,
        bytes: plan.ranks.map((mine) => {
          const { o, lse } = restored(mine);
          return { o: o.bytes, lse: lse.bytes };
        }),
        every: every ?? Math.max(1, Math.ceil(blocks / usually)),
        tell: (words) => note(`annulus: ${words}`),
      });
    }),
    forget: Effect.promise(async () => {
      // The results have their name there; now it must last.
      await settle(dirname(args.out)).catch(() => {}); // or nobody may ask for that
      for (const layer of jobs.keys()) await forgetCheckpoints(layerOf(layer), run.ring);
      for (const name of [runName, lockName]) {
        await Deno.remove(join(folder, name)).catch(() => {}); // somebody else did
      }
      await Deno.remove(folder).catch(() => {}); // what is in it is not ours
    }),
  };
});
