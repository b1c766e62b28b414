/**
 * How a model's folder says that its tokens are to be chosen: `generation_config.json`, where there is one.
 *
 * @module
 */
import { join } from "node:path";
import { Effect, Schema } from "effect";
import { ModelInvalid } from "../../runtime/errors.ts";
import type { Config } from "./config.ts";
import { greedy, type Sampling } from "./sampler.ts";

const Usual = Schema.fromJsonString(Schema.Struct({
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
const decode = Schema.decodeUnknownEffect(Usual);

/** The folder's own way to choose tokens, and the ids that end a text. */
export const usualOf = Effect.fn("usualOf")(function* (
  { folder, config }: { readonly folder: string; readonly config: Config },
) {
  const text = yield* Effect.promise(() =>
    Deno.readTextFile(join(folder, "generation_config.json")).catch(() => "{}")
  );
  const own = yield* Effect.mapError(
    decode(text),
    ({ message }) =>
      new ModelInvalid({
        model: folder,
        needed: "its generation_config.json must say how to choose tokens, if it is there",
        found: message,
      }),
  );
  const sampling: Sampling = {
    temperature: own.do_sample === true ? own.temperature ?? 1 : 0,
    topK: own.top_k ?? greedy.topK,
    topP: own.top_p ?? greedy.topP,
    minP: own.min_p ?? greedy.minP,
    repetitionPenalty: own.repetition_penalty ?? greedy.repetitionPenalty,
    seed: greedy.seed,
  };
  const ends: ReadonlySet<number> = new Set(
    [own.eos_token_id ?? config.eos_token_id ?? []].flat(),
  );
  return { sampling, ends };
});
