/**
 * Texts whose keys and values are kept beyond the process: which there are, with what others begin like them, and which are
 * worth keeping. The ids of texts are compared one by one: they are little beside what is kept with them.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { Cause, Effect, Result, Schema, Semaphore } from "effect";
import { type CacheShape, tokenBytesOf } from "../../runtime/cache.ts";
import type { FileInvalid } from "../../runtime/errors.ts";
import { PartsName } from "../../runtime/parts.ts";
import { WrittenPlacement } from "../../runtime/parts_messages.ts";
import { coversAll } from "../../runtime/placement.ts";
import type { Session, SessionError } from "../../runtime/session.ts";
import type { PartsError, SessionParts } from "../../runtime/session_parts.ts";
import { version } from "../../runtime/version.ts";
import { readSealed, reasonOf } from "../sealed.ts";
import { type CacheFolder, keptIn, textFile } from "./cache_folder.ts";
import { WrittenShape } from "./cache_parts.ts";

const Head = Schema.fromJsonString(Schema.Struct({
  annulus: Schema.Literal("cache 1"),
  version: Schema.String,
  name: PartsName,
  model: Schema.String,
  shape: WrittenShape,
  tokens: Schema.Natural,
  /** SHA-256 of the ids. */
  hash: Schema.String,
  /** Parts are where the nodes are, and not beside this file. */
  apart: Schema.Boolean,
  placement: WrittenPlacement,
  parts: Schema.Array(Schema.Struct({ sum: Schema.Natural, bytes: Schema.Natural })),
}));
const [encodeHead, decodeHead] = [Schema.encodeSync(Head), Schema.decodeUnknownResult(Head)];
const longestHead = 16 * 1024 * 1024;
const idBytes = 4;

/** A text that was kept. */
export interface SavedText {
  readonly head: typeof Head["Type"];
  readonly ids: Uint32Array;
}

/** With how many equal tokens two texts begin. */
export const alike = (text: ArrayLike<number>, other: ArrayLike<number>): number => {
  const most = Math.min(text.length, other.length);
  for (let i = 0; i < most; i++) if (text[i] !== other[i]) return i;
  return most;
};

const hashOf = (ids: Uint8Array): string => createHash("sha256").update(ids).digest("hex");

/** The file of a text; throws what is wrong with it. */
export const readText = async (path: string, name: string): Promise<SavedText> => {
  let head: SavedText["head"] | undefined;
  let bytes = new Uint8Array(0);
  await readSealed(path, {
    longestHead,
    head: (line) => {
      const found = decodeHead(line);
      if (Result.isFailure(found)) throw new Error("it does not begin as a cache does");
      head = found.success;
      bytes = new Uint8Array(idBytes * head.tokens);
      return bytes.length;
    },
    body: (part, at) => bytes.set(part, at),
  });
  const { placement, parts, tokens, hash } = head!;
  if (head!.name !== name) throw new Error(`it is of ${head!.name}`);
  if (hashOf(bytes) !== hash) throw new Error("its tokens are not those of its hash");
  if (parts.length !== placement.length || !coversAll(placement, tokens)) {
    throw new Error("its parts do not hold each of its tokens once");
  }
  const view = new DataView(bytes.buffer);
  const ids = Uint32Array.from({ length: tokens }, (_, i) => view.getUint32(idBytes * i, true));
  return { head: head!, ids };
};

/** Some rank for each part, which has it and no other; nothing where there is none for one of them. */
const takersOf = (
  there: SessionParts["there"],
  name: string,
): ReadonlyArray<number> | undefined => {
  const taken: Array<number | undefined> = there.map(() => undefined);
  const has = (rank: number, part: number) => there[rank]?.get(name)?.has(part) === true;
  /** Finds a part for a rank, for which others may have to take another one. */
  const take = (rank: number, tried: Set<number>): boolean => {
    // Its own first: then nothing moves where nobody has moved.
    const parts = [rank, ...there.keys()].filter((part) => has(rank, part));
    return parts.some((part) => {
      if (tried.has(part)) return false;
      tried.add(part);
      const other = taken.indexOf(part);
      taken[rank] = part;
      if (other < 0 || other === rank) return true;
      taken[other] = undefined;
      if (take(other, tried)) return true;
      taken[other] = part;
      taken[rank] = undefined;
      return false;
    });
  };
  for (const rank of there.keys()) if (!take(rank, new Set())) return undefined;
  return taken.map((part) => part!);
};

/** What was found of a text. */
export interface FoundText {
  readonly text: SavedText;
  /** Begin that it has in common. */
  readonly tokens: number;
  /** The part of each rank. */
  readonly parts: ReadonlyArray<number>;
}

