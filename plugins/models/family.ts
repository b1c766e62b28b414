/**
 * Decoders of the Llama kind: RMS norm, attention with rotary positions, RMS norm, gated unit, each added to what came in.
 * A family says what is different in it.
 *
 * @module
 */
import { Result } from "effect";
import { ModelInvalid } from "../../runtime/errors.ts";
import type { Model } from "../../runtime/model.ts";
import type { WeightSpec } from "../../runtime/program.ts";
import { causal, window } from "../attention.ts";
import type { Config } from "./config.ts";
import { frequenciesOf } from "./rope.ts";

/** What families differ in. */
export interface Family {
  /** As configs name it: `LlamaForCausalLM`. */
  readonly architecture: string;
  /** Which projections have a bias: of queries, keys and values; of attention's output; of the gated unit. */
  readonly biases: (
    config: Config,
  ) => { readonly qkv: boolean; readonly o: boolean; readonly mlp: boolean };
  /** Queries and keys of each head have an RMS norm of their own. */
  readonly headNorms: boolean;
  /** Tokens that a layer sees, itself included, where it does not see all; a config's `layer_types` go before that. */
  readonly windowOf: (config: Config, layer: number) => number | undefined;
}

/** By layer, the window where there is one. */
const windowsOf = (model: string, family: Family, config: Config) => {
  const { layer_types, sliding_window, num_hidden_layers } = config;
  const layers = Array.from({ length: num_hidden_layers }, (_, layer) => layer);
  const refuse = (needed: string, found: string) =>
    Result.fail(new ModelInvalid({ model, needed, found }));
  if (layer_types == null) {
    return Result.succeed(layers.map((layer) => family.windowOf(config, layer)));
  }
  if (layer_types.length !== num_hidden_layers) {
    return refuse(`layer_types must name ${num_hidden_layers} layers`, `${layer_types.length}`);
  }
  const odd = layer_types.find((type) => type !== "full_attention" && type !== "sliding_attention");
  if (odd !== undefined) {
    return refuse("layer_types must be full_attention or sliding_attention", `"${odd}"`);
  }
  const slides = layer_types.map((type) => type === "sliding_attention");
  if (slides.includes(true) && sliding_window == null) {
    return refuse("its sliding layers need a sliding_window", "none");
  }
  return Result.succeed(slides.map((slides) => slides ? sliding_window! : undefined));
};

