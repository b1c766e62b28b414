/**
 * A job: all that a member of a run needs to know in order to take part, as small JSON. Everything else follows from
 * it by `planOf`.
 *
 * @module
 */
import { Effect, Schema } from "effect";
import type { InvalidProblem } from "./errors.ts";
import { layouts } from "./layout.ts";
import { type Plan, planOf } from "./plan.ts";
import { dtypes } from "./dtype.ts";

const Mask = Schema.Union([
  Schema.Struct({ kind: Schema.Literals(["full", "causal"]) }),
  Schema.Struct({ kind: Schema.Literal("window"), window: Schema.Number }),
]);

/** One piece of work on a ring. */
export const Job = Schema.Struct({
  /** 64 random bits, as 16 hexadecimal digits. */
  run: Schema.String.check(Schema.isPattern(/^[0-9a-f]{16}$/)),
  /** Version of the run's membership; nothing of another epoch is ever merged. */
  epoch: Schema.Natural,
  problem: Schema.Struct({
    batch: Schema.Number,
    tokens: Schema.Number,
    heads: Schema.Number,
    kvHeads: Schema.Number,
    headDim: Schema.Number,
    scale: Schema.Number,
    mask: Mask,
  }),
  layout: Schema.Literals([...layouts]),
  weights: Schema.Array(Schema.Number),
  /** Gradients are asked for as well. */
  gradients: Schema.Boolean,
  /** Format of the queries. */
  dtype: Schema.Literals([...dtypes]),
  /** Format in which K and V travel. */
  wire: Schema.Literals([...dtypes]),
  /** Payload bytes of a frame; a multiple of 8. */
  chunkBytes: Schema.Natural,
});

/** One piece of work on a ring. */
export type Job = typeof Job.Type;

/** A fresh run id. */
export const newRun: Effect.Effect<string> = Effect.sync(() =>
  [...crypto.getRandomValues(new Uint8Array(8))]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("")
);

const plans = new WeakMap<Job, ReturnType<typeof planOf>>();

/** The plan that every member computes from the job; once, where members share a process. */
export const planOfJob = (job: Job): Effect.Effect<Plan, InvalidProblem> =>
  Effect.suspend(() => {
    const plan = plans.get(job) ?? planOf(job);
    plans.set(job, plan);
    return Effect.fromResult(plan);
  });
