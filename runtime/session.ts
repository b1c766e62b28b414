/**
 * The driver of a model: starts its ranks, and lets sequences grow turn by turn. Whatever is longer than what ranks should
 * hold activations of at once comes in several turns.
 *
 * @module
 */
import { Deferred, Effect, type Scope } from "effect";
import { chunkFor } from "./attend.ts";
import { Watch } from "./beat.ts";
import { Crew } from "./crew.ts";
import type { DType } from "./dtype.ts";
import type { FrameRejected, LinkError, RankFailed } from "./errors.ts";
import type { Inference } from "./inference.ts";
import { newRun } from "./job.ts";
import { type Link, Links } from "./link.ts";
import { sealMark } from "./manifest.ts";
import { from, placementOf, positionsOf } from "./placement.ts";
import type { Interval } from "./timeline.ts";
import { receiveBytes, sendBytes } from "./transfer.ts";
import { countsOf, encodeTurn, type Growth, type Share, transfersOf, type Turn } from "./turn.ts";

/** New tokens on a rank in one turn, at most. */
export const usualRows = 2048;

/** A model on a crew. */
export interface SessionOptions {
  /** Of its files. */
  readonly model: string;
  readonly vocabulary: number;
  readonly ring: number;
  /** Tokens that every layer sees at most; as many as it was made for by default. */
  readonly window?: number;
  /** Format in which keys and values are held; float32 by default. */
  readonly cache?: DType;
  /** New tokens on a rank in one turn, at most: its activations are of so many. */
  readonly rowsAtOnce?: number;
  readonly interval?: (interval: Interval) => Effect.Effect<void>;
}

/** Tokens that come to a sequence. */
export interface Extension {
  readonly sequence: number;
  readonly ids: ArrayLike<number>;
  /** Of how many of them, from the last one backwards, the logits are asked for; of the last one by default. */
  readonly wanted?: number;
}

/** What ends a session. */
export type SessionError = FrameRejected | LinkError | RankFailed;

/** A model that runs. */
export interface Session {
  /**
   * Lets sequences grow, and gives the logits of each, [wanted, vocabulary] in the order of its tokens. It takes several
   * turns where these are more tokens than ranks should have activations of at once.
   */
  readonly extend: (
    extensions: ReadonlyArray<Extension>,
  ) => Effect.Effect<ReadonlyArray<Float32Array>, SessionError>;
  /** Begins a sequence with the first tokens of another, which stays as it is. */
  readonly share: (sequence: number, from: number, tokens: number) => void;
  /** Forgets sequences with the next turn. */
  readonly drop: (sequence: number) => void;
  /** Tokens of a sequence that are there. */
  readonly lengthOf: (sequence: number) => number;
}

/** A piece of an extension, in one turn. */
interface Piece {
  readonly growth: Growth;
  readonly ids: ArrayLike<number>;
}

/** Sends a turn to a rank and takes its logits, [tokens, vocabulary]. */
const askRank = Effect.fnUntraced(function* (
  link: Link,
  job: Inference,
  rank: number,
  n: number,
  turn: Turn,
  ids: Uint32Array,
  vocabulary: number,
) {
  const transfers = transfersOf(job, rank, n);
  const text = encodeTurn(turn);
  yield* sendBytes(link, transfers.length, sealMark(text.length));
  yield* sendBytes(link, transfers.turn(text.length), text);
  yield* sendBytes(
    link,
    transfers.ids(ids.length),
    new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength),
  );
  const { wanted } = countsOf(turn, job.ring, rank);
  const bytes = yield* receiveBytes(link, transfers.logits(4 * wanted * vocabulary));
  return new Float32Array(bytes.buffer);
});

