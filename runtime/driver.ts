/**
 * The driver: has every rank of a crew get its shard and bring its rows home, epoch after epoch, until all are there.
 *
 * @module
 */
import { Clock, Deferred, Effect, Fiber, Result } from "effect";
import { outsideOfThreads } from "./attention_files.ts";
import { type Beat, Watch } from "./beat.ts";
import { type Checkpoints, receiveCheckpoints } from "./checkpoint.ts";
import { Crew, type Regrouped } from "./crew.ts";
import {
  type FileInvalid,
  type FrameRejected,
  type LinkError,
  RankFailed,
  type ServerUnavailable,
  type TensorInvalid,
} from "./errors.ts";
import { collect, collectKept, deliver, reader, Sink, Source } from "./exchange.ts";
import { beganWith } from "./first_cause.ts";
import { type Job, planOfJob } from "./job.ts";
import { Links } from "./link.ts";
import { manifestOf } from "./manifest.ts";
import type { Plan } from "./plan.ts";
import type { RankSummary } from "./rank.ts";
import type { Interval } from "./timeline.ts";
import { nothing, type Standing } from "./standing.ts";

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
  const watch = new Watch();
  const observer = {
    interval: (interval: Interval) => {
      watch.see(interval);
      return heard.interval(interval);
    },
    beat: (beat: Beat) => {
      const stuck = watch.verdict(beat);
      return stuck === undefined ? heard.beat(beat) : Effect.asVoid(blame(stuck));
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
