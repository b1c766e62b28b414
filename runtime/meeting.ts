/**
 * The attention of one layer in a turn: this rank's queries of each sequence meet the keys of all ranks, each by the way
 * that moves fewer bytes.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import { type Attention, resolveAttention } from "./attention.ts";
import { Block } from "./block.ts";
import type { Cache } from "./cache.ts";
import type { Device } from "./device.ts";
import { bytesOf } from "./dtype.ts";
import type {
  DeviceFailed,
  FrameRejected,
  InvalidProblem,
  LinkError,
  MergeViolation,
  VariantInvalid,
} from "./errors.ts";
import { Held } from "./held.ts";
import type { Inference } from "./inference.ts";
import type { Attended, Queries } from "./kernel.ts";
import { Ledger } from "./ledger.ts";
import type { Link, Slot } from "./link.ts";
import type { Model } from "./model.ts";
import { passBlocks } from "./passes.ts";
import { type Placement, tokensIn } from "./placement.ts";
import { type BlockPlan, planOf } from "./plan.ts";
import type { Recorder } from "./recorder.ts";
import type { Span } from "./span.ts";
import { requiredOf } from "./standing.ts";
import { star, unseen } from "./star.ts";
import { Asking, tilesOf } from "./tiles.ts";
import { wayOf } from "./turn.ts";

/** What a rank works with. */
export interface MeetingParts {
  readonly job: Inference;
  readonly rank: number;
  readonly model: Model;
  readonly device: Device["Service"];
  readonly recorder: Recorder;
  /** To all other ranks. */
  readonly links: ReadonlyMap<Slot, Link>;
  readonly answers: ReadonlyMap<Slot, Link>;
}

/** Queries of one sequence, and the keys that they meet. */
export interface Guest {
  readonly past: number;
  /** Tokens that came in this turn, whose keys are there already. */
  readonly tokens: number;
  /** Where all keys are, and those that are here. */
  readonly keys: Placement;
  readonly cache: Cache;
  /** Where the queries are, and those that are here: [tokens, heads, headDim]. */
  readonly queries: Placement;
  readonly values: Float32Array;
}

/** What goes wrong in a layer. */
export type MeetingError =
  | DeviceFailed
  | FrameRejected
  | InvalidProblem
  | LinkError
  | MergeViolation
  | VariantInvalid;

const about = { activity: "compute", step: 0, block: -1, bytes: 0 } as const;

const queriesOf = (
  { heads, kvHeads, headDim, scale }: Model,
  attention: Attention,
  tokens: number,
  values: Float32Array,
): Queries => ({
  ...{ batch: 1, heads, kvHeads, headDim, scale, tokens, dtype: "f32", bytes: bytesOf(values) },
  ...(attention.mask ?? attention.score ? { attention } : {}),
});

/** What queries at these spans gather of the keys that are here. */
const gather = (
  { device, model, recorder }: MeetingParts,
  layer: number,
  attention: Attention,
  cache: Cache,
  spans: ReadonlyArray<Span>,
  values: Float32Array,
): Effect.Effect<Attended, DeviceFailed> => {
  const tokens = tokensIn(spans);
  const seen = cache.stretches(layer).map((stretch) => ({
    ...stretch,
    ...tilesOf(attention, new Asking(), spans, stretch.span),
  })).filter(({ tiles }) => tiles.length > 0);
  if (seen.length === 0) return Effect.succeed(unseen(tokens * model.heads, model.headDim));
  const gathering = Effect.gen(function* () {
    const { absorb, finish } = yield* device.begin(queriesOf(model, attention, tokens, values));
    yield* Effect.forEach(
      seen,
      ({ keyValues, tiles }) => absorb(keyValues, tiles, attention.band),
      { concurrency: 2, discard: true },
    );
    return yield* finish;
  });
  return recorder.timed(about, Effect.scoped(gathering));
};

