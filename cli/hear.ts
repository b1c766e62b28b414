/**
 * Hears what a model says, and prints it as it comes.
 *
 * @module
 */
import { Effect, type Stream } from "effect";
import { type Answer, answerOf } from "../plugins/models/answer.ts";
import type { PromptSaid, Said } from "../plugins/models/engine.ts";
import type { PromptRead } from "../plugins/models/prompt_read.ts";
import { draw, printPart } from "./output.ts";

/** The same as every command has it in JSON. */
export const promptUsage = (prompt: PromptRead) => ({
  prompt_tokens: prompt.tokens,
  ...cacheUsage(prompt),
});
/** Of it what is beyond the number of tokens. */
export const cacheUsage = ({ cached, from, ways }: PromptRead) => ({
  cached_tokens: cached,
  cached_from: from ?? null,
  read_by: ways,
});
/** "6071 tokens: 6000 were in a cache, 71 read by star" */
export const promptInWords = ({ tokens, cached, from, ways }: PromptRead): string => {
  const read = Object.entries(ways).filter(([, count]) => count > 0)
    .map(([way, count]) => `${count} read by ${way}`).join(", ");
  const there = cached === 0 ? "" : `${cached} were in ${from === "disk" ? "a cache" : "memory"}, `;
  return `${tokens} tokens: ${there}${read === "" ? "none read" : read}`;
};

/**
 * "400 of 1000 tokens read, 3 s left", after so many seconds. After a lost session what was cached is read again, and as
 * long as nothing is new there is nothing to judge by.
 */
export const progressInWords = (
  { read, of }: PromptSaid,
  cached: number,
  seconds: number,
): string | undefined => {
  if (read <= cached) return undefined;
  const left = seconds * (of - read) / (read - cached);
  return `${read} of ${of} tokens read, ${left.toFixed(0)} s left`;
};

/** What a model has said, and how long it took. */
export interface Heard extends Answer {
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
  let first = 0;
  const answer = yield* answerOf(said, (heard, { cached }) => {
    if ("read" in heard) {
      const words = progressInWords(heard, cached, since());
      return terminal && words !== undefined ? draw(`\x1b[2K\r${words}`) : Effect.void;
    }
    const clear = terminal && first === 0 ? draw("\x1b[2K\r") : Effect.void;
    first ||= since();
    return silent ? Effect.void : Effect.andThen(clear, printPart(heard.text));
  });
  return { ...answer, seconds: { first, all: since() } };
});
