/**
 * Attention as a star: whoever has queries asks all ranks at once, each answers with o and lse over its own keys, and the
 * asker merges. One round trip, however many ranks there are; keys and values stay where they are.
 *
 * @module
 */
import { Effect } from "effect";
import { bytesOf, decode } from "./dtype.ts";
import type { DeviceFailed, FrameRejected, LinkError } from "./errors.ts";
import type { Attended } from "./kernel.ts";
import type { Link, Slot } from "./link.ts";
import { asLse } from "./lse.ts";
import { merge } from "./merge.ts";
import { apart, concatenated } from "./rows.ts";
import { receiveBytes, sendBytes, type Transfer } from "./transfer.ts";

/** What a rank needs to be part of a star. */
export interface StarParts {
  readonly rank: number;
  readonly ring: number;
  readonly heads: number;
  readonly headDim: number;
  /** Of every rank, its query tokens of each sequence. */
  readonly tokens: ReadonlyArray<ReadonlyArray<number>>;
  /** Whether a rank's keys are seen by any queries of another. */
  readonly seen: (asker: number, holder: number) => boolean;
  /** The own queries of each sequence, [tokens, heads, headDim]. */
  readonly queries: ReadonlyArray<Float32Array>;
  /** What queries of a sequence gather of this rank's keys. */
  readonly gather: (
    asker: number,
    sequence: number,
    queries: Float32Array,
  ) => Effect.Effect<Attended, DeviceFailed>;
  /** Measures how long an answer takes from its question on. */
  readonly timed: <A, E>(bytes: number, answer: Effect.Effect<A, E>) => Effect.Effect<A, E>;
  /** Where questions go, and where answers do. */
  readonly questions: ReadonlyMap<Slot, Link>;
  readonly answers: ReadonlyMap<Slot, Link>;
  /** The address of what moves between two ranks, about the queries of `asker`. */
  readonly address: (
    kind: "q" | "o" | "lse",
    asker: number,
    from: number,
    to: number,
  ) => Omit<Transfer, "bytes">;
}

/** What has seen nothing yet. */
export const unseen = (rows: number, headDim: number): Attended => ({
  o: new Float32Array(rows * headDim),
  lse: asLse(new Float32Array(rows).fill(-Infinity)),
});

/** What the own queries of each sequence gather of all keys. */
export const star = Effect.fn("star")(function* (
  { rank, ring, heads, headDim, tokens, seen, queries, gather, timed, questions, answers, address }:
    StarParts,
): Effect.fn.Return<ReadonlyArray<Attended>, DeviceFailed | FrameRejected | LinkError> {
  const rowsOf = (asker: number) => tokens[asker]!.map((tokens) => tokens * heads);
  const total = (asker: number) => rowsOf(asker).reduce((a, b) => a + b, 0);
  const others = Array.from({ length: ring }, (_, other) => other).filter((other) =>
    other !== rank
  );
  const holders = others.filter((other) => total(rank) > 0 && seen(rank, other));
  const askers = others.filter((other) => total(other) > 0 && seen(other, rank));
  const transfer = (kind: "q" | "o" | "lse", asker: number, from: number, to: number) => ({
    ...address(kind, asker, from, to),
    bytes: total(asker) * (kind === "lse" ? 1 : headDim) * 4,
  });
  const receiveFloats = (link: Link, transfer: Transfer) =>
    Effect.map(receiveBytes(link, transfer), (bytes) => decode("f32", bytes));

  const ask = Effect.suspend(() => {
    const bytes = bytesOf(concatenated(queries));
    return Effect.forEach(
      holders,
      (holder) => sendBytes(questions.get(holder)!, transfer("q", rank, rank, holder), bytes),
      { concurrency: "unbounded", discard: true },
    );
  });
  const answer = Effect.forEach(askers, (asker) =>
    Effect.gen(function* () {
      const all = yield* receiveFloats(questions.get(asker)!, transfer("q", asker, asker, rank));
      const each = apart(all, rowsOf(asker).map((rows) => rows * headDim));
      const found = yield* Effect.forEach(each, (values, i) => gather(asker, i, values));
      const link = answers.get(asker)!;
      const [o, lse] = [found.map(({ o }) => o), found.map(({ lse }) => lse)];
      yield* sendBytes(link, transfer("o", asker, rank, asker), bytesOf(concatenated(o)));
      yield* sendBytes(link, transfer("lse", asker, rank, asker), bytesOf(concatenated(lse)));
    }), { concurrency: "unbounded", discard: true });
  const own = Effect.forEach(queries, (values, i) => gather(rank, i, values));
  const answerBytes = transfer("o", rank, rank, rank).bytes +
    transfer("lse", rank, rank, rank).bytes;
  const collect = Effect.forEach(holders, (holder) =>
    timed(
      answerBytes,
      Effect.gen(function* () {
        const link = answers.get(holder)!;
        const rows = rowsOf(rank);
        const o = apart(
          yield* receiveFloats(link, transfer("o", rank, holder, rank)),
          rows.map((rows) => rows * headDim),
        );
        const lse = apart(yield* receiveFloats(link, transfer("lse", rank, holder, rank)), rows);
        return { holder, found: o.map((o, i): Attended => ({ o, lse: asLse(lse[i]!) })) };
      }),
    ), { concurrency: "unbounded" });
  const [mine, theirs] = yield* Effect.all([own, collect, ask, answer], {
    concurrency: "unbounded",
  });
  // In the order of ranks, so that the result has the same bits whoever answers first.
  const inOrder = [{ holder: rank, found: mine }, ...theirs].toSorted((a, b) =>
    a.holder - b.holder
  );
  return tokens[rank]!.map((tokens, i) => {
    const all = unseen(tokens * heads, headDim);
    for (const { found } of inOrder) merge(all, found[i]!, { heads, tokens });
    return all;
  });
});
