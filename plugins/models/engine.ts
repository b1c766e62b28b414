/**
 * The engine: several texts at once on one session. Each step lets all of them grow by one token, and new ones by a piece
 * of their prompt, so that nobody waits for another's long text. When a node is lost the session begins anew with what
 * there is, and every text goes on where it was.
 *
 * @module
 */
import { Cause, Effect, Exit, FiberSet, Queue, Scope, Stream } from "effect";
import type { Session, SessionError } from "../../runtime/session.ts";
import type { Way } from "../../runtime/turn.ts";
import { type Asked, Continuation, type Piece } from "./continuation.ts";
import { alike, type SavedTexts } from "./saved_texts.ts";
import type { TextTokens } from "./tokenizer.ts";

/** How to run texts. */
export interface EngineOptions<E> {
  /** Opens a session, with whoever is there then; it ends with the scope. */
  readonly open: Effect.Effect<Session, E, Scope.Scope>;
  readonly tokens: Pick<TextTokens, "decode">;
  /** Tokens for which there is room, of all texts together; asked once a session is open. */
  readonly room?: () => number;
  /**
   * Tokens of texts that have ended and are kept where there is room, so that the begin that a text has in common with one
   * of them need not be read again; what was used longest ago goes first. None by default.
   */
  readonly kept?: number;
  /** Texts that are kept beyond the process. */
  readonly saved?: SavedTexts;
  /** Hears why a session ended that is begun anew. */
  readonly lost?: (error: SessionError) => Effect.Effect<void>;
}

/** So many tokens of a text's prompt are read. */
export interface PromptSaid {
  readonly read: number;
  readonly of: number;
  /** At first, where so many were already, if any were. */
  readonly from?: "memory" | "disk";
  /** At last, how those were read that were not. */
  readonly ways?: Readonly<Record<Way, number>>;
}

/** Something that happened to a text. */
export type Said =
  | PromptSaid
  | Piece;

/** Runs texts. */
export interface Engine<E> {
  /** What the model says, until it ends; interrupting the stream gives the text up. A text waits until there is room. */
  readonly say: (asked: Asked) => Stream.Stream<Said, E | SessionError>;
  /** Texts that grow or wait. */
  readonly active: () => number;
  /** Tokens whose keys and values are held, of texts that grow and of those that have ended. */
  readonly held: () => number;
  /** Returns when nothing is being saved. */
  readonly settled: Effect.Effect<void>;
}

/** A text in work. */
interface Text<E> {
  readonly asked: Asked;
  readonly continuation: Continuation;
  readonly heard: Queue.Queue<Said, E | SessionError>;
  /** Its sequence; none while it waits. */
  sequence: number | undefined;
  /** What the session does not have yet. */
  next: ReadonlyArray<number>;
  /** Nothing has been said since its sequence began. */
  reading: boolean;
  /** How the tokens of its sequence had been read by then. */
  ways: Readonly<Record<Way, number>>;
  /** Tokens that some session has had of it, and those of them that sessions before this one had. */
  furthest: number;
  before: number;
  /** Sessions in turn that were lost and had nothing new of it. */
  losses: number;
}

/** Of a text that has no sequence yet. */
const unread = { reading: true, ways: { ring: 0, star: 0 } };

/** Sessions that may be lost in turn without anything new of a text: it may be what they are lost by. */
const patience = 3;

