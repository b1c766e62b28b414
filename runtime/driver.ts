/**
 * The driver: sends every rank its shard, and puts the rows that come home in token order. It streams, so that it
 * never holds more of a tensor than a few chunks a rank.
 *
 * @module
 */
import { Clock, Context, Deferred, Effect, Fiber, Result } from "effect";
import { outsideOfThreads } from "./attention_files.ts";
import { type Beat, overdue } from "./beat.ts";
import { type Checkpoint, type Checkpoints, keepRows, receiveCheckpoints } from "./checkpoint.ts";
import { Crew, type Regrouped } from "./crew.ts";
import { decode, type DType, elementBytes, encode, firstNonFinite } from "./dtype.ts";
import {
  type FileInvalid,
  type FrameRejected,
  type LinkError,
  RankFailed,
  type ServerUnavailable,
  TensorInvalid,
} from "./errors.ts";
import { beganWith } from "./first_cause.ts";
import { type Job, planOfJob } from "./job.ts";
import { type Link, Links } from "./link.ts";
import { upRowsOf, widthOf } from "./latent.ts";
import { manifestOf } from "./manifest.ts";
import { type BlockPlan, type Plan, type RankPlan, valueDimOf } from "./plan.ts";
import type { RankSummary } from "./rank.ts";
import { type Region, regions, type TokenArray } from "./region.ts";
import type { Interval } from "./timeline.ts";
import { nothing, type Standing } from "./standing.ts";
import { receive, send } from "./transfer.ts";
import { contiguous, type Span } from "./span.ts";

/**
 * Tensors that a driver reads. `do` is the cotangent of o. In place of k and v there may be `latent`, which travels
 * [batch, tokens, rank + rope], and `kv_b`, which makes them of it: [heads, headDim − rope + value, rank].
 */
export const inputs = ["q", "k", "v", "do", "latent", "kv_b"] as const;
/** One of them. */
export type Input = typeof inputs[number];
/** Tensors that it writes, all float32: the last three for gradients. */
export const outputs = ["o", "lse", "dq", "dk", "dv"] as const;
/** One of them. */
export type Output = typeof outputs[number];

/** Where inputs come from. Element regions refer to a whole tensor. */
export class Source extends Context.Service<Source, {
  /** For sentences: a path, or a name. */
  readonly name: string;
  /** Of tensors that there are. */
  readonly dtypes: Readonly<Record<Input, DType>>;
  /** The bytes of these regions, one after the other, in the tensor's own format. */
  readonly read: (
    tensor: Input,
    regions: ReadonlyArray<Region>,
  ) => Effect.Effect<Uint8Array, FileInvalid>;
}>()("annulus/runtime/Source") {}

/** Where results go: `lse` is [batch, heads, tokens], the others are shaped as their tensors. */
export class Sink extends Context.Service<Sink, {
  readonly write: (
    tensor: Output,
    regions: ReadonlyArray<Region>,
    bytes: Uint8Array,
  ) => Effect.Effect<void, FileInvalid>;
}>()("annulus/runtime/Sink") {}

/** What a run did when one of its ranks failed. */
export interface Recovery {
  /** The epoch that begins. */
  readonly epoch: number;
  /** The failure, in its own sentence. */
  readonly cause: string;
  /** Ranks that were given to others, which begin with them anew. */
  readonly moved: Regrouped["moved"];
  /** Seconds since the run began. */
  readonly at: number;
}

/** What a run leaves behind beside its result. */
export interface RunRecord {
  readonly plan: Plan;
  readonly timeline: ReadonlyArray<Interval>;
  /** By rank. */
  readonly ranks: ReadonlyArray<RankSummary>;
  /** Wall time from the first byte sent to the last byte home. */
  readonly seconds: number;
  /** Failures that the run survived. */
  readonly recoveries: ReadonlyArray<Recovery>;
}

/** Who hears of a run while it goes on. */
export interface RunObserver {
  readonly interval: (interval: Interval) => Effect.Effect<void>;
  readonly beat: (beat: Beat) => Effect.Effect<void>;
  readonly recovered: (recovery: Recovery) => Effect.Effect<void>;
}