/** The texts that are kept. */
export interface SavedTexts {
  /** The one that begins with most of these tokens, if any begins with more than so many. */
  readonly find: (
    session: Session,
    ids: ReadonlyArray<number>,
    known: number,
  ) => Effect.Effect<FoundText | undefined>;
  /** Begins a sequence with what was found; where that fails, says so and gives false. */
  readonly use: (
    session: Session,
    sequence: number,
    found: FoundText,
  ) => Effect.Effect<boolean, SessionError>;
  /** What keeps a sequence with these tokens, where that is worth it; the sequence must stay until it has. */
  readonly offer: (
    session: Session,
    ids: ReadonlyArray<number>,
  ) => ((sequence: number) => Effect.Effect<void>) | undefined;
}

/** A text that was kept just now. */
export interface WrittenText {
  readonly name: string;
  readonly tokens: number;
  /** Of all parts. */
  readonly bytes: number;
  readonly seconds: number;
}

/** How to keep texts. */
export interface SavedTextsOptions {
  readonly folder: CacheFolder;
  /** Of the model's files. */
  readonly model: string;
  readonly shape: CacheShape;
  /** Parts are where nodes are that keep to limits of their own. */
  readonly apart: boolean;
  /** Tokens for which a file is read or written: fewer are sooner read by the model. */
  readonly least?: number;
  /** Hears what was kept. */
  readonly wrote: (written: WrittenText) => Effect.Effect<void>;
  /** Hears what cannot be kept or used, and why. */
  readonly tell: (words: string) => Effect.Effect<void>;
}

/** Of a text so much must be new before it is kept, or one that grows would be written again and again. */
const newShare = 1 / 8;