/** Starts an engine; it ends with the scope, and so does what it is saying. */
export const startEngine = Effect.fn("startEngine")(function* <E>(
  { open, tokens, room = () => Infinity, kept = 0, saved, lost = () => Effect.void }: EngineOptions<
    E
  >,
): Effect.fn.Return<Engine<E>, E, Scope.Scope> {
  /** Texts that are wanted, from the one that came first on. */
  const texts = new Set<Text<E>>();
  /** Texts that have ended, as far as the session has them, from the one that was used longest ago on. */
  const ended = new Map<number, ReadonlyArray<number>>();
  /** What is being saved, by the sequence that holds it meanwhile: of which one, and how much. */
  const saves = new Map<number, { readonly of: number; readonly tokens: number }>();
  /** Texts that were given up while a step was going on with them. */
  const left = new Set<Text<E>>();
  let stepping = false;
  const arrivals = yield* Queue.unbounded<void>();
  let nextSequence = 0;
  const outer = yield* Effect.scope;
  let scope = yield* Scope.fork(outer);
  let session = yield* Scope.provide(open, scope);
  const saving = yield* FiberSet.make<void, never>();
  const fork = yield* FiberSet.runtime(saving)();

  const needOf = ({ asked: { prompt, limits } }: Text<E>) => prompt.length + limits.most;
  const reserved = () =>
    [...texts].reduce((sum, text) => sum + (text.sequence === undefined ? 0 : needOf(text)), 0);
  /** Tokens that are being saved of such sequences. */
  const savedOf = (such: (sequence: number) => boolean) =>
    [...saves.values()].reduce((sum, { of, tokens }) => sum + (such(of) ? tokens : 0), 0);
  /** Tokens that are being saved of texts that do not grow any more: their memory is not free before that. */
  const unfinished = () => {
    const growing = new Set([...texts].map(({ sequence }) => sequence));
    return savedOf((sequence) => !growing.has(sequence));
  };
  /** Lets texts that have ended go until there are no more tokens of them than that, and the others have their room. */
  const evict = (most = Infinity) => {
    const free = room() - reserved();
    let sum = [...ended.values()].reduce((sum, { length }) => sum + length, 0);
    /** What is being saved has its memory, also where its text has gone. */
    let alone = unfinished() - savedOf((sequence) => ended.has(sequence));
    for (const [sequence, { length }] of ended) {
      if (sum <= most && sum + alone <= free) return;
      sum -= length;
      alone += savedOf((one) => one === sequence);
      ended.delete(sequence);
      session.drop(sequence);
    }
  };
  /** What the session has of a text. */
  const readOf = (sequence: number, { continuation }: Text<E>) =>
    continuation.all.slice(0, session.lengthOf(sequence));
  /** Keeps what the session has of a text beyond the process, where that is worth it. */
  const save = (sequence: number, ids: ReadonlyArray<number>) => {
    const saving = saved?.offer(session, ids);
    if (saving === undefined) return;
    // A sequence of its own, whatever becomes of the text meanwhile.
    const [{ drop }, own] = [session, nextSequence++];
    session.share(own, sequence, ids.length);
    saves.set(own, { of: sequence, tokens: ids.length });
    const done = Effect.sync(() => {
      drop(own);
      saves.delete(own);
      Queue.offerUnsafe(arrivals, undefined);
    });
    fork(Effect.ensuring(saving(own), done));
  };
  /** Keeps what the session has of a text that nobody wants any more. */
  const settle = (text: Text<E>) => {
    const { sequence } = text;
    if (sequence === undefined) return;
    const ids = readOf(sequence, text);
    save(sequence, ids);
    for (const [other, { length }] of [...ended]) {
      // Whatever begins like that one begins like this one.
      if (alike(ids, ended.get(other)!) < length) continue;
      ended.delete(other);
      session.drop(other);
    }
    ended.set(sequence, ids);
    evict(kept);
  };
  /** Nobody wants a text any more; what a step is doing for it is done first. */
  const leave = (text: Text<E>) => {
    if (!texts.delete(text)) return;
    if (stepping) left.add(text);
    else settle(text);
  };
  /** The sequence that begins with most of the tokens of a text, and with how many: all but one, since logits need one. */
  const known = (prompt: ReadonlyArray<number>) => {
    const text = prompt.slice(0, -1);
    let best: { readonly sequence: number; readonly tokens: number } | undefined;
    const look = (sequence: number, ids: ReadonlyArray<number>) => {
      const tokens = alike(text, ids);
      if (tokens > (best?.tokens ?? 0)) best = { sequence, tokens };
    };
    for (const [sequence, ids] of ended) look(sequence, ids);
    for (const other of texts) {
      if (other.sequence !== undefined) look(other.sequence, readOf(other.sequence, other));
    }
    return best;
  };
  /** Gives a text a sequence, with what is there of it. */
  const begin = Effect.fnUntraced(function* (text: Text<E>) {
    const { all } = text.continuation;
    for (;;) {
      const best = known(all);
      const found = saved && (yield* saved.find(session, all, best?.tokens ?? 0));
      if (saved !== undefined && found !== undefined) {
        const own = text.sequence = nextSequence++;
        evict();
        if (yield* saved.use(session, own, found)) return "disk";
        session.drop(own);
        text.sequence = undefined;
        continue;
      }
      text.sequence = nextSequence;
      if (best !== undefined) {
        const { sequence, tokens } = best;
        const ids = ended.get(sequence);
        ended.delete(sequence);
        // It goes on with what has ended; what differs later, or grows itself, stays for others.
        if (ids?.length === tokens) text.sequence = sequence;
        else session.share(nextSequence, sequence, tokens);
        if (ids !== undefined && ids.length > tokens) ended.set(sequence, ids);
      }
      if (text.sequence === nextSequence) nextSequence++;
      evict();
      return "memory";
    }
  });
  /** Gives sequences to texts that wait, in their order, while there is room. */
  const admit = Effect.gen(function* () {
    for (const text of texts) {
      if (text.sequence !== undefined) continue;
      const others = reserved() + unfinished();
      if (others > 0 && others + needOf(text) > room()) return;
      const from = yield* begin(text);
      const length = session.lengthOf(text.sequence!);
      text.next = text.continuation.all.slice(length);
      text.ways = session.waysOf(text.sequence!);
      const of = text.asked.prompt.length;
      const read = Math.min(length, of);
      Queue.offerUnsafe(text.heard, { read, of, ...(read === 0 ? {} : { from }) });
    }
  });

  /** Enters what a step found for a text. */
  const enter = (text: Text<E>, count: number, logits: Float32Array | undefined) => {
    text.next = text.next.slice(count);
    const length = session.lengthOf(text.sequence!);
    text.furthest = Math.max(text.furthest, length);
    if (!texts.has(text)) return;
    if (logits === undefined) {
      const of = text.asked.prompt.length;
      return Queue.offerUnsafe(text.heard, { read: length, of });
    }
    if (text.reading) {
      const [sequence, of] = [text.sequence!, text.asked.prompt.length];
      const [now, then] = [session.waysOf(sequence), text.ways];
      const ways = { ring: now.ring - then.ring, star: now.star - then.star };
      Queue.offerUnsafe(text.heard, { read: of, of, ways });
      save(sequence, readOf(sequence, text));
    }
    text.reading = false;
    try {
      const said = text.continuation.next(logits);
      text.next = [said.id];
      if (said.end !== undefined) leave(text);
      Queue.offerUnsafe(text.heard, said);
    } catch (cause) {
      // Its tokenizer or its sampler; the others have nothing to do with it.
      leave(text);
      Queue.failCauseUnsafe(text.heard, Cause.die(cause));
    }
  };
  /** Lets texts grow. */
  const grow = Effect.fnUntraced(function* (growing: ReadonlyArray<Text<E>>) {
    const pieces = growing.map(({ next }) => {
      const count = Math.min(session.tokensAtOnce, next.length);
      return { count, wanted: count === next.length ? 1 : 0 };
    });
    const found = yield* session.extend(growing.map(({ sequence, next }, i) => ({
      sequence: sequence!,
      ids: next.slice(0, pieces[i]!.count),
      wanted: pieces[i]!.wanted,
    })));
    for (const [i, text] of growing.entries()) {
      const { count, wanted } = pieces[i]!;
      enter(text, count, wanted === 0 ? undefined : found[i]!);
    }
  });
  /** One step of all texts. */
  const step = Effect.gen(function* () {
    stepping = true;
    yield* admit;
    const growing = [...texts].filter(({ sequence }) => sequence !== undefined);
    if (growing.length > 0) yield* grow(growing);
    stepping = false;
    for (const text of left) settle(text);
    left.clear();
    // Whoever waits does so until something is saved.
    if (growing.length === 0) yield* Queue.take(arrivals);
  });
  const failAll = (cause: Cause.Cause<E | SessionError>) =>
    Effect.sync(() => {
      for (const { heard } of texts) Queue.failCauseUnsafe(heard, cause);
      texts.clear();
    });
  /** Begins anew: every text must be read again. */
  const again = (error: SessionError) =>
    Effect.gen(function* () {
      yield* Scope.close(scope, Exit.void);
      scope = yield* Scope.fork(outer);
      for (const text of texts) {
        if (text.sequence === undefined) continue;
        text.losses = text.furthest > text.before ? 0 : text.losses + 1;
        text.before = text.furthest;
        if (text.losses < patience) continue;
        texts.delete(text);
        Queue.failCauseUnsafe(text.heard, Cause.fail(error));
      }
      yield* lost(error);
      const next = yield* Scope.provide(open, scope);
      session = next;
      stepping = false;
      ended.clear();
      left.clear();
      saves.clear();
      for (const text of texts) {
        text.sequence = undefined;
        text.next = [];
        Object.assign(text, unread);
      }
    });
  const work = Effect.gen(function* () {
    if (texts.size === 0) return yield* Queue.take(arrivals);
    yield* step.pipe(
      Effect.catch(again),
      Effect.catchCause(failAll),
    );
  });
  yield* Effect.forkScoped(Effect.forever(work));

  return {
    settled: FiberSet.awaitEmpty(saving),
    active: () => texts.size,
    held: () =>
      [...[...texts].flatMap(({ sequence }) => sequence ?? []), ...ended.keys()]
        .reduce((sum, sequence) => sum + session.lengthOf(sequence), 0),
    say: (asked) =>
      Stream.unwrap(Effect.gen(function* () {
        const heard = yield* Queue.unbounded<Said, E | SessionError>();
        yield* Effect.acquireRelease(
          Effect.sync((): Text<E> => {
            const continuation = new Continuation(asked, tokens);
            const text: Text<E> = {
              ...{ asked, continuation, heard, sequence: undefined, next: [] },
              ...{ furthest: 0, before: 0, losses: 0 },
              ...unread,
            };
            texts.add(text);
            Queue.offerUnsafe(arrivals, undefined);
            return text;
          }),
          (text) => Effect.sync(() => leave(text)),
        );
        return Stream.takeUntil(
          Stream.fromQueue(heard),
          (said) => "end" in said && said.end !== undefined,
        );
      })),
  };
});
