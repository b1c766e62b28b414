/**
 * All that a model says to one prompt, put together from its pieces.
 *
 * @module
 */
import { Effect, Stream } from "effect";
import type { Piece } from "./continuation.ts";
import type { Said } from "./engine.ts";

/** What a model has said. */
export interface Answer {
  readonly text: string;
  readonly ids: ReadonlyArray<number>;
  /** Why nothing follows. */
  readonly end: Piece["end"];
  /** Tokens of the prompt. */
  readonly prompt: number;
  /** Of these, the ones that were there already. */
  readonly cached: number;
}

/** Hears a model to its end, and tells of every piece as it comes. */
export const answerOf = Effect.fn("answerOf")(function* <E>(
  said: Stream.Stream<Said, E>,
  heard: (said: Said) => Effect.Effect<void>,
): Effect.fn.Return<Answer, E> {
  let text = "";
  let prompt = 0;
  let cached: number | undefined;
  let end: Piece["end"];
  const ids: Array<number> = [];
  yield* Stream.runForEach(said, (one) => {
    if ("read" in one) {
      prompt = one.of;
      cached ??= one.read;
    } else {
      ids.push(one.id);
      text += one.text;
      end = one.end;
    }
    return heard(one);
  });
  return { text, ids, end, prompt, cached: cached ?? 0 };
});
