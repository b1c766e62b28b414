/**
 * Hears what a model says, and prints it as it comes.
 *
 * @module
 */
import { Effect, Stream } from "effect";
import type { Piece } from "../plugins/models/continuation.ts";
import type { Said } from "../plugins/models/engine.ts";
import { draw, printPart } from "./output.ts";

/** Tokens of a prompt that are read in one step. */
export const tokensAtOnce = 8192;

/** What a model has said. */
export interface Heard {
  readonly text: string;
  readonly ids: ReadonlyArray<number>;
  readonly end: Piece["end"];
  /** Tokens of the prompt that were there already. */
  readonly cached: number;
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
  let [text, cached, first] = ["", 0, 0];
  let end: Piece["end"];
  const ids: Array<number> = [];
  let begun = false;
  yield* Stream.runForEach(said, (heard) =>
    Effect.suspend(() => {
      if ("read" in heard) {
        if (!begun) cached = heard.read;
        begun = true;
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
  return { text, ids, end, cached, seconds: { first, all: since() } };
});
