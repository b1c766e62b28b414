/**
 * `annulus attend`: exact attention over a ring, from file to file.
 *
 * @module
 */
import { Effect, Schedule } from "effect";
import {
  createSafetensors,
  openSafetensors,
  type SafetensorsWriter,
} from "../plugins/safetensors.ts";
import { jobFor } from "../runtime/attend.ts";
import { drive } from "../runtime/driver.ts";
import { Sink, Source } from "../runtime/exchange.ts";
import type { DType } from "../runtime/dtype.ts";
import type { Layout } from "../runtime/layout.ts";
import type { Variant } from "../runtime/variant.ts";
import { DeviceUnavailable } from "../runtime/errors.ts";
import { type Job, planOfJob } from "../runtime/job.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";
import { refusalFor, valueDimOf } from "../runtime/plan.ts";
import type { Interval } from "../runtime/timeline.ts";
import type { Checkpoints } from "../runtime/checkpoint.ts";
import { requiredOf } from "../runtime/standing.ts";
import { version } from "../runtime/version.ts";
import type { AccessFlags } from "./access.ts";
import { misuse } from "./command_line.ts";
import { findCrew, type ReadyCrew } from "./crews.ts";
import { type Input, inputOf } from "./inputs.ts";
import { boundsFor, judge, mustBeExact, mustBeJudgeable } from "./judge.ts";
import { judgeGradients } from "./judge_gradients.ts";
import { inLayer, type Layer, layerOf, layersOf } from "./layers.ts";
import { draw, note } from "./output.ts";
import { Progress } from "./progress.ts";
import { recoveryInWords, type Report, reportOf, reportOfLayers } from "./report.ts";
import { type KeepOptions, keepRun } from "./saved_run.ts";
import { createTrace } from "./trace.ts";
import { writeFlight } from "./why.ts";
import { FlightRecorder } from "../runtime/flight.ts";