/** Reads what is there. */
export const openSavedTexts = Effect.fn("openSavedTexts")(function* (
  { folder, model, shape, apart, least = 1024, wrote, tell }: SavedTextsOptions,
): Effect.fn.Return<SavedTexts> {
  const texts = new Map<string, SavedText>();
  const unusable = (name: string, path: string, reason: string) =>
    tell(`cannot use cache ${name}: "${path}": ${reason}`);
  const skipped: Array<readonly [name: string, reason: string]> = [];
  const kept = yield* Effect.result(
    Effect.tryPromise({
      try: () => keptIn(folder.path, (...one) => skipped.push(one)),
      catch: reasonOf,
    }),
  );
  if (Result.isFailure(kept)) yield* tell(`cannot use "${folder.path}": ${kept.failure}`);
  for (const [name, reason] of skipped) yield* unusable(name, join(folder.path, name), reason);
  for (const { name, finished } of Result.getOrElse(kept, () => [])) {
    if (!finished) continue;
    const path = folder.pathOf(name, textFile);
    const read = yield* Effect.result(
      Effect.tryPromise({ try: () => readText(path, name), catch: reasonOf }),
    );
    if (Result.isSuccess(read)) texts.set(name, read.success);
    else yield* unusable(name, path, read.failure);
  }
  /** What was found not to be as it was. */
  const broken = new Set<string>();
  /** What was said of them, once. */
  const said = new Set<string>();
  const refuse = (name: string, why: string) =>
    Effect.suspend(() => {
      const words = `cannot use cache ${name}, and the text is read again: ${why}`;
      if (said.has(words)) return Effect.void;
      said.add(words);
      return tell(words);
    });
  /** Texts that are being written. */
  const pending = new Set<ReadonlyArray<number>>();
  const one = yield* Semaphore.make(1);
  const shapeIn = (of: CacheShape) =>
    `${of.layers} layers of ${of.kvHeads} × ${of.headDim} in ${of.dtype}`;

  const partsOf = (
    { head }: SavedText,
    { there }: SessionParts,
  ): Result.Result<ReadonlyArray<number>, string> => {
    const ring = head.parts.length;
    if (head.version !== version) {
      return Result.fail(`annulus ${head.version} made it, and this is ${version}`);
    }
    if (shapeIn(head.shape) !== shapeIn(shape)) {
      return Result.fail(`it has ${shapeIn(head.shape)}: needed are ${shapeIn(shape)}`);
    }
    if (ring !== there.length) {
      return Result.fail(`a ring of ${ring} made it, and this is one of ${there.length}`);
    }
    const parts = takersOf(there, head.name);
    return parts === undefined
      ? Result.fail(`its ${ring} parts must be there, each with another rank`)
      : Result.succeed(parts);
  };
  /** Those that this ring can go on with. */
  const usable = (parts: SessionParts) =>
    [...texts.values()].filter((text) =>
      text.head.model === model && Result.isSuccess(partsOf(text, parts))
    );
  const forget = (session: Session, name: string) =>
    Effect.gen(function* () {
      texts.delete(name);
      yield* Effect.promise(() => folder.remove(name));
      if (apart && session.parts !== undefined) yield* Effect.ignore(session.parts.forget(name));
    });

  const keep = Effect.fnUntraced(function* (
    session: Session,
    parts: SessionParts,
    ids: ReadonlyArray<number>,
    sequence: number,
  ): Effect.fn.Return<void, FileInvalid | PartsError | Error> {
    const bytes = new Uint8Array(idBytes * ids.length);
    const view = new DataView(bytes.buffer);
    for (const [i, id] of ids.entries()) view.setUint32(idBytes * i, id, true);
    const hash = hashOf(bytes);
    const name = `${hash.slice(0, 16)}-${crypto.randomUUID().slice(0, 8)}`;
    const began = performance.now();
    yield* Effect.gen(function* () {
      const trying = <A>(work: () => Promise<A>) =>
        Effect.tryPromise({ try: work, catch: (cause) => new Error(reasonOf(cause)) });
      const needed = apart ? 0 : ids.length * tokenBytesOf(shape);
      const gone = yield* trying(() => folder.makeRoom(needed + bytes.length, name));
      for (const name of gone) yield* forget(session, name);
      yield* trying(() => folder.begin(name));
      const kept = yield* parts.keep(name, sequence);
      const head = {
        ...{ annulus: "cache 1", version, name, model, shape, tokens: ids.length } as const,
        ...{ hash, apart, placement: kept.placement, parts: kept.parts },
      };
      yield* folder.write(name, textFile, encodeHead(head), [bytes]);
      yield* Effect.promise(() => folder.finish(name));
      texts.set(name, { head, ids: Uint32Array.from(ids) });
    }).pipe(
      // Nothing that is not whole stays; nodes are not waited for by somebody who leaves.
      Effect.onError((cause) =>
        Cause.hasInterruptsOnly(cause)
          ? Effect.promise(() => folder.remove(name))
          : forget(session, name)
      ),
    );
    const size = texts.get(name)!.head.parts.reduce((sum, { bytes }) => sum + bytes, 0);
    const seconds = (performance.now() - began) / 1000;
    yield* wrote({ name, tokens: ids.length, bytes: size, seconds });
    // Whatever begins like one of these begins like this one.
    for (const text of usable(parts)) {
      const { name: other } = text.head;
      if (other !== name && alike(ids, text.ids) === text.ids.length) yield* forget(session, other);
    }
  });

  return {
    find: Effect.fnUntraced(function* ({ parts }, ids, known) {
      if (parts === undefined) return undefined;
      const text = ids.slice(0, -1);
      let best: FoundText | undefined;
      const useless: Array<readonly [name: string, tokens: number, why: string]> = [];
      for (const one of texts.values()) {
        const { model: whose, name } = one.head;
        const tokens = alike(text, one.ids);
        if (whose !== model || broken.has(name) || tokens < known + least) continue;
        const found = partsOf(one, parts);
        if (Result.isFailure(found)) useless.push([name, tokens, found.failure]);
        else if (tokens > (best?.tokens ?? 0)) best = { text: one, tokens, parts: found.success };
      }
      // What would not have been of more use is not worth a word.
      for (const [name, tokens, why] of useless) {
        if (tokens >= (best?.tokens ?? known) + least) yield* refuse(name, why);
      }
      return best;
    }),
    use: ({ parts }, sequence, { text: { head }, tokens, parts: taken }) =>
      parts === undefined ? Effect.succeed(false) : parts.use(sequence, {
        ...{ name: head.name, tokens },
        parts: taken.map((part) => ({ part, sum: head.parts[part]!.sum })),
        placement: taken.map((part) => head.placement[part]!),
      }).pipe(
        Effect.andThen(Effect.promise(() => folder.touch(head.name))),
        Effect.as(true),
        Effect.catchTag(
          "CacheUnusable",
          ({ message }) => {
            broken.add(head.name);
            return Effect.as(refuse(head.name, message), false);
          },
        ),
      ),
    offer: (session, ids) => {
      const { parts } = session;
      if (parts === undefined || parts.there.includes(undefined)) return undefined;
      const kept = usable(parts).filter(({ head }) => !broken.has(head.name));
      const known = Math.max(
        0,
        ...[...kept.map(({ ids }) => ids), ...pending].map((other) => alike(ids, other)),
      );
      if (ids.length - known < Math.max(least, newShare * ids.length)) return undefined;
      pending.add(ids);
      return (sequence) =>
        Semaphore.withPermits(one, 1)(keep(session, parts, ids, sequence)).pipe(
          Effect.catch(({ message }) =>
            tell(`no cache of ${ids.length} tokens is kept: ${message}`)
          ),
          Effect.ensuring(Effect.sync(() => void pending.delete(ids))),
        );
    },
  };
});