/** What this rank's queries of one sequence gather while all keys and values go around the ring. */
const around = Effect.fnUntraced(function* (
  { job, rank, model, device, recorder, links }: MeetingParts,
  layer: number,
  step: number,
  attention: Attention,
  { past, tokens, keys, cache, queries, values }: Guest,
): Effect.fn.Return<Attended, MeetingError, Scope.Scope> {
  const { heads, kvHeads, headDim, scale } = model;
  const plan = yield* Effect.fromResult(planOf({
    problem: {
      ...{ batch: 1, tokens: past + tokens, heads, kvHeads, headDim, scale },
      attention: model.attention(layer),
    },
    layout: "contiguous",
    weights: Array.from({ length: job.ring }, () => 1),
    wire: job.cache,
    held: { queries, keys },
  }));
  const mine = plan.ranks[rank]!;
  const required = requiredOf(mine);
  const held = new Held();
  const home = new Map<number, Block>();
  for (const block of plan.blocks.filter(({ home }) => home === rank)) {
    const users = (required.includes(block.id) ? 1 : 0) + (block.path.length > 0 ? 1 : 0);
    if (users === 0) continue;
    home.set(block.id, Block.whole(block, cache.rows(layer, block.row, block.span.count)));
    held.hold(block, users);
  }
  const hop = ({ id, home, path, bytes }: BlockPlan, to: number) => ({
    ...{ run: job.run, epoch: job.epoch, layer: step, kind: "kv" as const, block: id },
    ...{ step: (to - home + job.ring) % job.ring, from: [home, ...path][path.indexOf(to)]!, to },
    ...{ bytes, chunkBytes: job.chunkBytes },
  });
  const { absorb, finish } = yield* device.begin(
    queriesOf(model, attention, mine.tokens, values),
  );
  yield* passBlocks(
    {
      ...{ mine, home, held, recorder, links, sent: { keysAndValues: 0, gradients: 0 } },
      ledger: new Ledger(rank, required),
    },
    hop,
    ({ plan: { span }, bytes }, tiles) =>
      Effect.map(
        absorb({ tokens: span.count, dtype: job.cache, bytes }, tiles, attention.band),
        (busy) => ({ busy, deliver: Effect.void }),
      ),
  );
  return yield* finish;
}, Effect.scoped);

/**
 * o of the queries that are here, guest after guest, [tokens, heads, headDim] each.
 *
 * @param step Numbers the layers of all turns: what moves in one is not taken for what moves in another.
 */
export const meet = Effect.fn("meet")(function* (
  parts: MeetingParts,
  layer: number,
  step: number,
  guests: ReadonlyArray<Guest>,
): Effect.fn.Return<ReadonlyArray<Float32Array>, MeetingError, Scope.Scope> {
  const { job, rank, model, links, answers } = parts;
  const { heads, kvHeads, headDim } = model;
  const found = new Map<Guest, Attended>();
  const asking: Array<{ readonly guest: Guest; readonly attention: Attention }> = [];
  for (const guest of guests) {
    const attention = yield* Effect.fromResult(resolveAttention(
      model.attention(layer),
      { batch: 1, tokens: guest.past + guest.tokens, heads, kvHeads, headDim },
    ));
    const met = {
      keys: guest.past + guest.tokens,
      queries: guest.queries.reduce((sum, spans) => sum + tokensIn(spans), 0),
    };
    if (wayOf(model, job.cache, met, job.ring) === "star") asking.push({ guest, attention });
    else found.set(guest, yield* around(parts, layer, step, attention, guest));
  }
  const gathered = yield* star({
    ...{ rank, ring: job.ring, heads, headDim },
    tokens: Array.from(
      { length: job.ring },
      (_, asker) => asking.map(({ guest }) => tokensIn(guest.queries[asker]!)),
    ),
    seen: (asker, holder) =>
      asking.some(({ attention, guest: { queries, keys } }) =>
        keys[holder]!.some((span) =>
          tilesOf(attention, new Asking(false), queries[asker]!, span).tiles.length > 0
        )
      ),
    queries: asking.map(({ guest }) => guest.values),
    gather: (asker, i, values) => {
      const { attention, guest: { cache, queries } } = asking[i]!;
      return gather(parts, layer, attention, cache, queries[asker]!, values);
    },
    timed: (bytes, answer) =>
      parts.recorder.timed({ activity: "receive", step: 0, block: -1, bytes }, answer),
    questions: links,
    answers,
    address: (kind, asker, from, to) => ({
      ...{ run: job.run, epoch: job.epoch, layer: step, kind, block: asker, step: 0, from, to },
      chunkBytes: job.chunkBytes,
    }),
  });
  for (const [i, { guest }] of asking.entries()) found.set(guest, gathered[i]!);
  return guests.map((guest) => found.get(guest)!.o);
});
