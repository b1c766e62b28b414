/**
 * All that a model says to one prompt, put together from its pieces.
 *
 * @module
 */
import { Effect, Stream } from "effect";
import type { Piece } from "./continuation.ts";
import type { Said } from "./engine.ts";
import { type PromptRead, PromptWatch } from "./prompt_read.ts";

/** What a model has said. */
export interface Answer {
  readonly text: string;
  readonly ids: ReadonlyArray<number>;
  /** Why nothing follows. */
  readonly end: Piece["end"];
  readonly prompt: PromptRead;
}

/** Hears a model to its end, and tells of every piece as it comes. */
export const answerOf = Effect.fn("answerOf")(function* <E>(
  said: Stream.Stream<Said, E>,
  heard: (said: Said, prompt: PromptRead) => Effect.Effect<void>,
): Effect.fn.Return<Answer, E> {
  let text = "";
  let end: Piece["end"];
  const ids: Array<number> = [];
  const prompt = new PromptWatch();
  yield* Stream.runForEach(said, (one) => {
    prompt.see(one);
    if ("id" in one) {
      ids.push(one.id);
      text += one.text;
      end = one.end;
    }
    return heard(one, prompt);
  });
  const { tokens, cached, from, ways } = prompt;
  return { text, ids, end, prompt: { tokens, cached, from, ways } };
});
