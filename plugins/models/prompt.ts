/**
 * What a model cannot take as a prompt, said before anything is computed.
 *
 * @module
 */
import { Effect } from "effect";
import { InvalidProblem } from "../../runtime/errors.ts";

/** Refuses ids that the model has no row for. */
export const mustBeKnown = (
  ids: ReadonlyArray<number>,
  vocabulary: number,
): Effect.Effect<void, InvalidProblem> => {
  const at = ids.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < vocabulary));
  return at < 0 ? Effect.void : Effect.fail(
    new InvalidProblem({
      what: `token ${at}`,
      needed: `an id from 0 to ${vocabulary - 1}, the model's vocabulary`,
      found: String(ids[at]),
    }),
  );
};

/** Refuses a text that is too long with what is to come. */
export const mustFit = (
  tokens: number,
  most: number,
  longest: number,
): Effect.Effect<void, InvalidProblem> =>
  tokens + most <= longest ? Effect.void : Effect.fail(
    new InvalidProblem({
      what: "the text with what is to come",
      needed: `at most ${longest} tokens`,
      found: `${tokens} and up to ${most} more`,
    }),
  );