/** The model of a config, with weights of float32. */
export const modelOf = (
  name: string,
  family: Family,
  config: Config,
): Result.Result<Model, ModelInvalid> =>
  Result.gen(function* () {
    const {
      hidden_size: hidden,
      intermediate_size: intermediate,
      num_hidden_layers: layers,
      num_attention_heads: heads,
      rms_norm_eps: epsilon,
      vocab_size: vocabulary,
      tie_word_embeddings: tied = false,
      hidden_act = "silu",
      partial_rotary_factor = 1,
    } = config;
    const kvHeads = config.num_key_value_heads ?? heads;
    const ownHeadDim = config.head_dim ?? hidden / heads;
    const must = (holds: boolean, needed: string, found: string) =>
      holds
        ? Result.succeed(undefined)
        : Result.fail(new ModelInvalid({ model: name, needed, found }));
    yield* must(
      ownHeadDim % 2 === 0 && ownHeadDim <= 256,
      "its head dim must be an even number up to 256",
      String(ownHeadDim),
    );
    yield* must(
      heads % kvHeads === 0,
      `its query heads must be a multiple of its ${kvHeads} KV heads`,
      String(heads),
    );
    yield* must(hidden_act === "silu", 'its hidden_act must be "silu"', `"${hidden_act}"`);
    yield* must(
      partial_rotary_factor === 1,
      "all components of its heads must turn (partial_rotary_factor 1)",
      String(partial_rotary_factor),
    );
    const frequencies = yield* frequenciesOf(name, ownHeadDim, config);
    const windows = yield* windowsOf(name, family, config);
    const biases = family.biases(config);

    const dtype = "f32";
    const matrix = (name: string, rows: number, columns: number, bias = false) => [
      { name: `${name}.weight`, rows, columns, dtype } as const,
      ...(bias ? [{ name: `${name}.bias`, rows: 1, columns: rows, dtype } as const] : []),
    ];
    const vector = (name: string, columns: number) => [
      { name: `${name}.weight`, rows: 1, columns, dtype } as const,
    ];
    const at = (layer: number) => `model.layers.${layer}`;
    const ofLayer = (layer: number): ReadonlyArray<WeightSpec> => [
      ...vector(`${at(layer)}.input_layernorm`, hidden),
      ...matrix(`${at(layer)}.self_attn.q_proj`, heads * ownHeadDim, hidden, biases.qkv),
      ...matrix(`${at(layer)}.self_attn.k_proj`, kvHeads * ownHeadDim, hidden, biases.qkv),
      ...matrix(`${at(layer)}.self_attn.v_proj`, kvHeads * ownHeadDim, hidden, biases.qkv),
      ...matrix(`${at(layer)}.self_attn.o_proj`, hidden, heads * ownHeadDim, biases.o),
      ...(family.headNorms
        ? [
          ...vector(`${at(layer)}.self_attn.q_norm`, ownHeadDim),
          ...vector(`${at(layer)}.self_attn.k_norm`, ownHeadDim),
        ]
        : []),
      ...vector(`${at(layer)}.post_attention_layernorm`, hidden),
      ...matrix(`${at(layer)}.mlp.gate_proj`, intermediate, hidden, biases.mlp),
      ...matrix(`${at(layer)}.mlp.up_proj`, intermediate, hidden, biases.mlp),
      ...matrix(`${at(layer)}.mlp.down_proj`, hidden, intermediate, biases.mlp),
    ];
    const bias = (has: boolean, name: string) => has ? `${name}.bias` : undefined;

    return {
      ...{ layers, vocabulary, heads, kvHeads, ownHeadDim, frequencies },
      headDim: 4 * Math.ceil(ownHeadDim / 4),
      widest: Math.max(hidden, intermediate, heads * ownHeadDim),
      scale: 1 / Math.sqrt(ownHeadDim),
      longest: config.max_position_embeddings,
      weights: [
        ...matrix("model.embed_tokens", vocabulary, hidden),
        ...Array.from({ length: layers }, (_, layer) => ofLayer(layer)).flat(),
        ...vector("model.norm", hidden),
        ...(tied ? [] : matrix("lm_head", vocabulary, hidden)),
      ],
      attention: (layer) => {
        const size = windows[layer];
        return [size === undefined ? causal() : window({ size })];
      },
      embed: (program, ids) => program.embed("model.embed_tokens.weight", ids),
      project: (program, layer, x, turns, queries) => {
        const name = `${at(layer)}.self_attn`;
        const normed = program.rmsNorm(x, `${at(layer)}.input_layernorm.weight`, epsilon);
        const linear = (of: typeof normed, which: "q" | "k" | "v") =>
          program.linear(
            of,
            `${name}.${which}_proj.weight`,
            bias(biases.qkv, `${name}.${which}_proj`),
          );
        const turned = (of: typeof normed, which: "q" | "k", by: typeof turns) => {
          const all = linear(of, which);
          const normal = family.headNorms
            ? program.rmsNorm(all, `${name}.${which}_norm.weight`, epsilon)
            : all;
          return program.rope(normal, ownHeadDim, by);
        };
        return {
          q: turned(program.pick(normed, queries?.rows), "q", queries?.turns ?? turns),
          k: turned(normed, "k", turns),
          v: linear(normed, "v"),
        };
      },
      combine: (program, layer, x, o) => {
        const [attention, mlp] = [`${at(layer)}.self_attn.o_proj`, `${at(layer)}.mlp`];
        const attended = program.add(
          x,
          program.linear(o, `${attention}.weight`, bias(biases.o, attention)),
        );
        const normed = program.rmsNorm(
          attended,
          `${at(layer)}.post_attention_layernorm.weight`,
          epsilon,
        );
        const linear = (of: typeof normed, which: "gate" | "up" | "down") =>
          program.linear(
            of,
            `${mlp}.${which}_proj.weight`,
            bias(biases.mlp, `${mlp}.${which}_proj`),
          );
        const gated = program.swiglu(linear(normed, "gate"), linear(normed, "up"));
        return program.add(attended, linear(gated, "down"));
      },
      logits: (program, x) =>
        program.linear(
          program.rmsNorm(x, "model.norm.weight", epsilon),
          tied ? "model.embed_tokens.weight" : "lm_head.weight",
        ),
    };
  });
