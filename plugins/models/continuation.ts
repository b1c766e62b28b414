/**
 * What a model says, token by token: chooses each of them, and finds out what of the text is sure.
 *
 * @module
 */
import { mostLikely, Sampler, type Sampling } from "./sampler.ts";
import type { TextTokens } from "./tokenizer.ts";

/** Where to stop. */
export interface Limits {
  /** Tokens at most. */
  readonly most: number;
  /** Ids that end the text and are no part of it. */
  readonly ends: ReadonlySet<number>;
  /** Texts that do. */
  readonly stops: ReadonlyArray<string>;
}

/** What came with a token. */
export interface Piece {
  readonly id: number;
  readonly logprob: number;
  /** The most likely ones, `[id, logprob]`, as many as were asked for. */
  readonly top: ReadonlyArray<readonly [number, number]>;
  /** What is sure of the text by now and was not before; nothing while a character or a stop may be unfinished. */
  readonly text: string;
  /** Why nothing follows. */
  readonly end?: "stop" | "length";
}

/** How much of the end of a text may be the begin of a stop. */
const pending = (text: string, stops: ReadonlyArray<string>): number => {
  let longest = 0;
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
      if (stop.startsWith(text.slice(text.length - length))) longest = length;
    }
  }
  return longest;
};

/** What is to be said. */
export interface Asked {
  readonly prompt: ReadonlyArray<number>;
  readonly sampling: Sampling;
  readonly limits: Limits;
  /** How many of the most likely tokens to tell with each; none by default. */
  readonly top?: number;
}

/** One text that grows. */
export class Continuation {
  readonly #asked: Asked;
  readonly #tokens: Pick<TextTokens, "decode">;
  readonly #sampler: Sampler;
  readonly #said: Array<number> = [];
  #given = 0;

  constructor(asked: Asked, tokens: Pick<TextTokens, "decode">) {
    this.#asked = asked;
    this.#tokens = tokens;
    this.#sampler = new Sampler(asked.sampling);
  }

  /** All tokens so far, the prompt's and what was said. */
  get all(): ReadonlyArray<number> {
    return [...this.#asked.prompt, ...this.#said];
  }

  /** The next token, by the logits after all that are there. */
  next(logits: Float32Array): Piece {
    const { prompt, limits: { most, ends, stops }, top = 0 } = this.#asked;
    const seen = this.#asked.sampling.repetitionPenalty === 1 ? prompt : this.all;
    const { id, logprob } = this.#sampler.next(logits, seen);
    const about = { id, logprob, top: top === 0 ? [] : mostLikely(logits, top) };
    if (ends.has(id)) {
      const text = this.#tokens.decode(this.#said).slice(this.#given);
      return { ...about, text, end: "stop" };
    }
    this.#said.push(id);
    const all = this.#tokens.decode(this.#said);
    const at = stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0);
    if (at.length > 0) {
      return { ...about, text: all.slice(this.#given, Math.min(...at)), end: "stop" };
    }
    if (this.#said.length >= most) {
      return { ...about, text: all.slice(this.#given), end: "length" };
    }
    // A character may need another token.
    const whole = all.endsWith("\uFFFD") ? all.length - 1 : all.length;
    const sure = whole - pending(all.slice(0, whole), stops);
    const text = sure > this.#given ? all.slice(this.#given, sure) : "";
    this.#given += text.length;
    return { ...about, text };
  }
}
