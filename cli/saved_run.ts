/**
 * The folder of `--checkpoint`: what the run was told, and the checkpoints of each layer. Whoever goes on with it must get
 * the same inputs, which is compared before anything is merged.
 *
 * @module
 */
import { join } from "node:path";
import { createHash } from "node:crypto";
import { Effect, Result, Schema } from "effect";
import { checkpointFiles } from "../plugins/checkpoint_files.ts";
import type { Checkpoints } from "../runtime/checkpoint.ts";
import { FileInvalid, type InvalidProblem, type VariantInvalid } from "../runtime/errors.ts";
import { cardOf, type Job, planOfJob } from "../runtime/job.ts";
import { manifestOf } from "../runtime/manifest.ts";
import { requiredOf } from "../runtime/standing.ts";
import { version } from "../runtime/version.ts";
import { AttendArguments } from "./attend_arguments.ts";
import { note } from "./output.ts";

/** The file of a run, in its folder. */
const runName = "run.json";

const SavedRun = Schema.Struct({
  annulus: Schema.Literal("run 1"),
  version: Schema.String,
  args: AttendArguments,
  ring: Schema.Natural,
  /** By layer, what makes it this job and no other. */
  jobs: Schema.Array(Schema.String),
  /** The input file, as it was. */
  input: Schema.Struct({ bytes: Schema.Number, modified: Schema.Number }),
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

const writeRun = async (path: string, run: SavedRun): Promise<void> => {
  const part = `${path}.part`;
  await Deno.writeTextFile(part, encode(run));
  using file = await Deno.open(part, { write: true });
  await file.sync();
  await Deno.rename(part, path);
};

/** Prepares the folder for these jobs, or refuses it, and gives the checkpoints of each layer. */
export const keepRun = Effect.fn("keepRun")(function* (
  { folder, every, args, went }: KeepOptions,
  jobs: ReadonlyArray<Job>,
): Effect.fn.Return<
  {
    readonly checkpointsOf: (
      layer: number,
    ) => Effect.Effect<Checkpoints, InvalidProblem | VariantInvalid>;
    /** All is done: leaves nothing behind. */
    readonly forget: Effect.Effect<void>;
  },
  FileInvalid
> {
  const path = join(folder, runName);
  const layerOf = (layer: number) => join(folder, `layer-${layer}`);
  const { size, mtime } = yield* Effect.promise(() => Deno.stat(args.input));
  const input = { bytes: size, modified: mtime?.getTime() ?? 0 };
  const run: SavedRun = {
    ...{ annulus: "run 1", version, args, ring: jobs[0]!.weights.length, input },
    jobs: jobs.map(fingerprint),
  };
  if (went === undefined) {
    const refuse = invalid("keep checkpoints in", folder);
    yield* Effect.tryPromise({
      try: async () => {
        await Deno.mkdir(folder, { recursive: true });
        const before = await Deno.stat(path).then(() => true, isThere);
        if (before) throw new Error("one; `annulus resume` goes on with it");
        await writeRun(path, run);
      },
      catch: (cause) =>
        refuse(
          "it must be writable and of no other run",
          cause instanceof Error ? cause.message : String(cause),
        ),
    });
  } else {
    const refuse = invalid("go on from", path);
    const words = ({ bytes, modified }: SavedRun["input"]) =>
      `${bytes} bytes of ${new Date(modified).toISOString()}`;
    if (words(went.input) !== words(input)) {
      return yield* refuse(
        `"${args.input}" must be as it was, ${words(went.input)}`,
        words(input),
      );
    }
    const layer = run.jobs.findIndex((job, i) => job !== went.jobs[i]);
    if (layer >= 0 || run.version !== went.version) {
      return yield* refuse(
        `annulus ${went.version} and the attention and plugins that the run began with`,
        layer < 0 ? `annulus ${run.version}` : `another problem in layer ${layer}`,
      );
    }
  }
  return {
    checkpointsOf: Effect.fnUntraced(function* (layer) {
      const job = jobs[layer]!;
      const plan = yield* planOfJob(job);
      const { restored } = manifestOf(job);
      const blocks = Math.max(...plan.ranks.map((mine) => requiredOf(mine).length));
      return yield* checkpointFiles({
        folder: layerOf(layer),
        job: run.jobs[layer]!,
        bytes: plan.ranks.map((mine) => {
          const { o, lse } = restored(mine);
          return { o: o.bytes, lse: lse.bytes };
        }),
        every: every ?? Math.max(1, Math.ceil(blocks / usually)),
        tell: (words) => note(`annulus: ${words}`),
      });
    }),
    forget: Effect.promise(async () => {
      for (const layer of jobs.keys()) {
        await Deno.remove(layerOf(layer), { recursive: true }).catch(() => {}); // none was kept
      }
      await Deno.remove(path).catch(() => {}); // somebody else did
      await Deno.remove(folder).catch(() => {}); // what is in it is not ours
    }),
  };
});
