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

/** Refuses a text that has nothing to go on from, or is to go on with nothing, or is too long with what is to come. */
export const mustFit = (
  tokens: number,
  most: number,
  longest: number,
): Effect.Effect<void, InvalidProblem> => {
  const refuse = (what: string, needed: string, found: string) =>
    Effect.fail(new InvalidProblem({ what, needed, found }));
  if (tokens < 1) return refuse("the prompt", "one token at least", "none");
  if (!(most >= 1)) return refuse("what is to come", "one token at least", String(most));
  if (tokens + most <= longest) return Effect.void;
  return refuse(
    "the text with what is to come",
    `at most ${longest} tokens`,
    `${tokens} and up to ${most} more`,
  );
};
