/**
 * The two passes of a rank over the sequence: attention, and its gradients. In both, blocks of K and V go once around
 * the ring; in the second, gradients of K and V come home as well.
 *
 * @module
 */
import { Effect, Queue } from "effect";
import type { Block } from "./block.ts";
import type { Device } from "./device.ts";
import type { Held } from "./held.ts";
import { bytesOf } from "./dtype.ts";
import { type Gradients, homing } from "./homing.ts";
import type { Job } from "./job.ts";
import type { Attended, KeyValues, Queries } from "./kernel.ts";
import type { Ledger } from "./ledger.ts";
import type { Link, Slot } from "./link.ts";
import { type Manifest, manifestOf } from "./manifest.ts";
import type { Plan, RankPlan } from "./plan.ts";
import type { Recorder } from "./recorder.ts";
import { ring, type RingParts } from "./ring.ts";
import { addSink } from "./sink.ts";
import type { Tenure } from "./tenure.ts";
import { receiveBytes, receiveInto, sendBytes, type Transfer } from "./transfer.ts";
import type { Activity } from "./timeline.ts";

/** A rank with its shard. */
export interface Passing {
  readonly job: Job;
  readonly plan: Plan;
  readonly mine: RankPlan;
  readonly device: Device["Service"];
  readonly queries: Queries;
  readonly home: ReadonlyMap<number, Block>;
  /** What is merged in this pass. */
  readonly ledger: Ledger;
  readonly held: Held;
  readonly recorder: Recorder;
  /** Links to the ranks that blocks come from or go to. */
  readonly links: ReadonlyMap<Slot, Link>;
  /** Links of the gradients. */
  readonly lanes: ReadonlyMap<Slot, Link>;
  /** Bytes that went to other ranks so far. */
  readonly sent: { keysAndValues: number; gradients: number };
}

/** Work of a device that is about no block. */
const ofDevice = (activity: Activity) => ({ activity, step: 0, block: -1, bytes: 0 }) as const;

const about = (activity: Activity, { step, block, bytes }: Transfer) =>
  ({ activity, step, block, bytes }) as const;

const keyValues = ({ wire }: Job, { plan: { span }, bytes }: Block): KeyValues => ({
  tokens: span.count,
  dtype: wire,
  bytes,
});

/** Lets the blocks pass by once. */
export const passBlocks = (
  { mine, home, ledger, held, recorder, links, sent }: Pick<
    Passing,
    "mine" | "home" | "ledger" | "held" | "recorder" | "links" | "sent"
  >,
  hop: Manifest["hop"],
  absorb: RingParts["absorb"],
  between?: RingParts["between"],
) =>
  ring({
    plan: mine,
    home,
    ledger,
    held,
    absorb,
    recorder,
    ...(between === undefined ? {} : { between }),
    receiveLeft: (block) => {
      const transfer = hop(block.plan, mine.rank);
      return recorder.since(about("receive", transfer), (mark) =>
        receiveInto(block.bytes, links.get(transfer.from)!, transfer, (end) => {
          block.arrivedUntil(end);
          return mark;
        }));
    },
    sendRight: (block, to) => {
      const transfer = hop(block.plan, to);
      const sending = sendBytes(links.get(to)!, transfer, block.bytes, block.until);
      return Effect.gen(function* () {
        // It is not on its way before anything of it is there.
        yield* block.until(Math.min(1, transfer.bytes));
        yield* recorder.timed(about("forward", transfer), sending);
        sent.keysAndValues += transfer.bytes;
      });
    },
  });

/**
 * Attention of the rank's queries over the whole sequence; goes on from what its tenure has.
 *
 * @param keep Gets all that was gathered, each time that so many blocks were merged as the job says.
 */
export const forwardPass = Effect.fn("forwardPass")(function* (
  passing: Passing,
  tenure: Tenure,
  keep?: (attended: Attended, merged: number) => Effect.Effect<void>,
) {
  const { job, plan, queries, ledger, recorder } = passing;
  const { gathering } = tenure.loaded!;
  const begin = recorder.timed(ofDevice("begin"), gathering.on);
  const take = (merged: number) => recorder.timed(ofDevice("finish"), gathering.take(merged));
  // Always after the same blocks, whatever happened meanwhile, so that the result has the same bits.
  const between = () => {
    const { merged, required } = ledger;
    const due = merged % (job.checkpoint ?? Infinity) === 0 && merged > gathering.taken() &&
      merged < required.length;
    if (keep === undefined || !due) return undefined;
    return take(merged).pipe(
      Effect.flatMap((attended) => keep(attended, merged)),
      Effect.andThen(begin),
    );
  };
  yield* between() ?? (tenure.attended === undefined ? begin : Effect.void);
  const absorb: RingParts["absorb"] = (block, tiles) =>
    gathering.on.pipe(
      Effect.flatMap(({ absorb }) => absorb(keyValues(job, block), tiles, plan.attention.band)),
      Effect.map((busy) => ({ busy, deliver: Effect.void })),
    );
  yield* passBlocks(passing, manifestOf(job).hop, absorb, between);
  if (tenure.attended !== undefined) return tenure.attended;
  const finished = Effect.map(take(ledger.merged), (attended) => {
    const { sink } = plan.attention;
    if (sink !== undefined) addSink(attended, queries, sink);
    return tenure.attended = attended;
  });
  return yield* Effect.uninterruptible(finished);
});

/** Passes on what others still need; the rank's own rows are with the driver. */
export const passOn = (passing: Passing) =>
  passBlocks(
    passing,
    manifestOf(passing.job).hop,
    () => Effect.die("a collected rank merges nothing"),
  );

/**
 * Gradients of the rank's queries, and of its keys and values from the queries of all ranks: dk then dv by block.
 *
 * @param cotangent dO, [batch, tokens, heads, headDim].
 */
export const backwardPass = Effect.fn("backwardPass")(function* (
  passing: Passing,
  attended: Attended,
  cotangent: Float32Array,
) {
  const { job, plan, mine, device, queries, lanes, recorder, sent } = passing;
  const manifest = manifestOf(job);
  const backward = yield* recorder.timed(
    ofDevice("begin"),
    device.beginBackward!(queries, { ...attended, cotangent }),
  );
  const own = yield* Queue.bounded<Gradients>(1);
  const absorb: RingParts["absorb"] = (block, tiles) =>
    Effect.map(
      backward.absorb(keyValues(job, block), tiles, plan.attention.band),
      ({ gradients, busy }) => ({
        busy,
        deliver: Effect.asVoid(Queue.offer(own, { block: block.plan, values: gradients })),
      }),
    );
  const gradients = homing({
    plan: mine,
    own,
    receiveLeft: (block) => {
      const transfer = manifest.gradientHop(block, mine.rank);
      return Effect.map(
        receiveBytes(lanes.get(transfer.from)!, transfer),
        ({ buffer }) => new Float32Array(buffer),
      );
    },
    sendRight: ({ block, values }, to) => {
      const transfer = manifest.gradientHop(block, to);
      return recorder.timed(
        about("gradient", transfer),
        sendBytes(lanes.get(to)!, transfer, bytesOf(values)),
      ).pipe(Effect.tap(Effect.sync(() => void (sent.gradients += transfer.bytes))));
    },
  });
  const [ofBlocks] = yield* Effect.all(
    [gradients, passBlocks(passing, manifest.hopAgain, absorb)],
    {
      concurrency: "unbounded",
    },
  );
  return { dq: yield* recorder.timed(ofDevice("finish"), backward.finish), ofBlocks };
}, Effect.scoped);
