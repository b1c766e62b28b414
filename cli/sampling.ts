/**
 * How tokens are chosen: as the model's folder says, and as its user says instead.
 *
 * @module
 */
import { join } from "node:path";
import { Effect, Result, Schema } from "effect";
import { greedy, type Sampling } from "../plugins/models/sampler.ts";
import type { ModelFolder } from "../plugins/models.ts";
import { note } from "./output.ts";

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

const Defaults = Schema.fromJsonString(Schema.Struct({
  do_sample: Schema.optionalKey(Schema.Boolean),
  temperature: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  top_k: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  top_p: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  min_p: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  repetition_penalty: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  eos_token_id: Schema.optionalKey(
    Schema.NullOr(Schema.Union([Schema.Number, Schema.Array(Schema.Number)])),
  ),
}));
const decodeDefaults = Schema.decodeUnknownResult(Defaults);

/** What the model's `generation_config.json` says, with what the user says instead. */
export const samplingOf = Effect.fn("samplingOf")(function* (
  { folder, config }: ModelFolder,
  flags: Partial<SamplingFlags> & Pick<SamplingFlags, "seed">,
) {
  const text = yield* Effect.promise(() =>
    Deno.readTextFile(join(folder, "generation_config.json")).catch(() => "{}")
  );
  const found = decodeDefaults(text);
  if (Result.isFailure(found)) {
    yield* note(
      `annulus: ignoring generation_config.json of "${folder}": ${found.failure.message}`,
    );
  }
  const own = Result.isSuccess(found) ? found.success : {};
  const usual = own.do_sample === true ? own.temperature ?? 1 : 0;
  const sampling: Sampling = {
    temperature: flags.temperature ?? usual,
    topK: flags.topK ?? own.top_k ?? greedy.topK,
    topP: flags.topP ?? own.top_p ?? greedy.topP,
    minP: flags.minP ?? own.min_p ?? greedy.minP,
    repetitionPenalty: flags.repetitionPenalty ?? own.repetition_penalty ??
      greedy.repetitionPenalty,
    seed: flags.seed,
  };
  const ends = new Set([own.eos_token_id ?? config.eos_token_id ?? []].flat());
  return { sampling, ends };
});
