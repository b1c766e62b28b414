/**
 * The driver of a model: starts its ranks, and lets sequences grow turn by turn. Whatever is longer than what ranks should
 * hold activations of at once comes in several turns.
 *
 * @module
 */
import { Deferred, Effect, type Scope, Semaphore } from "effect";
import { chunkFor } from "./attend.ts";
import { Watch } from "./beat.ts";
import { Crew } from "./crew.ts";
import type { DType } from "./dtype.ts";
import { type FrameRejected, type LinkError, LinkFailed, type RankFailed } from "./errors.ts";
import type { Inference } from "./inference.ts";
import { newRun } from "./job.ts";
import { type Ends, type Link, Links, slotName } from "./link.ts";
import { sealMark } from "./manifest.ts";
import type { Model } from "./model.ts";
import type { Order } from "./parts_messages.ts";
import {
  before,
  from,
  joined,
  type Placement,
  placementOf,
  positionsOf,
  tokensIn,
} from "./placement.ts";
import { openParts, type SessionParts } from "./session_parts.ts";
import type { Interval } from "./timeline.ts";
import { receiveBytes, sendBytes } from "./transfer.ts";
import {
  countsOf,
  encodeTurn,
  type Growth,
  type Share,
  transfersOf,
  type Turn,
  type Way,
  wayOf,
} from "./turn.ts";

/** New tokens on a rank in one turn, at most. */
export const usualRows = 2048;

/** A model on a crew. */
export interface SessionOptions {
  /** Of its files. */
  readonly model: string;
  readonly shape: Pick<Model, "vocabulary" | "heads" | "kvHeads" | "headDim">;
  readonly ring: number;
  /** Tokens that every layer sees at most; as many as it was made for by default. */
  readonly window?: number;
  /** Format in which keys and values are held; float32 by default. */
  readonly cache?: DType;
  /** New tokens on a rank in one turn, at most: its activations are of so many. */
  readonly rowsAtOnce?: number;
  /** Tokens of one turn whose logits are given, at most. */
  readonly logitsAtOnce?: number;
  /** Ranks keep parts of texts and use them again, where they have a place for that. */
  readonly parts?: boolean;
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
  /** New tokens in one turn, at most. */
  readonly tokensAtOnce: number;
  /** Begins a sequence with the first tokens of another, which stays as it is. */
  readonly share: (sequence: number, from: number, tokens: number) => void;
  /** Forgets sequences with the next turn. */
  readonly drop: (sequence: number) => void;
  /** Tokens of a sequence that are there. */
  readonly lengthOf: (sequence: number) => number;
  /**
   * Tokens of a sequence that were read here, by the way that their queries met the keys in every layer but the last, of
   * which only those have queries whose logits are asked for. Of what it shares or was kept none was.
   */
  readonly waysOf: (sequence: number) => Readonly<Record<Way, number>>;
  /** What ranks keep beyond the session, where that was asked for. */
  readonly parts?: SessionParts;
}