const shapes = ({ problem }: Job) => {
  const { batch, tokens, heads, kvHeads, headDim } = problem;
  return {
    q: { outer: batch, tokens, inner: heads * headDim },
    k: { outer: batch, tokens, inner: kvHeads * headDim },
    o: { outer: batch, tokens, inner: heads * valueDimOf(problem) },
    lse: { outer: batch * heads, tokens, inner: 1 },
  };
};

/** Which element of the whole tensor is the `index`-th of some regions. */
const elementAt = (where: ReadonlyArray<Region>, index: number): number => {
  let before = 0;
  for (const { offset, length } of where) {
    if (index < before + length) return offset + index - before;
    before += length;
  }
  throw new Error(`element ${index} is in none of ${where.length} regions`);
};

/** Reads elements of a shard from the source, refuses what is not finite, and gives them in the format to travel in. */
const reader = (source: Source["Service"], job: Job) =>
  Effect.fnUntraced(function* (
    tensor: Input,
    whole: TokenArray,
    spans: ReadonlyArray<Span>,
    from: number,
    to: number,
  ) {
    const own = source.dtypes[tensor];
    const travels = tensor === "q"
      ? job.dtype
      : tensor === "do" || tensor === "kv_b"
      ? "f32"
      : job.wire;
    const where = [...regions(whole, spans, from, to)];
    const bytes = yield* source.read(tensor, where);
    const invalid = (needed: string, index: number) => {
      const size = elementBytes(own);
      const [found] = decode(own, bytes.subarray(index * size, (index + 1) * size));
      return new TensorInvalid({
        file: source.name,
        tensor,
        needed,
        found: `${found} at element ${elementAt(where, index)}`,
      });
    };
    const bad = firstNonFinite(own, bytes);
    if (bad >= 0) return yield* invalid("finite everywhere", bad);
    if (own === travels) return bytes;
    const converted = encode(travels, decode(own, bytes));
    const overflow = firstNonFinite(travels, converted);
    if (overflow >= 0) {
      return yield* invalid(`within the range of ${travels} to travel in it`, overflow);
    }
    return converted;
  });

/** Sends one rank what it lacks of what makes keys and values of latents, its queries, its K/V blocks and dO. */
const deliver = Effect.fnUntraced(function* (
  job: Job,
  plan: Plan,
  mine: RankPlan,
  { loaded }: Standing,
  checkpoint: Checkpoint | undefined,
  link: Link,
  read: ReturnType<typeof reader>,
) {
  const manifest = manifestOf(job);
  const { q, k } = shapes(job);
  const qBytes = elementBytes(job.dtype), kvBytes = elementBytes(job.wire);
  const { latent, batch, tokens, heads } = job.problem;
  if (latent !== undefined && !loaded) {
    const rows = heads * upRowsOf(latent, job.problem);
    const whole = { outer: 1, tokens: rows, inner: latent.rank };
    yield* send(
      link,
      manifest.up(mine),
      (from, to) => read("kv_b", whole, [contiguous(0, rows)], from / 4, to / 4),
    );
  }
  if (!loaded) {
    yield* send(
      link,
      manifest.queries(mine),
      (from, to) => read("q", q, mine.shard, from / qBytes, to / qBytes),
    );
  }
  if (checkpoint !== undefined) {
    const { o, lse } = manifest.restored(mine);
    yield* send(link, o, (from, to) => checkpoint.read("o", from, to));
    yield* send(link, lse, (from, to) => checkpoint.read("lse", from, to));
  }
  const blockPart = (block: BlockPlan) => (from: number, to: number) => {
    if (latent !== undefined) {
      const whole = { outer: batch, tokens, inner: widthOf(latent) };
      return read("latent", whole, [block.span], from / kvBytes, to / kvBytes);
    }
    const half = block.bytes / kvBytes / 2;
    const part = (tensor: "k" | "v", begin: number, end: number) =>
      begin < end ? read(tensor, k, [block.span], begin, end) : Effect.succeed(new Uint8Array(0));
    const [first, last] = [from / kvBytes, to / kvBytes];
    return Effect.map(
      Effect.all([
        part("k", first, Math.min(last, half)),
        part("v", Math.max(first - half, 0), last - half),
      ]),
      ([keys, values]) => {
        if (values.length === 0) return keys;
        if (keys.length === 0) return values;
        const both = new Uint8Array(keys.length + values.length);
        both.set(keys);
        both.set(values, keys.length);
        return both;
      },
    );
  };
  for (const block of plan.blocks.filter(({ home }) => home === mine.rank && !loaded)) {
    yield* send(link, manifest.home(block), blockPart(block));
  }
  if (!job.gradients) return;
  yield* send(
    link,
    manifest.cotangent(mine),
    (from, to) => read("do", q, mine.shard, from / 4, to / 4),
  );
});

