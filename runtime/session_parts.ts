/**
 * The driver's side of parts: has all ranks keep theirs of a sequence, or begin one with what they have kept.
 *
 * @module
 */
import { Deferred, Effect, type Scope } from "effect";
import { CacheUnusable, type FrameRejected, type LinkError, type RankFailed } from "./errors.ts";
import type { Inference } from "./inference.ts";
import type { Link } from "./link.ts";
import type { KeptPart } from "./parts.ts";
import { hearTold, type Order, type Told } from "./parts_messages.ts";
import { before, type Placement } from "./placement.ts";

/** What is used of a text that was kept. */
export interface Used {
  readonly name: string;
  /** Its first so many. */
  readonly tokens: number;
  /** By rank, the part that it takes, its CRC-32, and all tokens of that. */
  readonly parts: ReadonlyArray<{ readonly part: number; readonly sum: number }>;
  readonly placement: Placement;
}

/** The parts that ranks keep. */
export interface SessionParts {
  /** By rank, which it has of each name; nothing where it has no place for any. */
  readonly there: ReadonlyArray<ReadonlyMap<string, ReadonlySet<number>> | undefined>;
  /** Each rank keeps its part of a sequence, which must stay until this returns. */
  readonly keep: (
    name: string,
    sequence: number,
  ) => Effect.Effect<
    { readonly placement: Placement; readonly parts: ReadonlyArray<KeptPart> },
    PartsError
  >;
  /** A new sequence begins with the first tokens of what was kept; where that fails, it is to be dropped. */
  readonly use: (sequence: number, used: Used) => Effect.Effect<void, PartsError>;
  readonly forget: (name: string) => Effect.Effect<void, PartsError>;
}

/** What goes wrong with parts: they cannot be kept or used, or the session has ended. */
export type PartsError = CacheUnusable | FrameRejected | LinkError | RankFailed;

type Answer = Exclude<Told, { readonly told: "there" }>;

/**
 * @param links To the ranks, for what they tell.
 * @param send Sends an order with a turn.
 * @param sequences Where the tokens of each are.
 * @param blame Hears what ends the session.
 */
export const openParts = Effect.fn("openParts")(function* (
  job: Inference,
  links: ReadonlyArray<Link>,
  send: (order: Order) => Effect.Effect<void, FrameRejected | LinkError | RankFailed>,
  sequences: Map<number, Placement>,
  blame: (error: FrameRejected) => Effect.Effect<void>,
): Effect.fn.Return<SessionParts, FrameRejected | LinkError, Scope.Scope> {
  const waiting = new Map<number, ReadonlyArray<Deferred.Deferred<Answer>>>();
  const there = yield* Effect.forEach(links, (link, rank) =>
    Effect.gen(function* () {
      const first = yield* hearTold(link, job, rank, 0);
      const own = new Map<string, Set<number>>();
      if (first.told === "there") {
        for (const { name, part } of first.parts) {
          own.set(name, (own.get(name) ?? new Set()).add(part));
        }
      }
      return first.told === "there" && first.place ? own : undefined;
    }), { concurrency: "unbounded" });
  for (const [rank, link] of links.entries()) {
    let n = 1;
    const next = Effect.gen(function* () {
      const told = yield* hearTold(link, job, rank, n++);
      if (told.told === "there") return;
      const deferred = waiting.get(told.op)?.[rank];
      if (deferred !== undefined) yield* Deferred.succeed(deferred, told);
    });
    yield* Effect.forever(next).pipe(
      // Nothing can be heard behind it.
      Effect.catchTag("FrameRejected", blame),
      // A link that fails is noticed by its rank, or by the turns.
      Effect.ignore,
      Effect.forkScoped,
    );
  }

  let ops = 0;
  /** What all ranks told of an order, if none of them failed. */
  const ask = Effect.fnUntraced(function* (
    attempted: string,
    name: string,
    orderOf: (op: number) => Order,
  ) {
    const op = ops++;
    const answers = yield* Effect.forEach(links, () => Deferred.make<Answer>());
    waiting.set(op, answers);
    yield* send(orderOf(op));
    const told = yield* Effect.forEach(answers, (answer) => Deferred.await(answer)).pipe(
      Effect.ensuring(Effect.sync(() => waiting.delete(op))),
    );
    const rank = told.findIndex((one) => one.told === "failed");
    if (rank < 0) return told.map((one) => "kept" in one ? one.kept : undefined);
    const { reason } = told[rank] as Extract<Answer, { readonly told: "failed" }>;
    return yield* new CacheUnusable({ cache: name, attempted, rank, reason });
  });
  return {
    there,
    keep: Effect.fnUntraced(function* (name, id) {
      const placement = sequences.get(id)!;
      const kept = yield* ask("keep", name, (op) => ({ order: "keep", op, name, id }));
      for (const [rank, own] of there.entries()) own?.set(name, new Set([rank]));
      return { placement, parts: kept.map((part) => part ?? { sum: 0, bytes: 0 }) };
    }),
    use: Effect.fnUntraced(function* (id, { name, tokens, parts, placement }) {
      yield* ask(
        ...["use", name] as const,
        (op) => ({ order: "use", op, name, id, tokens, parts, placement }),
      );
      sequences.set(id, placement.map((spans) => before(spans, tokens)));
    }),
    forget: Effect.fnUntraced(function* (name) {
      yield* ask("forget", name, (op) => ({ order: "forget", op, name }));
      for (const own of there) own?.delete(name);
    }),
  };
});
