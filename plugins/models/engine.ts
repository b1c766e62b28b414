/**
 * The engine: several texts at once on one session. Each step lets all of them grow by one token, and new ones by a piece
 * of their prompt, so that nobody waits for another's long text. When a node is lost the session begins anew with what
 * there is, and every text goes on where it was.
 *
 * @module
 */
import { Effect, Exit, Queue, Scope, Stream } from "effect";
import type { Session, SessionError } from "../../runtime/session.ts";
import { type Asked, Continuation, type Piece } from "./continuation.ts";
import type { TextTokens } from "./tokenizer.ts";

/** How to run texts. */
export interface EngineOptions<E> {
  /** Opens a session, with whoever is there then; it ends with the scope. */
  readonly open: Effect.Effect<Session, E, Scope.Scope>;
  readonly tokens: Pick<TextTokens, "decode">;
  /** Tokens of a prompt that are read in one step. */
  readonly piece: number;
  /**
   * Tokens of texts that have ended and are kept, so that what begins like one of them need not be read again; what was
   * used longest ago goes first. None by default.
   */
  readonly kept?: number;
  /** Hears why a session ended that is begun anew. */
  readonly lost?: (error: SessionError) => Effect.Effect<void>;
}

/** Something that happened to a text. */
export type Said =
  /** So many tokens of its prompt are read; at first, so many were there already. */
  | { readonly read: number; readonly of: number }
  | Piece;

/** Whether a text begins with all of another, and goes on. */
const begins = (text: ReadonlyArray<number>, other: ReadonlyArray<number>): boolean =>
  other.length < text.length && other.every((id, i) => id === text[i]);

/** Runs texts. */
export interface Engine<E> {
  /** What the model says, until it ends; interrupting the stream gives the text up. */
  readonly say: (asked: Asked) => Stream.Stream<Said, E | SessionError>;
  /** Texts that grow or wait. */
  readonly active: () => number;
}

/** A text in work. */
interface Text<E> {
  readonly id: number;
  readonly asked: Asked;
  readonly continuation: Continuation;
  readonly heard: Queue.Queue<Said, E | SessionError>;
  /** What the session does not have yet. */
  next: ReadonlyArray<number>;
}

/** Sessions that may end in turn without anything new. */
const patience = 3;

/** Starts an engine; it ends with the scope, and so does what it is saying. */
export const startEngine = Effect.fn("startEngine")(function* <E>(
  { open, tokens, piece, kept = 0, lost = () => Effect.void }: EngineOptions<E>,
): Effect.fn.Return<Engine<E>, E, Scope.Scope> {
  const texts = new Map<number, Text<E>>();
  /** Texts that have ended, as far as the session has them, from the one that was used longest ago on. */
  const ended = new Map<number, ReadonlyArray<number>>();
  const arrivals = yield* Queue.unbounded<void>();
  let nextId = 0;
  const outer = yield* Effect.scope;
  let scope = yield* Scope.fork(outer);
  let session = yield* Scope.provide(open, scope);

  /** One step of all texts. */
  const step = Effect.gen(function* () {
    const growing = [...texts.values()];
    const extensions = growing.map(({ id, next }) => {
      const ids = next.slice(0, piece);
      return { sequence: id, ids, wanted: ids.length === next.length ? 1 : 0 };
    });
    const found = yield* session.extend(extensions);
    for (const [i, text] of growing.entries()) {
      const { ids, wanted } = extensions[i]!;
      text.next = text.next.slice(ids.length);
      if (!texts.has(text.id)) continue;
      if (wanted === 0) {
        const of = text.asked.prompt.length;
        Queue.offerUnsafe(text.heard, { read: session.lengthOf(text.id), of });
        continue;
      }
      const said = text.continuation.next(found[i]!);
      if (said.end !== undefined) drop(text.id);
      text.next = [said.id];
      Queue.offerUnsafe(text.heard, said);
    }
  });
  const drop = (id: number) => {
    const text = texts.get(id);
    if (text === undefined) return;
    texts.delete(id);
    ended.set(id, text.continuation.all.slice(0, session.lengthOf(id)));
    let sum = [...ended.values()].reduce((sum, { length }) => sum + length, 0);
    for (const [id, { length }] of ended) {
      if (sum <= kept) break;
      sum -= length;
      ended.delete(id);
      session.drop(id);
    }
  };
  /** The longest text that has ended and with which this one begins. */
  const known = (prompt: ReadonlyArray<number>) => {
    let best: readonly [id: number, length: number] | undefined;
    for (const [id, text] of ended) {
      if (text.length > (best?.[1] ?? 0) && begins(prompt, text)) best = [id, text.length];
    }
    if (best !== undefined) ended.delete(best[0]);
    return best;
  };
  let failures = 0;
  const failAll = (error: E | SessionError) =>
    Effect.suspend(() => {
      failures = 0;
      const all = [...texts.values()];
      texts.clear();
      return Effect.forEach(all, ({ heard }) => Queue.fail(heard, error), { discard: true });
    });
  /** Begins anew: every text must be read again. */
  const again = (error: SessionError) =>
    Effect.gen(function* () {
      ended.clear();
      yield* Scope.close(scope, Exit.void);
      scope = yield* Scope.fork(outer);
      if (++failures > patience) return yield* Effect.fail(error);
      yield* lost(error);
      session = yield* Scope.provide(open, scope);
      for (const text of texts.values()) text.next = text.continuation.all;
    });
  const work = Effect.gen(function* () {
    if (texts.size === 0) return yield* Queue.take(arrivals);
    yield* step.pipe(
      Effect.tap(Effect.sync(() => void (failures = 0))),
      Effect.catch(again),
      Effect.catch(failAll),
    );
  });
  yield* Effect.forkScoped(Effect.forever(work));

  return {
    active: () => texts.size,
    say: (asked) =>
      Stream.unwrap(Effect.gen(function* () {
        const heard = yield* Queue.unbounded<Said, E | SessionError>();
        yield* Effect.acquireRelease(
          Effect.sync(() => {
            const { prompt } = asked;
            const [id, read] = known(prompt) ?? [nextId++, 0];
            const continuation = new Continuation(asked, tokens);
            texts.set(id, { id, asked, continuation, heard, next: prompt.slice(read) });
            Queue.offerUnsafe(heard, { read, of: prompt.length });
            Queue.offerUnsafe(arrivals, undefined);
            return id;
          }),
          (id) => Effect.sync(() => drop(id)),
        );
        return Stream.takeUntil(
          Stream.fromQueue(heard),
          (said) => "end" in said && said.end !== undefined,
        );
      })),
  };
});