/** Writes what comes of a tensor of some tokens, in its own order. */
const writer =
  (sink: Sink["Service"]) =>
  (tensor: Output, whole: TokenArray, spans: ReadonlyArray<Span>) =>
  (from: number, payload: Uint8Array): Effect.Effect<void, FileInvalid> => {
    if (payload.byteLength === 0) return Effect.void;
    const where = regions(whole, spans, from / 4, (from + payload.byteLength) / 4);
    return sink.write(tensor, [...where], payload);
  };

/** Takes one rank's result. */
const collect = Effect.fnUntraced(function* (
  job: Job,
  plan: Plan,
  mine: RankPlan,
  link: Link,
  sink: Sink["Service"],
  checkpoints: Checkpoints | undefined,
) {
  const manifest = manifestOf(job);
  const { q, k, o, lse } = shapes(job);
  const into = writer(sink);
  // For gradients a rank needs more than these rows.
  const keeping = job.gradients ? undefined : yield* keepRows(checkpoints, mine);
  const both = (write: ReturnType<typeof into>) => (from: number, payload: Uint8Array) =>
    Effect.andThen(write(from, payload), keeping?.write(payload) ?? Effect.void);
  yield* receive(link, manifest.o(mine), both(into("o", o, mine.shard)));
  yield* receive(link, manifest.lse(mine), both(into("lse", lse, mine.shard)));
  yield* keeping?.commit ?? Effect.void;
  if (!job.gradients) return;
  yield* receive(link, manifest.dq(mine), into("dq", q, mine.shard));
  for (const block of plan.blocks.filter(({ home }) => home === mine.rank)) {
    const [dk, dv] = [into("dk", k, [block.span]), into("dv", k, [block.span])];
    const half = block.gradientBytes / 2;
    yield* receive(link, manifest.gradients(block), (from, payload) => {
      const ofK = Math.min(Math.max(half - from, 0), payload.byteLength);
      return Effect.andThen(
        dk(from, payload.subarray(0, ofK)),
        dv(from + ofK - half, payload.subarray(ofK)),
      );
    });
  }
}, Effect.scoped);

/** Takes one rank's result from where it was kept. */
const collectKept = Effect.fnUntraced(function* (
  job: Job,
  mine: RankPlan,
  { read }: Checkpoint,
  sink: Sink["Service"],
) {
  const { restored } = manifestOf(job);
  const shape = shapes(job);
  for (const tensor of ["o", "lse"] as const) {
    const { bytes, chunkBytes } = restored(mine)[tensor];
    const write = writer(sink)(tensor, shape[tensor], mine.shard);
    for (let from = 0; from < bytes; from += chunkBytes) {
      yield* write(from, yield* read(tensor, from, Math.min(from + chunkBytes, bytes)));
    }
  }
});

/** How long a member that left may take to tell the driver what went wrong. */
const accountWithin = "1 second";

/** Hears nothing. */
export const deaf: RunObserver = {
  interval: () => Effect.void,
  beat: () => Effect.void,
  recovered: () => Effect.void,
};

/** What ends an epoch early. */
type Failure = FileInvalid | FrameRejected | LinkError | RankFailed | TensorInvalid;