/** A piece of an extension, in one turn. */
interface Piece {
  readonly growth: Growth;
  readonly ids: ArrayLike<number>;
  readonly arriving: Placement;
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
  options: SessionOptions,
): Effect.fn.Return<Session, SessionError, Scope.Scope | Crew | Links> {
  const { model, shape, ring, cache = "f32", window, parts, interval } = options;
  const { rowsAtOnce = usualRows, logitsAtOnce = Infinity } = options;
  const { vocabulary } = shape;
  const crew = yield* Crew;
  const links = yield* Links;
  const job: Inference = {
    ...{ kind: "model", run: yield* newRun, epoch: 0, model, ring, cache },
    chunkBytes: chunkFor(links.maxFrame),
    ...(window === undefined ? {} : { window }),
    ...(parts === true ? { parts } : {}),
  };
  const failure = yield* Deferred.make<never, SessionError>();
  const blame = (error: SessionError) => Effect.asVoid(Deferred.fail(failure, error));
  const sound = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.raceFirst(effect, Deferred.await(failure));
  // Whoever waits for ranks that nobody hears any more would do so forever.
  yield* Effect.addFinalizer(() =>
    blame(
      new LinkFailed({
        ...{ run: job.run, self: slotName("driver"), peer: "its ranks" },
        ...{ needed: "an open session", found: "one that has ended" },
      }),
    )
  );
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
  const openAll = (peers: ReadonlyArray<number>, lane: Pick<Ends, "lane"> = {}) =>
    Effect.forEach(
      peers,
      (peer) => links.open({ run: job.run, epoch: 0, self: "driver", peer, ...lane }),
      { concurrency: "unbounded" },
    );
  const [opened, lanes] = yield* sound(Effect.all([
    openAll(ranks),
    openAll(parts === true ? ranks : [], { lane: "parts" }),
  ], { concurrency: "unbounded" }));

  /** Where the tokens of each sequence are. */
  const sequences = new Map<number, Placement>();
  const lengthOf = (sequence: number) =>
    (sequences.get(sequence) ?? []).reduce((sum, spans) => sum + tokensIn(spans), 0);
  const ways = new Map<number, Readonly<Record<Way, number>>>();
  const waysOf = (sequence: number) => ways.get(sequence) ?? { ring: 0, star: 0 };
  const shared: Array<Share> = [];
  const dropped: Array<number> = [];
  const one = yield* Semaphore.make(1);
  /** One after the other. One that fails ends the session: ranks may have had a part of it. */
  const inTurn = <A, R>(turn: Effect.Effect<A, FrameRejected | LinkError, R>) =>
    Semaphore.withPermits(one, 1)(Effect.tapError(turn, blame));
  let turns = 0;
  /** One turn, whose logits come in the order of the tokens of each sequence. */
  const turn = Effect.fnUntraced(function* (
    pieces: ReadonlyArray<Piece>,
    orders: ReadonlyArray<Order> = [],
  ) {
    const n = turns++;
    const said: Turn = {
      sequences: pieces.map(({ growth }) => growth),
      shared: shared.splice(0),
      dropped: dropped.splice(0),
      orders,
    };
    const placed = pieces.map(({ arriving }) => arriving);
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
  }, inTurn);

  const extend: Session["extend"] = Effect.fnUntraced(function* (extensions) {
    const asked = extensions.map(({ sequence, ids, wanted = 1 }) => {
      if (wanted > ids.length) {
        throw new RangeError(`logits of ${wanted} tokens were asked for, and ${ids.length} came`);
      }
      return { sequence, ids, wanted, at: 0, logits: new Float32Array(wanted * vocabulary) };
    });
    // Each turn takes from all of them in order, until it is full.
    for (let left = asked; left.length > 0; left = left.filter(({ ids, at }) => at < ids.length)) {
      let [room, answers] = [rowsAtOnce * ring, logitsAtOnce];
      const pieces: Array<Piece> = [];
      const rows: Array<Float32Array> = [];
      for (const one of left) {
        const { sequence, ids, wanted, at, logits } = one;
        // Those of its tokens that are among the last ones.
        const first = ids.length - wanted;
        const unasked = Math.max(0, first - at);
        const tokens = Math.min(room, ids.length - at, unasked + answers);
        if (tokens === 0) continue;
        const own = Math.max(0, tokens - unasked);
        room -= tokens;
        answers -= own;
        const before = Math.max(0, at - first);
        const past = lengthOf(sequence);
        const arriving = placementOf(past, tokens, ring);
        const there = sequences.get(sequence) ?? ranks.map(() => []);
        sequences.set(sequence, there.map((spans, rank) => joined(spans, arriving[rank]!)));
        const way = wayOf(shape, cache, { keys: past + tokens, queries: tokens }, ring);
        const counted = waysOf(sequence);
        ways.set(sequence, { ...counted, [way]: counted[way] + tokens });
        pieces.push({
          growth: { id: sequence, past, tokens, wanted: own },
          arriving,
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
  const kept = parts === true
    ? yield* sound(
      openParts(job, lanes, (order) => Effect.asVoid(turn([], [order])), sequences, blame),
    )
    : undefined;
  return {
    extend,
    tokensAtOnce: rowsAtOnce * ring,
    share: (id, from, tokens) => {
      sequences.set(id, sequences.get(from)!.map((spans) => before(spans, tokens)));
      shared.push({ id, from, tokens });
    },
    drop: (sequence) => {
      sequences.delete(sequence);
      ways.delete(sequence);
      dropped.push(sequence);
    },
    lengthOf,
    waysOf,
    ...(kept === undefined ? {} : {
      parts: {
        there: kept.there,
        keep: (...of) => sound(kept.keep(...of)),
        use: (...of) => sound(kept.use(...of)),
        forget: (name) => sound(kept.forget(name)),
      },
    }),
  };
});
