/**
 * Turns: what the driver of a model asks of its ranks, one after the other. A turn lets sequences grow by some tokens and
 * gives the logits of their last ones. Between driver and ranks it travels as small JSON.
 *
 * @module
 */
import { Result, Schema } from "effect";
import type { Model } from "./model.ts";
import { type DType, elementBytes } from "./dtype.ts";
import type { Inference } from "./inference.ts";
import { Order } from "./parts_messages.ts";
import { from, type Placement, placementOf, tokensIn } from "./placement.ts";
import type { Transfer } from "./transfer.ts";

/** Some sequences, and what comes to each of them. */
export const Turn = Schema.Struct({
  sequences: Schema.Array(Schema.Struct({
    id: Schema.Natural,
    /** Tokens that are there already. */
    past: Schema.Natural,
    /** Tokens that come. */
    tokens: Schema.Natural,
    /** Of how many of them, from the last one backwards, the logits are asked for. */
    wanted: Schema.Natural,
  })),
  /** New sequences, each of which begins with the first tokens of another, as it is before this turn. */
  shared: Schema.Array(Schema.Struct({
    id: Schema.Natural,
    from: Schema.Natural,
    tokens: Schema.Natural,
  })),
  /** Sequences that nobody needs any more once these have begun. */
  dropped: Schema.Array(Schema.Natural),
  /** What is to be done about parts, once these have begun and before any of them grows. */
  orders: Schema.Array(Order),
});
/** Some sequences, and what comes to each of them. */
export type Turn = typeof Turn.Type;
/** One of them. */
export type Growth = Turn["sequences"][number];
/** A sequence that begins like another. */
export type Share = Turn["shared"][number];

/** How queries and keys meet: blocks of keys go around the ring, or queries go to all ranks and results come back. */
export type Way = "ring" | "star";

/** What a model and its cache say about bytes on links. */
type Traffic = Pick<Model, "heads" | "kvHeads" | "headDim">;

/**
 * The way that moves fewer bytes in a layer: K and V of all tokens from rank to rank, or queries to every rank and o and
 * lse of each back. A few always ask, which takes one round trip.
 *
 * Source: the rule of Yang et al. 2024, "Context Parallelism for Scalable Million-Token Inference", by bytes alone.
 */
export const wayOf = (
  { heads, kvHeads, headDim }: Traffic,
  dtype: DType,
  { keys, queries }: { readonly keys: number; readonly queries: number },
  ring: number,
): Way => {
  if (ring === 1 || queries < 2 * ring) return "star";
  const around = keys * 2 * kvHeads * headDim * elementBytes(dtype);
  const asked = queries * heads * (2 * headDim + 1) * 4;
  return around <= asked ? "ring" : "star";
};

/** Of these, the ones whose logits are asked for. */
export const wantedOf = ({ past, tokens, wanted }: Growth, placement: Placement): Placement =>
  placement.map((spans) => from(spans, past + tokens - wanted));

const json = Schema.fromJsonString(Turn);
const [encode, decode] = [Schema.encodeSync(json), Schema.decodeUnknownResult(json)];
/** A turn as it travels. */
export const encodeTurn = (turn: Turn): Uint8Array => new TextEncoder().encode(encode(turn));
/** The same taken apart, or what is wrong with it. */
export const decodeTurn = (bytes: Uint8Array): Result.Result<Turn, string> =>
  Result.mapError(decode(new TextDecoder().decode(bytes.slice())), ({ message }) => message);

/** Bytes that a turn says it has, at most. */
export const largestTurn = 16 * 1024 * 1024;

/** What moves between the driver and a rank in the n-th turn. */
export const transfersOf = (job: Inference, rank: number, n: number) => {
  const down = (kind: Transfer["kind"], bytes: number): Transfer => ({
    ...{ run: job.run, epoch: job.epoch, layer: n, kind, block: rank, step: 0, bytes },
    ...{ from: "driver", to: rank, chunkBytes: job.chunkBytes },
  });
  return {
    length: down("mark", 4),
    turn: (bytes: number) => down("turn", bytes),
    ids: (tokens: number) => down("ids", 4 * tokens),
    logits: (bytes: number): Transfer => ({ ...down("logits", bytes), from: rank, to: "driver" }),
  };
};

/** Tokens that come to a rank in a turn, and those of them whose logits it gives. */
export const countsOf = ({ sequences }: Turn, ring: number, rank: number) => {
  const placed = sequences.map((growth) => {
    const arriving = placementOf(growth.past, growth.tokens, ring);
    return [tokensIn(arriving[rank]!), tokensIn(wantedOf(growth, arriving)[rank]!)] as const;
  });
  return {
    arriving: placed.reduce((sum, [arriving]) => sum + arriving, 0),
    wanted: placed.reduce((sum, [, wanted]) => sum + wanted, 0),
  };
};