/** One epoch: every rank gets what it lacks, and its rows reach the sink; `collected` is told of each rank's. */
const runEpoch = Effect.fnUntraced(function* (
  job: Job,
  plan: Plan,
  read: ReturnType<typeof reader>,
  heard: Pick<RunObserver, "interval" | "beat">,
  collected: (rank: number) => void,
  checkpoints: Checkpoints | undefined,
) {
  const crew = yield* Crew;
  const links = yield* Links;
  const sink = yield* Sink;
  const firstFailure = yield* Deferred.make<never, Failure>();
  const summaries = yield* Effect.forEach(plan.ranks, () => Deferred.make<RankSummary>());
  const blame = (error: Failure) => Deferred.fail(firstFailure, error);
  let longest: number | undefined;
  const observer = {
    interval: (interval: Interval) => {
      if (interval.activity === "compute") {
        longest = Math.max(longest ?? 0, interval.end - interval.begin);
      }
      return heard.interval(interval);
    },
    beat: (beat: Beat) => {
      const milliseconds = overdue(beat, longest);
      if (milliseconds === 0) return heard.beat(beat);
      const reason = `its device has been busy with one thing for ${
        (milliseconds / 1000).toFixed(0)
      } s`;
      const { rank } = beat;
      return Effect.asVoid(blame(new RankFailed({ rank, node: "its node", tag: "Stuck", reason })));
    },
    finished: (summary: RankSummary) => Deferred.succeed(summaries[summary.rank]!, summary),
    failed: blame,
  };
  const members = yield* Effect.forEach(
    plan.ranks,
    ({ rank }) =>
      crew.run(job, rank, observer).pipe(
        Effect.catch(blame),
        // Without a word of it the run would wait for ever.
        Effect.catchDefect((defect) =>
          blame(
            new RankFailed({
              ...{ rank, node: "the driver's side of it", tag: "DriverDefect" },
              reason: String(defect),
            }),
          )
        ),
        Effect.forkScoped,
      ),
  );
  const exchange = Effect.forEach(plan.ranks, (mine) =>
    Effect.gen(function* () {
      const { run, epoch, standings } = job;
      const standing = standings?.[mine.rank] ?? nothing;
      const ends = { run, epoch, self: "driver", peer: mine.rank } as const;
      if (checkpoints !== undefined) {
        yield* links.open({ ...ends, lane: "checkpoints" }).pipe(
          Effect.flatMap((lane) => receiveCheckpoints(lane, manifestOf(job), mine, checkpoints)),
          // The rank fails with it, and says so.
          Effect.ignore,
          Effect.forkScoped,
        );
      }
      const link = yield* links.open(ends);
      const { loaded, merged, collected: home } = standing;
      const before = loaded || home || merged === 0 ? undefined : checkpoints?.of(mine.rank);
      yield* deliver(job, plan, mine, standing, before, link, read);
      if (!home) yield* collect(job, plan, mine, link, sink, checkpoints);
      collected(mine.rank);
      return yield* Deferred.await(summaries[mine.rank]!);
    }), { concurrency: "unbounded" }).pipe(
      // Before the links close, at which every rank fails. A rank that left has a cause of its own.
      Effect.tapError((error) => error._tag === "LinkClosed" ? Effect.void : blame(error)),
      Effect.scoped,
    );
  // A member's own account of its failure may be on its way when its link closes.
  const explained = Effect.catchTag(
    exchange,
    "LinkClosed",
    (error) =>
      Effect.timeoutOrElse(Deferred.await(firstFailure), {
        duration: accountWithin,
        orElse: () => Effect.fail(error),
      }),
  );
  const ranks = yield* Effect.raceFirst(explained, Deferred.await(firstFailure));
  // They have only their goodbyes to say, and the result does not wait for one that is lost.
  yield* Effect.ignore(Effect.timeout(Effect.forEach(members, Fiber.await), accountWithin));
  return ranks;
}, Effect.scoped);

/** What other members can make up for: this one, its device or the way to it is gone. */
const survivable = (error: Failure): error is LinkError | RankFailed =>
  error._tag === "LinkFailed" || error._tag === "LinkClosed" ||
  error._tag === "RankFailed" && lostTags.includes(error.tag);
const lostTags = ["LinkFailed", "LinkClosed", "DeviceFailed", "NodeLost", "NodeUnfit", "Stuck"];

/** So many epochs for each rank without anything new are enough. */
const patience = 3;

/**
 * Runs a job to its end: every rank of the crew gets its shard, and every row of the result reaches the sink. When a rank
 * is lost and another member can take it, the run goes on in a new epoch from what all others have.
 */
