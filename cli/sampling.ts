/**
 * How tokens are chosen: as the model's folder says, and as its user says instead.
 *
 * @module
 */
import { Effect } from "effect";
import type { Sampling } from "../plugins/models/sampler.ts";
import { usualOf } from "../plugins/models/usual.ts";
import type { ModelFolder } from "../plugins/models.ts";

/** How to choose tokens, and where to stop; what is not given is the model's own. */
export interface SamplingFlags {
  readonly temperature: number | undefined;
  readonly topK: number | undefined;
  readonly topP: number | undefined;
  readonly minP: number | undefined;
  readonly repetitionPenalty: number | undefined;
  readonly seed: number;
  readonly stop: ReadonlyArray<string>;
  readonly maxTokens: number;
}

/** What the model's folder says, with what the user says instead. */
export const samplingOf = Effect.fn("samplingOf")(function* (
  folder: ModelFolder,
  flags: Partial<SamplingFlags> & Pick<SamplingFlags, "seed">,
) {
  const { sampling: own, ends } = yield* usualOf(folder);
  const sampling: Sampling = {
    temperature: flags.temperature ?? own.temperature,
    topK: flags.topK ?? own.topK,
    topP: flags.topP ?? own.topP,
    minP: flags.minP ?? own.minP,
    repetitionPenalty: flags.repetitionPenalty ?? own.repetitionPenalty,
    seed: flags.seed,
  };
  return { sampling, ends };
});
