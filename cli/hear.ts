/**
 * Hears what a model says, and prints it as it comes.
 *
 * @module
 */
import { Effect, Stream } from "effect";
import type { Piece } from "../plugins/models/continuation.ts";
import type { Said } from "../plugins/models/engine.ts";
import type { Way } from "../runtime/turn.ts";
import { draw, printPart } from "./output.ts";

/** Tokens of a prompt that are read in one step. */
export const tokensAtOnce = 8192;

/** How the tokens of a prompt came to be there. */
export interface PromptRead {
  /** So many were there already. */
  readonly cached: number;
  readonly from: "memory" | "disk" | undefined;
  /** So many were read, while keys and values went around the ring or queries asked all ranks. */
  readonly ways: Readonly<Record<Way, number>>;
}

/** Hears how a prompt is read. */
export class PromptWatch implements PromptRead {
  #begin: Extract<Said, { readonly read: number }> | undefined;
  ways: PromptRead["ways"] = { ring: 0, star: 0 };

  see(said: Said): void {
    if (!("read" in said)) return;
    this.#begin ??= said;
    this.ways = said.ways ?? this.ways;
  }

  get cached(): number {
    return this.#begin?.read ?? 0;
  }

  get from(): PromptRead["from"] {
    return this.#begin?.from;
  }
}

/** The same as every command has it in JSON. */
export const promptUsage = (tokens: number, { prompt }: Pick<Heard, "prompt">) => ({
  prompt_tokens: tokens,
  ...cacheUsage(prompt),
});
/** Of it what is beyond the number of tokens. */
export const cacheUsage = ({ cached, from, ways }: PromptRead) => ({
  cached_tokens: cached,
  cached_from: from ?? null,
  read_by: ways,
});
/** "6071 tokens: 6000 were in a cache, 71 read by star" */
export const promptInWords = (tokens: number, { prompt }: Pick<Heard, "prompt">): string => {
  const ways = Object.entries(prompt.ways).filter(([, count]) => count > 0)
    .map(([way, count]) => `${count} read by ${way}`).join(", ");
  const { cached, from } = prompt;
  const there = cached === 0 ? "" : `${cached} were in ${from === "disk" ? "a cache" : "memory"}, `;
  return `${tokens} tokens: ${there}${ways === "" ? "none read" : ways}`;
};

/** What a model has said. */
export interface Heard {
  readonly text: string;
  readonly ids: ReadonlyArray<number>;
  readonly end: Piece["end"];
  readonly prompt: PromptRead;
  /** Seconds until the first token, and until the last one. */
  readonly seconds: { readonly first: number; readonly all: number };
}

/** @param silent Print nothing. */
export const hear = Effect.fn("hear")(function* <E>(
  said: Stream.Stream<Said, E>,
  silent: boolean,
): Effect.fn.Return<Heard, E> {
  const terminal = Deno.stderr.isTerminal() && !silent;
  const began = performance.now();
  const since = () => (performance.now() - began) / 1000;
  let [text, first] = ["", 0];
  const prompt = new PromptWatch();
  let end: Piece["end"];
  const ids: Array<number> = [];
  yield* Stream.runForEach(said, (heard) =>
    Effect.suspend(() => {
      prompt.see(heard);
      if ("read" in heard) {
        const { cached } = prompt;
        if (!terminal || heard.read === cached) return Effect.void;
        const left = since() * (heard.of - heard.read) / (heard.read - cached);
        return draw(
          `\x1b[2K\r${heard.read} of ${heard.of} tokens read, ${left.toFixed(0)} s left`,
        );
      }
      const clear = terminal && first === 0 ? draw("\x1b[2K\r") : Effect.void;
      first ||= since();
      ids.push(heard.id);
      text += heard.text;
      end = heard.end;
      return silent ? Effect.void : Effect.andThen(clear, printPart(heard.text));
    }));
  return { text, ids, end, prompt, seconds: { first, all: since() } };
});