export const drive = Effect.fn("drive")(function* (
  { checkpoint: _, ...rest }: Job,
  observer: RunObserver,
  checkpoints?: Checkpoints,
) {
  yield* outsideOfThreads;
  const job = checkpoints === undefined ? rest : { ...rest, checkpoint: checkpoints.every };
  const { regroup, ended = () => Effect.void } = yield* Crew;
  yield* Effect.addFinalizer(() => ended(job.run));
  const read = reader(yield* Source, job);
  const plan = yield* planOfJob(job);
  const timeline: Array<Interval> = [];
  const recoveries: Array<Recovery> = [];
  const home = new Set<number>();
  const began = yield* Clock.monotonicTimeNanos;
  const sinceThen = Effect.map(Clock.monotonicTimeNanos, (now) => Number(now - began) / 1e9);
  const heard = {
    beat: observer.beat,
    interval: (interval: Interval) =>
      Effect.andThen(Effect.sync(() => timeline.push(interval)), observer.interval(interval)),
  };
  // Gradients travel home from all ranks at once, or not at all.
  const collected = (rank: number) => void (job.gradients || home.add(rank));
  const sink = yield* Sink;
  /** Rows of the result that were kept by an earlier run, or by this one without a word of it. */
  const takeKept = Effect.forEach(plan.ranks, (mine) => {
    const checkpoint = checkpoints?.of(mine.rank);
    if (checkpoint?.final !== true || home.has(mine.rank)) return Effect.void;
    return Effect.andThen(
      collectKept(job, mine, checkpoint, sink),
      Effect.sync(() => home.add(mine.rank)),
    );
  }, { discard: true });
  /** What a rank has, or whoever takes it next may begin with. */
  const startOf = (standing: Standing, rank: number): Standing => ({
    ...standing,
    merged: standing.loaded ? standing.merged : checkpoints?.of(rank)?.merged ?? 0,
    collected: home.has(rank),
  });
  yield* takeKept;
  let current: Job = checkpoints === undefined
    ? job
    : { ...job, standings: plan.ranks.map(({ rank }) => startOf(nothing, rank)) };
  let [best, idle] = [0, 0];
  const failedOnItsOwn = new Set<number>();
  /** Of the failures, the one before all others, which is the cause of what comes of it. */
  let first: string | undefined;
  const withFirst = <E extends Failure | ServerUnavailable>(error: E) =>
    first === undefined ? error : beganWith(error, first);
  for (;;) {
    const outcome = yield* Effect.result(
      runEpoch(current, plan, read, heard, collected, checkpoints),
    );
    if (Result.isSuccess(outcome)) {
      const ranks = outcome.success;
      return { plan, timeline, ranks, seconds: yield* sinceThen, recoveries } satisfies RunRecord;
    }
    const error = outcome.failure;
    if (regroup === undefined || !survivable(error) || idle >= patience * plan.ring) {
      return yield* withFirst(error);
    }
    first ??= error.message;
    if (error._tag === "RankFailed" && error.tag === "DeviceFailed") {
      // What fails on two nodes in turn fails on all of them.
      if (failedOnItsOwn.has(error.rank)) return yield* withFirst(error);
      failedOnItsOwn.add(error.rank);
    }
    const epoch = current.epoch + 1;
    const { standings, moved } = yield* regroup(job, epoch, error).pipe(Effect.mapError(withFirst));
    yield* takeKept;
    current = { ...job, epoch, standings: standings.map(startOf) };
    const done = current.standings!.reduce(
      (sum, { merged, collected, loaded }) => sum + merged + (collected ? 1 : 0) + (loaded ? 1 : 0),
      0,
    );
    // There are only so many nodes that could turn out to be unfit.
    const tried = error._tag === "RankFailed" && error.tag === "NodeUnfit";
    idle = done > best ? 0 : tried ? idle : idle + 1;
    if (done > best) failedOnItsOwn.clear();
    best = Math.max(best, done);
    const recovery = { epoch, cause: error.message, moved, at: yield* sinceThen };
    recoveries.push(recovery);
    yield* observer.recovered(recovery);
  }
}, Effect.scoped);