/** Starts a model on a crew; it ends with the scope. */
export const openSession = Effect.fn("openSession")(function* (
  { model, vocabulary, ring, cache = "f32", rowsAtOnce = usualRows, window, interval }:
    SessionOptions,
): Effect.fn.Return<Session, SessionError, Scope.Scope | Crew | Links> {
  const crew = yield* Crew;
  const links = yield* Links;
  const job: Inference = {
    ...{ kind: "model", run: yield* newRun, epoch: 0, model, ring, cache },
    chunkBytes: chunkFor(links.maxFrame),
    ...(window === undefined ? {} : { window }),
  };
  const failure = yield* Deferred.make<never, SessionError>();
  const blame = (error: SessionError) => Effect.asVoid(Deferred.fail(failure, error));
  const sound = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.raceFirst(effect, Deferred.await(failure));
  const ranks = Array.from({ length: ring }, (_, rank) => rank);
  if (crew.ended !== undefined) {
    const { ended } = crew;
    yield* Effect.addFinalizer(() => ended(job.run));
  }
  const watch = new Watch();
  for (const rank of ranks) {
    yield* crew.run(job, rank, {
      interval: (seen) => {
        watch.see(seen);
        return interval?.(seen) ?? Effect.void;
      },
      beat: (beat) => {
        const stuck = watch.verdict(beat);
        return stuck === undefined ? Effect.void : blame(stuck);
      },
      finished: () => Effect.void,
      failed: blame,
    }).pipe(Effect.catch(blame), Effect.forkScoped);
  }
  const opened = yield* sound(Effect.forEach(
    ranks,
    (peer) => links.open({ run: job.run, epoch: 0, self: "driver", peer }),
    { concurrency: "unbounded" },
  ));

  const lengths = new Map<number, number>();
  const shared: Array<Share> = [];
  const dropped: Array<number> = [];
  let turns = 0;
  /** One turn, whose logits come in the order of the tokens of each sequence. */
  const turn = Effect.fnUntraced(function* (pieces: ReadonlyArray<Piece>) {
    const n = turns++;
    const said: Turn = {
      sequences: pieces.map(({ growth }) => growth),
      shared: shared.splice(0),
      dropped: dropped.splice(0),
    };
    const placed = pieces.map(({ growth: { past, tokens } }) => placementOf(past, tokens, ring));
    const found = yield* Effect.forEach(ranks, (rank) => {
      const ids = pieces.flatMap(({ ids, growth: { past } }, i) =>
        positionsOf(placed[i]![rank]!).map((position) => ids[position - past]!)
      );
      return askRank(opened[rank]!, job, rank, n, said, Uint32Array.from(ids), vocabulary);
    }, { concurrency: "unbounded" });
    const at = ranks.map(() => 0);
    return pieces.map(({ growth: { past, tokens, wanted } }, i) => {
      const all = new Float32Array(wanted * vocabulary);
      const first = past + tokens - wanted;
      for (const rank of ranks) {
        for (const position of positionsOf(from(placed[i]![rank]!, first))) {
          const row = found[rank]!.subarray(at[rank]!, at[rank]! += vocabulary);
          all.set(row, (position - first) * vocabulary);
        }
      }
      return all;
    });
  });

  const extend: Session["extend"] = Effect.fnUntraced(function* (extensions) {
    const asked = extensions.map(({ sequence, ids, wanted = 1 }) => {
      if (wanted > ids.length) {
        throw new RangeError(`logits of ${wanted} tokens were asked for, and ${ids.length} came`);
      }
      return { sequence, ids, wanted, at: 0, logits: new Float32Array(wanted * vocabulary) };
    });
    // Each turn takes from all of them in order, until it is full.
    for (let left = asked; left.length > 0; left = left.filter(({ ids, at }) => at < ids.length)) {
      let room = rowsAtOnce * ring;
      const pieces: Array<Piece> = [];
      const rows: Array<Float32Array> = [];
      for (const one of left) {
        const { sequence, ids, wanted, at, logits } = one;
        const tokens = Math.min(room, ids.length - at);
        if (tokens === 0) continue;
        room -= tokens;
        // Those of its tokens that are among the last ones.
        const first = ids.length - wanted;
        const own = Math.max(0, at + tokens - Math.max(at, first));
        const before = Math.max(0, at - first);
        const past = lengths.get(sequence) ?? 0;
        lengths.set(sequence, past + tokens);
        pieces.push({
          growth: { id: sequence, past, tokens, wanted: own },
          ids: Array.prototype.slice.call(ids, at, at + tokens),
        });
        rows.push(logits.subarray(before * vocabulary, (before + own) * vocabulary));
        one.at += tokens;
      }
      if (pieces.length === 0) break;
      const found = yield* turn(pieces);
      for (const [i, part] of found.entries()) rows[i]!.set(part);
    }
    return asked.map(({ logits }) => logits);
  }, sound);
  return {
    extend,
    share: (id, from, tokens) => {
      lengths.set(id, tokens);
      shared.push({ id, from, tokens });
    },
    drop: (sequence) => {
      lengths.delete(sequence);
      dropped.push(sequence);
    },
    lengthOf: (sequence) => lengths.get(sequence) ?? 0,
  };
});
