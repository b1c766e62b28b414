/**
 * A model that runs, for scripts: texts and conversations in, text out.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import { contextRefusal, longestContext, turnLimits } from "../../runtime/context.ts";
import { Crew } from "../../runtime/crew.ts";
import type { DType } from "../../runtime/dtype.ts";
import {
  type FileInvalid,
  InvalidProblem,
  type ModelInvalid,
  type PlanRefused,
} from "../../runtime/errors.ts";
import type { Links } from "../../runtime/link.ts";
import { openSession, type SessionError } from "../../runtime/session.ts";
import type { ModelFolder } from "../models.ts";
import { type Answer, answerOf } from "./answer.ts";
import { type Said, startEngine } from "./engine.ts";
import { mustBeKnown, mustFit } from "./prompt.ts";
import type { Sampling } from "./sampler.ts";
import { type ChatMessage, openTokenizer, type TextTokens } from "./tokenizer.ts";
import { usualOf } from "./usual.ts";

/** How to run a model. */
export interface ModelOptions {
  readonly ring: number;
  /** Format in which keys and values are held; float32 by default. */
  readonly cache?: DType;
  /**
   * Tokens for which there is room, of all texts together; by default as many as the model was made for, or as there is
   * memory for. Texts that have ended stay as long as there is room, and what begins like one of them is read from there
   * on.
   */
  readonly room?: number;
  /**
   * Bytes of memory that a rank may use for weights, activations, keys and values; by default what it has, of which ranks
   * in one process have equal parts.
   */
  readonly memory?: number;
}

/** What is wanted of the model. */
export interface Wanted {
  /**
   * Tokens at most.
   * @default 256
   */
  readonly most?: number;
  /** Texts that end it, and are no part of it. */
  readonly stops?: ReadonlyArray<string>;
  /** How to choose tokens; what is not given is the model's own. */
  readonly sampling?: Partial<Sampling>;
  /** Hears every piece as it comes. */
  readonly heard?: (said: Said) => Effect.Effect<void>;
}

/** A model that runs. */
export interface RunningModel {
  readonly tokens: TextTokens;
  /** Goes on with a text. */
  readonly goOn: (
    text: string,
    wanted?: Wanted,
  ) => Effect.Effect<Answer, InvalidProblem | SessionError>;
  /** Says what comes next in a conversation. */
  readonly reply: (
    messages: ReadonlyArray<ChatMessage>,
    wanted?: Wanted,
  ) => Effect.Effect<Answer, InvalidProblem | ModelInvalid | SessionError>;
}

const mustBe = (
  what: string,
  needed: string,
  holds: (value: unknown) => boolean,
  value: number,
): Effect.Effect<void, InvalidProblem> =>
  holds(value) && value >= 1
    ? Effect.void
    : Effect.fail(new InvalidProblem({ what, needed, found: String(value) }));

/** Starts a model on a crew whose members have it; it ends with the scope. */
export const startModel = Effect.fn("startModel")(function* (
  found: ModelFolder,
  options: ModelOptions,
): Effect.fn.Return<
  RunningModel,
  FileInvalid | InvalidProblem | ModelInvalid | PlanRefused | SessionError,
  Scope.Scope | Crew | Links
> {
  const { ring, cache = "f32", memory } = options;
  const { vocabulary, longest } = found.model;
  yield* mustBe("the ring size", "a whole number, 1 at least", Number.isInteger, ring);
  yield* mustBe("the memory", "a number of bytes, 1 at least", Number.isFinite, memory ?? 1);
  const { equipment } = yield* Crew;
  const placing = { model: found.model, ring, cache, equipment, memory };
  const { room = Math.min(longest, longestContext(placing)) } = options;
  yield* mustBe(
    "the room",
    "a whole number of tokens, 1 at least",
    Number.isInteger,
    options.room ?? 1,
  );
  const refusal = contextRefusal(placing, room);
  if (refusal !== undefined) return yield* refusal;
  const tokens = yield* openTokenizer(found.folder);
  const usual = yield* usualOf(found);
  const crew = yield* Effect.context<Crew | Links>();
  const engine = yield* startEngine({
    open: Effect.provideContext(
      openSession({
        ...{ model: found.hash, shape: found.model, ring, cache },
        ...turnLimits(placing),
      }),
      crew,
    ),
    tokens,
    room: () => room,
    kept: room,
  });
  const say = Effect.fnUntraced(function* (prompt: ReadonlyArray<number>, wanted: Wanted) {
    const { most = 256, stops = [], sampling = {}, heard = () => Effect.void } = wanted;
    yield* mustBeKnown(prompt, vocabulary);
    yield* mustFit(prompt.length, most, Math.min(longest, room));
    return yield* answerOf(
      engine.say({
        prompt,
        sampling: { ...usual.sampling, ...sampling },
        limits: { most, ends: usual.ends, stops },
      }),
      heard,
    );
  });
  return {
    tokens,
    goOn: (text, wanted = {}) => say(tokens.encode(text), wanted),
    reply: (messages, wanted = {}) =>
      Effect.flatMap(tokens.chat(messages), (text) => say(tokens.encode(text, false), wanted)),
  };
});
