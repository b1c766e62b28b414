/**
 * `annulus attend`: exact attention over a ring, from file to file.
 *
 * @module
 */
import { Effect } from "effect";
import { createSafetensors, openSafetensors } from "../plugins/safetensors.ts";
import { jobFor } from "../runtime/attend.ts";
import { drive, Sink, Source } from "../runtime/driver.ts";
import type { DType } from "../runtime/dtype.ts";
import type { Layout } from "../runtime/layout.ts";
import type { Variant } from "../runtime/variant.ts";
import { DeviceUnavailable } from "../runtime/errors.ts";
import { planOfJob } from "../runtime/job.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";
import { refusalFor, valueDimOf } from "../runtime/plan.ts";
import { version } from "../runtime/version.ts";
import { findCrew } from "./crews.ts";
import { type Input, openInput } from "./inputs.ts";
import { boundsFor, type ErrorFigures, judge, mustBeExact } from "./judge.ts";
import { judgeGradients } from "./judge_gradients.ts";
import { draw, note } from "./output.ts";
import { Progress } from "./progress.ts";
import { reportOf } from "./report.ts";
import { createTrace } from "./trace.ts";

/** All that `attend` can be told. */
export interface AttendFlags {
  readonly input: string;
  readonly out: string;
  readonly ring: number | undefined;
  readonly attention: ReadonlyArray<Variant>;
  readonly layout: Layout | undefined;
  readonly weights: ReadonlyArray<number> | undefined;
  readonly device: string;
  readonly link: "memory" | "nats";
  readonly nats: string | undefined;
  readonly cluster: string | undefined;
  readonly wire: DType | undefined;
  /** What to choose `device` from. */
  readonly devices: ReadonlyArray<DevicePlugin>;
  /** Files of plugins that nodes started for the run load as well. */
  readonly plugin: ReadonlyArray<string>;
  readonly trace: string | undefined;
  /** Rows of every rank that are compared with the float64 reference. */
  readonly verifyRows: number;
  /** Show progress on standard error. */
  readonly progress: boolean;
}

/** Gradients of a row take three times as long to judge, and those of a key as many again. */
const mostGradientRows = 32;

/** The format of what travels, in the file. */
const storedAs = ({ dtypes: { k, v, latent }, problem }: Input): DType =>
  problem.latent === undefined ? common(k, v) : latent;

/** The wider of two formats, or float32 where neither holds the other. */
const common = (a: DType, b: DType): DType => a === b ? a : "f32";

/** Runs the command and gives its report. Nothing is left at `out` unless all went well. */
export const attendFiles = Effect.fn("attendFiles")(function* (flags: AttendFlags) {
  const input = yield* openInput(flags.input, flags.attention);
  if (input.ignored.length > 0 && flags.progress) {
    yield* note(`annulus: ignoring tensors ${input.ignored.map((name) => `"${name}"`).join(", ")}`);
  }
  const { batch, tokens, heads, kvHeads, headDim } = input.problem;
  const gradients = (name: string, heads: number) =>
    input.gradients
      ? [{ name, dtype: "F32", shape: [batch, tokens, heads, headDim] } as const]
      : [];
  const writer = yield* createSafetensors(flags.out, [
    { name: "o", dtype: "F32", shape: [batch, tokens, heads, valueDimOf(input.problem)] },
    { name: "lse", dtype: "F32", shape: [batch, heads, tokens] },
    ...gradients("dq", heads),
    ...gradients("dk", kvHeads),
    ...gradients("dv", kvHeads),
  ], { format: `annulus ${version}` });
  const trace = flags.trace === undefined ? undefined : yield* createTrace(flags.trace);

  const crew = yield* findCrew(flags);
  const forwardOnly = crew.devices.find(({ gradients }) => !gradients);
  if (input.gradients && forwardOnly !== undefined) {
    return yield* new DeviceUnavailable({
      device: forwardOnly.name,
      needed: `a backward pass, since "${flags.input}" has a tensor "do"`,
      found: "attention alone; name another with --device",
    });
  }
  const stored = storedAs(input);
  const job = yield* jobFor(input.problem, { q: input.dtypes.q, kv: stored }, {
    ring: crew.ring,
    gradients: input.gradients,
    ...(flags.layout === undefined ? {} : { layout: flags.layout }),
    ...(flags.weights === undefined ? {} : { weights: flags.weights }),
    ...(flags.wire === undefined ? {} : { wire: flags.wire }),
  }).pipe(Effect.provideContext(crew.services));
  const plan = yield* planOfJob(job);
  const refusal = refusalFor(plan, crew.memory);
  if (refusal !== undefined) return yield* refusal;

  const terminal = Deno.stderr.isTerminal();
  const progress = new Progress(plan, terminal);
  const record = yield* drive(
    job,
    (interval) => flags.progress ? progress.see(interval) : Effect.void,
  ).pipe(
    Effect.provideContext(crew.services),
    Effect.provideService(Source, input.source),
    Effect.provideService(Sink, Sink.of({ write: writer.write })),
  );

  let error: ErrorFigures | undefined;
  if (flags.verifyRows > 0) {
    const result = yield* openSafetensors(writer.part);
    const tell = (share: number) =>
      flags.progress && terminal
        ? draw(`\x1b[2K\rcomparing with the float64 reference ${Math.round(100 * share)} %`)
        : Effect.void;
    const figures = {
      ...(yield* judge(input, result, plan, flags.verifyRows, tell)),
      ...(input.gradients
        ? yield* judgeGradients(input, result, plan, Math.min(flags.verifyRows, mostGradientRows))
        : {}),
    };
    if (flags.progress && terminal) yield* draw("\x1b[2K\r");
    const exact = job.wire === "f32" || job.wire === stored;
    const bounds = boundsFor(figures.largestLse, exact ? undefined : job.wire);
    yield* mustBeExact(figures, bounds);
    error = figures;
  }
  if (trace !== undefined) yield* trace.commit(record.timeline);
  yield* writer.commit;
  return reportOf(record, error);
}, Effect.scoped);