/** All that `attend` can be told. */
export interface AttendFlags extends AccessFlags {
  readonly input: string;
  readonly out: string;
  readonly ring: number | undefined;
  /** Of each layer; where there are more layers than these, they are repeated. At least one. */
  readonly attentions: ReadonlyArray<ReadonlyArray<Variant>>;
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
  /** A folder for what the driver heard last, should the run fail. */
  readonly record: string | undefined;
  /** Rows of every rank that are compared with the float64 reference. */
  readonly verifyRows: number;
  /** What to keep of the run while it goes on. */
  readonly keep: KeepOptions | undefined;
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

/** Failures after which the same run may succeed, from what was kept of it. */
const passing: ReadonlyArray<string> = [
  "RankFailed",
  "LinkFailed",
  "LinkClosed",
  "FrameRejected",
  "ServerUnavailable",
  "FileInvalid", // a disk that is full, which can be helped
];

/** For so long nodes may not know yet that the driver before is gone. */
const waitForNodes = { times: 8, schedule: Schedule.spaced("2 seconds") } as const;

/** What `attend` has ready for all layers. */
interface Ready {
  readonly flags: AttendFlags;
  readonly crew: ReadyCrew;
  readonly writer: SafetensorsWriter;
}

/** A layer whose tensors fit together. */
interface InputLayer extends Layer {
  readonly input: Input;
}

/** What a layer's results are. */
const resultsOf = ({ prefix, input: { problem, gradients } }: InputLayer) => {
  const { batch, tokens, heads, kvHeads, headDim } = problem;
  const tensor = (name: string, ...shape: ReadonlyArray<number>) =>
    ({ name: prefix + name, dtype: "F32", shape }) as const;
  return [
    tensor("o", batch, tokens, heads, valueDimOf(problem)),
    tensor("lse", batch, heads, tokens),
    ...(gradients
      ? [
        tensor("dq", batch, tokens, heads, headDim),
        tensor("dk", batch, tokens, kvHeads, headDim),
        tensor("dv", batch, tokens, kvHeads, headDim),
      ]
      : []),
  ];
};

/** The job of a layer, once it is known to fit the crew. */
const jobOf = Effect.fnUntraced(function* ({ flags, crew }: Ready, input: Input) {
  const forwardOnly = crew.equipment.devices.find(({ gradients }) => !gradients);
  if (input.gradients && forwardOnly !== undefined) {
    return yield* new DeviceUnavailable({
      device: forwardOnly.name,
      needed: `a backward pass, since "${flags.input}" has a tensor "do"`,
      found: "attention alone; name another with --device",
    });
  }
  const job = yield* jobFor(input.problem, { q: input.dtypes.q, kv: storedAs(input) }, {
    ring: crew.ring,
    gradients: input.gradients,
    ...(flags.layout === undefined ? {} : { layout: flags.layout }),
    ...(flags.weights === undefined ? {} : { weights: flags.weights }),
    ...(flags.wire === undefined ? {} : { wire: flags.wire }),
  }).pipe(Effect.provideContext(crew.services));
  const plan = yield* planOfJob(job);
  const refusal = refusalFor(plan, crew.equipment.memory(crew.ring));
  if (refusal !== undefined) return yield* refusal;
  if (flags.verifyRows > 0) yield* mustBeJudgeable(plan.attention, input.gradients);
  return job;
});

/** Computes one layer, and judges it where that was asked for. */
const attendLayer = Effect.fnUntraced(function* (
  { flags, crew, writer }: Ready,
  { prefix, input }: InputLayer,
  job: Job,
  checkpoints: Checkpoints | undefined,
) {
  const plan = yield* planOfJob(job);
  const kept = plan.ranks.reduce((sum, { rank }) => sum + (checkpoints?.of(rank)?.merged ?? 0), 0);
  if (kept > 0) {
    const all = plan.ranks.reduce((sum, mine) => sum + requiredOf(mine).length, 0);
    yield* note(`annulus: ${kept} of ${all} blocks are merged already`);
  }
  const terminal = Deno.stderr.isTerminal();
  const progress = new Progress(plan, terminal);
  const flight = yield* FlightRecorder.start(plan);
  const record = yield* drive(job, {
    interval: (interval) =>
      Effect.andThen(
        flight.interval(interval),
        flags.progress ? progress.see(interval) : Effect.void,
      ),
    beat: flight.beat,
    recovered: (recovery) =>
      Effect.andThen(flight.recovered(recovery), note(`annulus: ${recoveryInWords(recovery)}`)),
  }, checkpoints).pipe(
    Effect.tapError(({ message }) =>
      flags.record === undefined ? Effect.void : writeFlight(flags.record, flight, message)
    ),
    Effect.provideContext(crew.services),
    Effect.provideService(Source, input.source),
    Effect.provideService(
      Sink,
      Sink.of({ write: (tensor, ...of) => writer.write(prefix + tensor, ...of) }),
    ),
  );
  if (flags.verifyRows === 0) return { record, report: reportOf(record, undefined) };

  const result = layerOf(yield* openSafetensors(writer.part), prefix).file;
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
  const exact = job.wire === "f32" || job.wire === storedAs(input);
  const bounds = boundsFor(figures.largestLse, exact ? undefined : job.wire);
  yield* mustBeExact(figures, bounds);
  return { record, report: reportOf(record, figures) };
});

/**
 * Runs the command and gives its report, or those of several layers. Nothing is left at `out` unless all went well.
 */
export const attendFiles = Effect.fn("attendFiles")(function* (flags: AttendFlags) {
  const file = yield* openSafetensors(flags.input);
  const found = yield* layersOf(file);
  const { attentions } = flags;
  if (attentions.length > found.length) {
    return yield* misuse(
      `--attention is for one layer each: found ${attentions.length} of them, and in ` +
        `"${flags.input}" ${found.length === 1 ? "one layer" : `${found.length} layers`}`,
    );
  }
  const layers = yield* Effect.forEach(
    found,
    (layer, i) =>
      inputOf(layer.file, attentions[i % attentions.length]!).pipe(
        Effect.map((input): InputLayer => ({ ...layer, input })),
        Effect.mapError(inLayer(layer)),
      ),
  );
  const read = new Set(layers.flatMap(({ nameOf, input }) => [...input.read].map(nameOf)));
  const ignored = [...file.tensors.keys()].filter((name) => !read.has(name));
  if (ignored.length > 0) {
    yield* note(`annulus: ignoring tensors ${ignored.map((name) => `"${name}"`).join(", ")}`);
  }
  const writer = yield* createSafetensors(flags.out, layers.flatMap(resultsOf), {
    format: `annulus ${version}`,
  });
  const trace = flags.trace === undefined ? undefined : yield* createTrace(flags.trace);

  const crew = findCrew(flags);
  const ready = {
    flags,
    crew: yield* flags.keep?.went === undefined ? crew : Effect.retry(crew, {
      ...waitForNodes,
      while: (error) => error._tag === "NotEnoughNodes" && error.found + error.busy >= error.needed,
    }),
    writer,
  };
  // All of them before any, so that the last one does not fail after hours.
  const jobs = yield* Effect.forEach(layers, ({ input }) => jobOf(ready, input));
  const kept = flags.keep === undefined
    ? undefined
    : yield* keepRun(flags.keep, file, writer.part, jobs);
  const timeline: Array<Interval> = [];
  const reports: Array<Report> = [];
  let before = 0;
  for (const [i, layer] of layers.entries()) {
    const checkpoints = yield* kept?.checkpointsOf(i) ?? Effect.succeed(undefined);
    const { record, report } = yield* attendLayer(ready, layer, jobs[i]!, checkpoints).pipe(
      Effect.mapError(inLayer(layer)),
      Effect.tapError(({ _tag }) =>
        flags.keep === undefined ? Effect.void : note(
          passing.includes(_tag)
            ? `annulus: \`annulus resume ${flags.keep.folder}\` goes on from here`
            : `annulus: what was kept is of no use with that: remove "${flags.keep.folder}"`,
        )
      ),
    );
    for (const interval of record.timeline) {
      timeline.push({ ...interval, begin: interval.begin + before, end: interval.end + before });
    }
    before += 1000 * record.seconds;
    reports.push(report);
  }
  if (trace !== undefined) yield* trace.commit(timeline);
  yield* writer.commit;
  yield* kept?.forget ?? Effect.void;
  return found[0]!.prefix === "" ? reports[0]! : reportOfLayers(reports);
}, Effect.scoped);
