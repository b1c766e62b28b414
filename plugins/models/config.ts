/**
 * `config.json` of a model: what families share of it, as Hugging Face writes it.
 *
 * @module
 */
import { Result, Schema } from "effect";
import { ModelInvalid } from "../../runtime/errors.ts";

const count = Schema.Number.check(Schema.isInt(), Schema.isGreaterThan(0));

const Rope = Schema.Struct({
  rope_type: Schema.optionalKey(Schema.String),
  /** The name before that one. */
  type: Schema.optionalKey(Schema.String),
  rope_theta: Schema.optionalKey(Schema.Number),
  factor: Schema.optionalKey(Schema.Number),
  low_freq_factor: Schema.optionalKey(Schema.Number),
  high_freq_factor: Schema.optionalKey(Schema.Number),
  original_max_position_embeddings: Schema.optionalKey(Schema.Number),
  partial_rotary_factor: Schema.optionalKey(Schema.Literal(1)),
  /** Another rope for each type of layers would be lost without a word. */
  full_attention: Schema.optionalKey(Schema.Never),
  sliding_attention: Schema.optionalKey(Schema.Never),
});
/** How positions turn queries and keys. */
export type Rope = typeof Rope.Type;

const Config = Schema.Struct({
  architectures: Schema.Array(Schema.String),
  vocab_size: count,
  hidden_size: count,
  intermediate_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  num_key_value_heads: Schema.optionalKey(Schema.NullOr(count)),
  head_dim: Schema.optionalKey(Schema.NullOr(count)),
  max_position_embeddings: count,
  rms_norm_eps: Schema.Number,
  hidden_act: Schema.optionalKey(Schema.String),
  tie_word_embeddings: Schema.optionalKey(Schema.Boolean),
  attention_bias: Schema.optionalKey(Schema.Boolean),
  mlp_bias: Schema.optionalKey(Schema.Boolean),
  rope_theta: Schema.optionalKey(Schema.Number),
  rope_scaling: Schema.optionalKey(Schema.NullOr(Rope)),
  rope_parameters: Schema.optionalKey(Schema.NullOr(Rope)),
  partial_rotary_factor: Schema.optionalKey(Schema.Number),
  sliding_window: Schema.optionalKey(Schema.NullOr(count)),
  use_sliding_window: Schema.optionalKey(Schema.Boolean),
  max_window_layers: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  layer_types: Schema.optionalKey(Schema.NullOr(Schema.Array(Schema.String))),
  eos_token_id: Schema.optionalKey(
    Schema.NullOr(Schema.Union([Schema.Number, Schema.Array(Schema.Number)])),
  ),
});
/** What a model says of itself. */
export type Config = typeof Config.Type;

const decode = Schema.decodeUnknownResult(Schema.fromJsonString(Config));

/** The config in a text. */
export const parseConfig = (model: string, text: string): Result.Result<Config, ModelInvalid> =>
  Result.mapError(
    decode(text),
    ({ message }) =>
      new ModelInvalid({
        model,
        needed: "its config.json must be that of a decoder",
        found: message,
      }),
  );
