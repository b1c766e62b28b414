/**
 * A job: all that a member of a run needs to know in order to take part. Everything else follows from it by `planOf`.
 * Between processes it travels as small JSON, in which variants are names that each process looks up among its own.
 *
 * @module
 */
import { Effect, Result, Schema } from "effect";
import { dtypes } from "./dtype.ts";
import { Inference } from "./inference.ts";
import type { InvalidProblem, VariantInvalid } from "./errors.ts";
import { layouts } from "./layout.ts";
import { type Plan, planOf, type PlanSpec } from "./plan.ts";
import { Standing } from "./standing.ts";
import type { Definition } from "./variant.ts";

/** A variant by its name. */
const Use = Schema.Struct({
  name: Schema.String,
  /** Of its file; none for those that come with annulus. */
  hash: Schema.optionalKey(Schema.String),
  params: Schema.Record(Schema.String, Schema.Unknown),
});

const fields = {
  /** 64 random bits, as 16 hexadecimal digits. */
  run: Schema.String.check(Schema.isPattern(/^[0-9a-f]{16}$/)),
  /** Version of the run's membership; nothing of another epoch is ever merged. */
  epoch: Schema.Natural,
  layout: Schema.Literals([...layouts, "solved"]),
  weights: Schema.Array(Schema.Number),
  /** Gradients are asked for as well. */
  gradients: Schema.Boolean,
  /** Format of the queries. */
  dtype: Schema.Literals([...dtypes]),
  /** Format in which K and V travel. */
  wire: Schema.Literals([...dtypes]),
  /** Payload bytes of a frame; a multiple of 8. */
  chunkBytes: Schema.Natural,
  /** Each time that a rank has merged so many blocks, the driver gets what it has gathered; never, where it is absent. */
  checkpoint: Schema.optionalKey(Schema.Natural.check(Schema.isGreaterThan(0))),
  /** By rank, what it has already; nothing where the run begins. */
  standings: Schema.optionalKey(Schema.Array(Standing)),
};

const Fields = Schema.Struct(fields);

/** One piece of work on a ring. */
export interface Job extends PlanSpec, Readonly<typeof Fields.Type> {
  readonly gradients: boolean;
}

/** A job as it travels. */
export const JobCard = Schema.Struct({
  ...fields,
  problem: Schema.Struct({
    batch: Schema.Number,
    tokens: Schema.Number,
    heads: Schema.Number,
    kvHeads: Schema.Number,
    headDim: Schema.Number,
    scale: Schema.Number,
    attention: Schema.Array(Use),
    latent: Schema.optionalKey(
      Schema.Struct({ rank: Schema.Number, rope: Schema.Number, value: Schema.Number }),
    ),
  }),
});
/** A job as it travels. */
export type JobCard = typeof JobCard.Type;

/** Tables as plain arrays, which JSON has. */
const plain = (params: Readonly<Record<string, unknown>>) =>
  Object.fromEntries(
    Object.entries(params).map(([key, value]) => [
      key,
      ArrayBuffer.isView(value) ? Array.from(value as unknown as ArrayLike<number>) : value,
    ]),
  );

/** What to send of a job. */
export const cardOf = (job: Job): JobCard => ({
  ...job,
  problem: {
    ...job.problem,
    attention: job.problem.attention.map(({ definition: { name, hash }, params }) => ({
      name,
      ...(hash === undefined ? {} : { hash }),
      params: plain(params),
    })),
  },
});

/** The job that somebody sent, with the variants that are known here; or one sentence why it cannot be done. */
export const jobOf = (
  card: JobCard,
  known: ReadonlyArray<Definition>,
): Result.Result<Job, string> => {
  const attention = [];
  for (const { name, hash, params } of card.problem.attention) {
    const definition = known.find((one) => one.name === name);
    if (definition === undefined) {
      return Result.fail(`it has no attention "${name}"; its operator may add it with --plugin`);
    }
    if (definition.hash !== hash) {
      const [mine, theirs] = [definition.hash, hash].map((hash) => hash ?? "the one of annulus");
      return Result.fail(`its attention "${name}" is ${mine}, and the driver's is ${theirs}`);
    }
    attention.push({ definition, params });
  }
  return Result.succeed({ ...card, problem: { ...card.problem, attention } });
};

/** What a crew can be asked to do. */
export type Work = Job | Inference;

/** Whether that is to run a model. */
export const isInference = (work: Work): work is Inference => "kind" in work;

/** Work as it travels. */
export const WorkCard = Schema.Union([Inference, JobCard]);
/** Work as it travels. */
export type WorkCard = typeof WorkCard.Type;

/** A fresh run id. */
export const newRun: Effect.Effect<string> = Effect.sync(() =>
  [...crypto.getRandomValues(new Uint8Array(8))]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("")
);

const plans = new WeakMap<Job, ReturnType<typeof planOf>>();

/** The plan that every member computes from the job; once, where members share a process. */
export const planOfJob = (job: Job): Effect.Effect<Plan, InvalidProblem | VariantInvalid> =>
  Effect.suspend(() => {
    const plan = plans.get(job) ?? planOf(job);
    plans.set(job, plan);
    return Effect.fromResult(plan);
  });
