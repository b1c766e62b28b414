/**
 * One rank of a run, wherever it runs: takes its shard from the driver, turns with the ring, and sends its rows home.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import { Device } from "./device.ts";
import {
  type DeviceFailed,
  type FrameRejected,
  type InvalidProblem,
  type LinkError,
  type MergeViolation,
  NonFinite,
  type PlanRefused,
} from "./errors.ts";
import { type Block, Held } from "./held.ts";
import { type Job, planOfJob } from "./job.ts";
import type { Attended, DeviceInfo } from "./kernel.ts";
import { type Link, Links, type Slot } from "./link.ts";
import { manifestOf } from "./manifest.ts";
import { refusalFor } from "./plan.ts";
import { Recorder } from "./recorder.ts";
import { ring } from "./ring.ts";
import type { Interval } from "./timeline.ts";
import { receiveBytes, sendBytes } from "./transfer.ts";

/** What a rank says about itself when its part is done. */
export interface RankSummary {
  readonly rank: number;
  readonly device: DeviceInfo;
  /** Bytes of K/V that went to the right neighbour. */
  readonly sentBytes: number;
  /** Most bytes of K/V held at once. */
  readonly kvPeakBytes: number;
  /** Resident set of the rank's process, which ranks of one process share. */
  readonly rssBytes: number;
}

/** Who hears of a rank's doings while it works. */
export interface Observer {
  readonly interval: (interval: Interval) => Effect.Effect<void>;
  /** The result has reached the driver. */
  readonly finished: (summary: RankSummary) => Effect.Effect<void>;
  /** Told before the rank's links close, so that the first cause is heard before its consequences. */
  readonly failed: (error: RankError) => Effect.Effect<void>;
}

/** Every way in which a rank can end early. */
export type RankError =
  | DeviceFailed
  | FrameRejected
  | InvalidProblem
  | LinkError
  | MergeViolation
  | NonFinite
  | PlanRefused;

const nothing = { step: 0, block: -1 };

/** Every number of a result is finite: there is no mask under which a row does not see itself. */
const finite = (
  device: string,
  rank: number,
  { o, lse }: Attended,
): Effect.Effect<void, NonFinite> => {
  const bad = (tensor: string, index: number, found: number) =>
    Effect.fail(new NonFinite({ device, rank, tensor, index, found: String(found) }));
  const inO = o.findIndex((x) => !Number.isFinite(x));
  if (inO >= 0) return bad("o", inO, o[inO]!);
  const inLse = lse.findIndex((x) => !Number.isFinite(x));
  return inLse >= 0 ? bad("lse", inLse, lse[inLse]!) : Effect.void;
};

/** Fails as soon as one of the links does, whatever `effect` is waiting for. */
const whileSound = <A, E, R>(links: ReadonlyArray<Link>, effect: Effect.Effect<A, E, R>) =>
  Effect.raceAllFirst<Effect.Effect<A, E | LinkError, R>>([
    effect,
    ...links.map((link) => link.broken),
  ]);

/**
 * Computes one rank's part of a job on this process's device. The links stay open after the result has reached the
 * driver, until the driver closes its own.
 */
export const attendRank = (
  job: Job,
  rank: number,
  observer: Observer,
): Effect.Effect<void, RankError, Device | Links> =>
  Effect.scoped(Effect.tapError(takePart(job, rank, observer), observer.failed));

const takePart = Effect.fn("takePart")(function* (job: Job, rank: number, observer: Observer) {
  const device = yield* Device;
  const links = yield* Links;
  const plan = yield* planOfJob(job);
  // Whoever sent the job, this process takes no more than fits it.
  const refusal = refusalFor(plan, device.info.memory);
  if (refusal !== undefined) return yield* refusal;
  const manifest = manifestOf(job);
  const mine = plan.ranks[rank]!;
  const { batch, heads, kvHeads, headDim, scale } = job.problem;
  const recorder = yield* Recorder.start(rank, observer.interval);

  const open = (peer: Slot): Effect.Effect<Link, LinkError, Scope.Scope> =>
    links.open({ run: job.run, self: rank, peer });
  const [leftRank, rightRank] = [(rank - 1 + plan.ring) % plan.ring, (rank + 1) % plan.ring];
  const peers: ReadonlyArray<Slot> = plan.ring === 1
    ? ["driver"]
    : [...new Set<Slot>(["driver", leftRank, rightRank])];
  const opened = new Map(
    yield* Effect.all(
      peers.map((peer) => Effect.map(open(peer), (link) => [peer, link] as const)),
      { concurrency: "unbounded" },
    ),
  );
  const driver = opened.get("driver")!;
  const left = opened.get(leftRank);
  const right = opened.get(rightRank);

  const held = new Held();
  let sentBytes = 0;
  const load = (bytes: number) => ({ activity: "load", ...nothing, bytes }) as const;

  const work = Effect.gen(function* () {
    const queries = manifest.queries(mine);
    const accumulator = yield* device.begin({
      batch,
      heads,
      kvHeads,
      headDim,
      scale,
      tokens: mine.tokens,
      dtype: job.dtype,
      bytes: yield* recorder.timed(load(queries.bytes), receiveBytes(driver, queries)),
    });
    const home = new Map<number, Block>();
    for (const block of plan.blocks.filter((block) => block.home === rank)) {
      held.hold(block, block.hops > 0 ? 2 : 1);
      const receiving = receiveBytes(driver, manifest.home(block));
      const bytes = yield* recorder.timed({ ...load(block.bytes), block: block.id }, receiving);
      home.set(block.id, { plan: block, bytes });
    }
    return yield* ring({
      plan: mine,
      band: plan.band,
      dtype: job.wire,
      home,
      held,
      accumulator,
      recorder,
      receiveLeft: (block) => {
        const step = manifest.hop(block, rank).step;
        const about = { activity: "receive", step, block: block.id, bytes: block.bytes } as const;
        return recorder.since(
          about,
          (mark) => receiveBytes(left!, manifest.hop(block, rank), mark),
        );
      },
      sendRight: (block) =>
        Effect.tap(
          sendBytes(right!, manifest.hop(block.plan, rightRank), block.bytes),
          () => Effect.sync(() => void (sentBytes += block.plan.bytes)),
        ),
    });
  });

  const result = yield* whileSound([...opened.values()], Effect.scoped(work));
  yield* finite(device.info.name, rank, result);

  const bytesOf = (values: Float32Array<ArrayBuffer>) => new Uint8Array(values.buffer);
  const sendHome = Effect.gen(function* () {
    yield* sendBytes(driver, manifest.o(mine), bytesOf(result.o));
    yield* sendBytes(driver, manifest.lse(mine), bytesOf(result.lse));
    yield* driver.drain;
  });
  const homeward = { activity: "home", ...nothing, bytes: manifest.o(mine).bytes } as const;
  yield* whileSound([driver], recorder.timed(homeward, sendHome));
  yield* observer.finished({
    rank,
    device: device.info,
    sentBytes,
    kvPeakBytes: held.peak,
    rssBytes: Deno.memoryUsage().rss,
  });
  // Neighbours may still be on their way to the driver; leaving now would look to them like a failure.
  yield* Effect.catchTag(driver.receive, "LinkClosed", () => Effect.void);
});
