/**
 * What drivers and ranks say to each other about parts: orders come with turns, so that they are about sequences as they
 * are then, and what became of them is told on a link of its own, whenever that is.
 *
 * @module
 */
import { Effect, Result, Schema } from "effect";
import { FrameRejected, type LinkError } from "./errors.ts";
import type { Inference } from "./inference.ts";
import { type Link, slotName } from "./link.ts";
import { openMark, sealMark } from "./manifest.ts";
import { PartsName } from "./parts.ts";
import { receiveBytes, sendBytes, type Transfer } from "./transfer.ts";

const Span = Schema.Struct({
  start: Schema.Natural,
  run: Schema.Natural.check(Schema.isGreaterThan(0)),
  stride: Schema.Natural.check(Schema.isGreaterThan(0)),
  first: Schema.Natural,
  count: Schema.Natural.check(Schema.isGreaterThan(0)),
});
/** Who holds which tokens of a text, as it is written down. */
export const WrittenPlacement = Schema.Array(Schema.Array(Span));

/** What ranks are asked to do with parts. */
export const Order = Schema.Union([
  /** Each keeps its part of a sequence. */
  Schema.Struct({
    order: Schema.Literal("keep"),
    op: Schema.Natural,
    name: PartsName,
    id: Schema.Natural,
  }),
  /** A new sequence begins with the first tokens of what was kept. */
  Schema.Struct({
    order: Schema.Literal("use"),
    op: Schema.Natural,
    name: PartsName,
    id: Schema.Natural,
    tokens: Schema.Natural,
    /** By rank, the part that it takes and its CRC-32, and all tokens of that. */
    parts: Schema.Array(Schema.Struct({ part: Schema.Natural, sum: Schema.Natural })),
    placement: WrittenPlacement,
  }),
  Schema.Struct({ order: Schema.Literal("forget"), op: Schema.Natural, name: PartsName }),
]);
/** What ranks are asked to do with parts. */
export type Order = typeof Order.Type;

/** What a rank tells of parts. */
export const Told = Schema.Union([
  /** At first: whether it has a place for them, and what is there. */
  Schema.Struct({
    told: Schema.Literal("there"),
    place: Schema.Boolean,
    parts: Schema.Array(Schema.Struct({ name: PartsName, part: Schema.Natural })),
  }),
  Schema.Struct({
    told: Schema.Literal("done"),
    op: Schema.Natural,
    kept: Schema.optionalKey(Schema.Struct({ sum: Schema.Natural, bytes: Schema.Natural })),
  }),
  Schema.Struct({ told: Schema.Literal("failed"), op: Schema.Natural, reason: Schema.String }),
]);
/** What a rank tells of parts. */
export type Told = typeof Told.Type;

const json = Schema.fromJsonString(Told);
const [encode, decode] = [Schema.encodeSync(json), Schema.decodeUnknownResult(json)];

/** Bytes that a message says it has, at most. */
const largestTold = 16 * 1024 * 1024;

const transfersOf = (job: Inference, rank: number, n: number) => {
  const up = (kind: Transfer["kind"], bytes: number): Transfer => ({
    ...{ run: job.run, epoch: job.epoch, layer: n, kind, block: rank, step: 0, bytes },
    ...{ from: rank, to: "driver", chunkBytes: job.chunkBytes },
  });
  return { length: up("mark", 4), told: (bytes: number) => up("told", bytes) };
};

/** Tells the n-th message of a rank. */
export const tell = Effect.fnUntraced(function* (
  link: Link,
  job: Inference,
  rank: number,
  n: number,
  message: Told,
): Effect.fn.Return<void, LinkError> {
  const { length, told } = transfersOf(job, rank, n);
  const bytes = new TextEncoder().encode(encode(message));
  yield* sendBytes(link, length, sealMark(bytes.length));
  yield* sendBytes(link, told(bytes.length), bytes);
});

/** Hears the n-th message of a rank. */
export const hearTold = Effect.fnUntraced(function* (
  link: Link,
  job: Inference,
  rank: number,
  n: number,
): Effect.fn.Return<Told, FrameRejected | LinkError> {
  const odd = (field: string, needed: string, found: string) =>
    new FrameRejected({
      ...{ run: job.run, peer: slotName(rank), what: "what it keeps", field, needed, found },
    });
  const { length, told } = transfersOf(job, rank, n);
  const bytes = openMark(yield* receiveBytes(link, length));
  if (bytes > largestTold) return yield* odd("length", `at most ${largestTold} bytes`, `${bytes}`);
  const text = new TextDecoder().decode((yield* receiveBytes(link, told(bytes))).slice());
  const message = decode(text);
  if (Result.isFailure(message)) {
    return yield* odd("text", "what ranks tell", message.failure.message);
  }
  return message.success;
});
