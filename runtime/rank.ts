/**
 * One rank of a run, wherever it runs: takes its shard from the driver, turns with the ring, and sends its rows home.
 *
 * @module
 */
import { Effect } from "effect";
import type { Attention } from "./attention.ts";
import { type Beat, beating } from "./beat.ts";
import { Block } from "./block.ts";
import { sendCheckpoints } from "./checkpoint.ts";
import { Device } from "./device.ts";
import { bytesOf, decode, firstNonFinite } from "./dtype.ts";
import {
  type DeviceFailed,
  type FileInvalid,
  type FrameRejected,
  type InvalidProblem,
  type LinkError,
  type MergeViolation,
  type ModelInvalid,
  NonFinite,
  type PlanRefused,
  VariantInvalid,
} from "./errors.ts";
import { gatheringOf } from "./gathering.ts";
import { Held } from "./held.ts";
import { Ledger } from "./ledger.ts";
import { type Job, planOfJob } from "./job.ts";
import { lackingFor } from "./lacking.ts";
import { type DeviceInfo, largestHeadDimOf } from "./kernel.ts";
import { type Ends, Links, type Slot } from "./link.ts";
import { widthOf } from "./latent.ts";
import { asLse } from "./lse.ts";
import { manifestOf } from "./manifest.ts";
import { backwardPass, forwardPass, type Passing, passOn } from "./passes.ts";
import type { BlockPlan, Plan, RankPlan } from "./plan.ts";
import { positionAt } from "./span.ts";
import { Recorder } from "./recorder.ts";
import { whileSound } from "./sound.ts";
import { nothing, remainingOf, requiredOf } from "./standing.ts";
import type { Tenure } from "./tenure.ts";
import type { Interval } from "./timeline.ts";
import { receiveBytes, sendBytes, type Transfer } from "./transfer.ts";

/** What a rank says about itself when its part is done. */
export interface RankSummary {
  readonly rank: number;
  readonly device: DeviceInfo;
  /** Bytes of K/V that went to other ranks. */
  readonly sentBytes: number;
  /** Bytes of gradients that did. */
  readonly sentGradientBytes: number;
  /** Most bytes of K/V held at once. */
  readonly kvPeakBytes: number;
  /** Resident set of the rank's process, which ranks of one process share. */
  readonly rssBytes: number;
  /** How often the process's links sent something again, or refused what came, by reason. */
  readonly links: Readonly<Record<string, number>>;
}

/** Who hears of a rank's doings while it works. */
export interface Observer {
  readonly interval: (interval: Interval) => Effect.Effect<void>;
  readonly beat: (beat: Beat) => Effect.Effect<void>;
  /** The result has reached the driver. */
  readonly finished: (summary: RankSummary) => Effect.Effect<void>;
  /** Told before the rank's links close, so that the first cause is heard before its consequences. */
  readonly failed: (error: RankError) => Effect.Effect<void>;
}

/** Every way in which a rank can end early. */
export type RankError =
  | DeviceFailed
  | FileInvalid
  | FrameRejected
  | InvalidProblem
  | LinkError
  | MergeViolation
  | ModelInvalid
  | NonFinite
  | PlanRefused
  | VariantInvalid;

const floatsOf = (bytes: Uint8Array) => decode("f32", bytes);

const blocksOf = ({ blocks }: Plan, rank: number): ReadonlyArray<BlockPlan> =>
  blocks.filter(({ home }) => home === rank);

/** The pair whose score a variant made no number, if it did that to the first row that is none. */
const oddScore = (
  { score, variants, shape: { heads, tokens } }: Attention,
  { tokens: mine, shard }: RankPlan,
  lse: Float32Array,
): VariantInvalid | undefined => {
  const row = lse.findIndex(Number.isNaN);
  if (score === undefined || row < 0) return;
  const [b, h] = [Math.floor(row / (heads * mine)), Math.floor(row / mine) % heads];
  let index = row % mine;
  const span = shard.find(({ count }) => index < count || (index -= count, false))!;
  const q = positionAt(span, index);
  for (let k = 0; k < tokens; k++) {
    // Nobody remembers the score that it was given.
    if (![0, 1, -1].some((s) => Number.isNaN(Number(score(s, b, h, q, k))))) continue;
    return new VariantInvalid({
      variant: variants.filter(({ definition }) => definition.score !== undefined)
        .map(({ definition: { name } }) => name).join(" & "),
      needed: "scores that are numbers",
      found: `NaN of batch entry ${b}, head ${h}, query ${q}, key ${k}`,
    });
  }
};

/** Every number of a result is finite, but for the lse of rows that see no key, where a mask may have such. */
const finite = (
  device: string,
  rank: number,
  tensors: Readonly<Record<string, Float32Array>>,
  emptyRows = false,
): Effect.Effect<void, NonFinite> => {
  for (const [tensor, values] of Object.entries(tensors)) {
    const index = emptyRows && tensor === "lse"
      ? values.findIndex((x) => !(x < Infinity))
      : firstNonFinite("f32", bytesOf(values));
    if (index < 0) continue;
    const found = String(values[index]);
    return Effect.fail(new NonFinite({ device, rank, tensor, index, found }));
  }
  return Effect.void;
};

/** Takes a rank's shard, or what an earlier epoch left to do of it, and brings its rows home. */
export const attendRank = Effect.fn("attendRank")(function* (
  job: Job,
  tenure: Tenure,
  observer: Observer,
) {
  const device = yield* Device;
  const links = yield* Links;
  const { rank } = tenure;
  const whole = tenure.plan ??= yield* planOfJob(job);
  const plan = job.standings === undefined ? whole : remainingOf(whole, job.standings);
  const { loaded, merged, collected } = job.standings?.[rank] ?? nothing;
  // Whoever sent the job, this process takes no more than fits it.
  const able = { ...device.info, gradients: device.beginBackward !== undefined };
  const lacking = lackingFor(job, whole, able, tenure.ranks());
  if (lacking !== undefined) return yield* lacking;
  const manifest = manifestOf(job);
  const mine = plan.ranks[rank]!;
  // Gradients are computed anew, whatever an earlier epoch had of them.
  const backward = whole.ranks[rank]!;
  const { batch, heads, kvHeads, headDim, scale, latent } = job.problem;
  const recorder = yield* Recorder.start(rank, observer.interval);
  yield* Effect.forkScoped(
    beating(
      rank,
      recorder,
      () => ({ merged: tenure.standing.merged, ranks: tenure.ranks() }),
      observer.beat,
    ),
  );

  const peers = new Set(
    (job.gradients ? [mine, backward] : [mine]).flatMap(({ receives, sends }) => [
      ...receives.map(({ from }) => from),
      ...sends.map(({ to }) => to),
    ]),
  );
  const homeward = new Set(
    backward.homing.flatMap(({ from, to }) => [from, to]).filter((peer) => peer !== undefined),
  );
  const open = (peer: Slot, lane: Pick<Ends, "lane"> = {}) =>
    Effect.map(
      links.open({ run: job.run, epoch: job.epoch, self: rank, peer, ...lane }),
      (link) => [peer, link] as const,
    );
  const openAll = (peers: ReadonlyArray<Slot>, lane?: Pick<Ends, "lane">) =>
    Effect.map(
      Effect.all(peers.map((peer) => open(peer, lane)), { concurrency: "unbounded" }),
      (opened) => new Map(opened),
    );
  const [opened, lanes, checkpoints] = yield* Effect.all([
    openAll(["driver", ...peers]),
    openAll([...homeward], { lane: "gradients" }),
    openAll(job.checkpoint === undefined ? [] : ["driver"], { lane: "checkpoints" }),
  ], { concurrency: "unbounded" });
  const driver = opened.get("driver")!;

  const held = new Held();
  const { sent } = tenure;
  /** Takes what the driver sends. */
  const load = (transfer: Transfer, block = -1) =>
    recorder.timed(
      { activity: "load", step: 0, block, bytes: transfer.bytes },
      receiveBytes(driver, transfer),
    );

  /** Takes what somebody gathered of the first blocks before. */
  const restore = Effect.gen(function* () {
    const { o, lse } = manifest.restored(mine);
    const attended = { o: floatsOf(yield* load(o)), lse: asLse(floatsOf(yield* load(lse))) };
    return { attended, merged };
  });

  const receiveInputs = Effect.gen(function* () {
    const { tokens } = mine;
    const up = latent === undefined ? undefined : yield* load(manifest.up(mine));
    const bytes = yield* load(manifest.queries(mine));
    const { attention } = plan;
    const queries = {
      ...{ batch, heads, kvHeads, headDim, scale, tokens, dtype: job.dtype, bytes },
      ...(attention.mask ?? attention.score ? { attention } : {}),
      ...(latent === undefined || up === undefined ? {} : {
        latent: {
          ...latent,
          up: new Float32Array(up.buffer),
          form: widthOf(latent) <= largestHeadDimOf(device.info) ? mine.latentForm! : "expand",
        } as const,
      }),
    };
    const before = merged === 0 || collected ? undefined : yield* restore;
    const home = new Map<number, Block>();
    for (const block of blocksOf(whole, rank)) {
      home.set(block.id, Block.whole(block, yield* load(manifest.home(block), block.id)));
    }
    return {
      ...{ queries, home },
      gathering: gatheringOf(device, queries, tenure.scope, before),
      ledger: new Ledger(rank, requiredOf(whole.ranks[rank]!), before?.merged),
    };
  });

  const lane = checkpoints.get("driver");
  const keep = lane && (yield* sendCheckpoints(lane, manifest, mine, recorder));

  const work = Effect.gen(function* () {
    if (!loaded) tenure.loaded = yield* receiveInputs;
    const { queries, home, ledger } = tenure.loaded!;
    for (const block of blocksOf(whole, rank)) {
      // To be computed on, and to be sent, in each pass.
      const users = block.path.length > 0 ? 2 : 1;
      held.hold(block, job.gradients ? 2 * users : users);
    }
    const passing: Passing = {
      ...{ job, plan, mine, device, queries, home, held, recorder, links: opened, lanes, sent },
      ledger: collected ? new Ledger(rank, []) : ledger,
    };
    if (collected) return yield* passOn(passing);
    // The driver does not wait for the first pass with what the second one needs.
    const [attended, cotangent] = yield* Effect.all([
      forwardPass(passing, tenure, keep),
      job.gradients ? load(manifest.cotangent(mine)) : Effect.succeed(undefined),
    ], { concurrency: "unbounded" });
    // Where nobody asks a mask, each row sees itself, unless the band leaves that out.
    const { mask, band } = plan.attention;
    const emptyRows = mask !== undefined || band.back < 0 || band.ahead < 0;
    yield* finite(device.info.name, rank, { o: attended.o, lse: attended.lse }, emptyRows).pipe(
      Effect.mapError((error) => oddScore(plan.attention, mine, attended.lse) ?? error),
    );
    if (cotangent === undefined) return { attended };
    const dO = new Float32Array(cotangent.buffer);
    const again = {
      ...passing,
      plan: whole,
      mine: backward,
      ledger: new Ledger(rank, requiredOf(backward)),
    };
    const gradients = yield* backwardPass(again, attended, dO);
    yield* finite(device.info.name, rank, { dq: gradients.dq });
    for (const values of gradients.ofBlocks.values()) {
      const [dk, dv] = [0, 1].map((half) =>
        values.subarray(half * values.length / 2, (half + 1) * values.length / 2)
      );
      yield* finite(device.info.name, rank, { dk: dk!, dv: dv! });
    }
    return { attended, gradients };
  });

  const result = yield* whileSound(
    [...opened.values(), ...lanes.values(), ...checkpoints.values()],
    work,
  );

  const sendHome = Effect.gen(function* () {
    if (result === undefined) return;
    const { attended, gradients } = result;
    yield* sendBytes(driver, manifest.o(mine), bytesOf(attended.o));
    yield* sendBytes(driver, manifest.lse(mine), bytesOf(attended.lse));
    if (gradients !== undefined) {
      yield* sendBytes(driver, manifest.dq(mine), bytesOf(gradients.dq));
      for (const block of blocksOf(plan, rank)) {
        // Keys that no query sees have no gradient.
        const none = new Float32Array(block.gradientBytes / 4);
        const values = gradients.ofBlocks.get(block.id) ?? none;
        yield* sendBytes(driver, manifest.gradients(block), bytesOf(values));
      }
    }
    yield* driver.drain;
  });
  const sending = { activity: "home", step: 0, block: -1, bytes: manifest.o(mine).bytes } as const;
  yield* whileSound([driver], recorder.timed(sending, sendHome));
  yield* observer.finished({
    rank,
    device: device.info,
    sentBytes: sent.keysAndValues,
    sentGradientBytes: sent.gradients,
    kvPeakBytes: held.peak,
    rssBytes: Deno.memoryUsage().rss,
    links: links.counts(),
  });
  // Neighbours may still be on their way to the driver; leaving now would look to them like a failure.
  yield* Effect.catchTag(
    driver.receive,
    "LinkClosed",
    (error) => error.done ? Effect.void : Effect.fail(error),
  );
});
