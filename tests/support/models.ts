/**
 * Small models with random weights, in folders as Hugging Face writes them.
 *
 * @module
 */
import type { DType } from "../../runtime/dtype.ts";
import { decode, encode } from "../../runtime/dtype.ts";
import type { DecoderConfig, Weights } from "./decoder.ts";
import { normals } from "./random.ts";
import { fileOfTensors, type Tensor } from "./tensors.ts";

/** A family's config and what the reference must know beside it. */
export interface ModelCase {
  readonly name: string;
  readonly config: DecoderConfig & Readonly<Record<string, unknown>>;
  readonly biases?: ReadonlyArray<"q" | "k" | "v" | "o" | "gate" | "up" | "down">;
  readonly headNorms?: boolean;
  readonly tied?: boolean;
  readonly windowOf?: (layer: number) => number | undefined;
  readonly dtype?: DType;
}

const common = {
  vocab_size: 97,
  hidden_size: 40,
  intermediate_size: 52,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 12,
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  hidden_act: "silu",
};

/** Of every family that is known, and each thing that configs of it may say. */
export const modelCases: ReadonlyArray<ModelCase> = [
  { name: "Llama 2", config: { ...common, architectures: ["LlamaForCausalLM"] } },
  {
    name: "Llama 3.1",
    config: {
      ...{ ...common, architectures: ["LlamaForCausalLM"], rope_theta: 500_000 },
      rope_scaling: {
        ...{ rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 },
        original_max_position_embeddings: 64,
      },
    },
    dtype: "bf16",
  },
  {
    name: "Llama with biases",
    config: {
      ...{ ...common, architectures: ["LlamaForCausalLM"], attention_bias: true, mlp_bias: true },
    },
    biases: ["q", "k", "v", "o", "gate", "up", "down"],
  },
  {
    name: "SmolLM2",
    config: { ...common, architectures: ["LlamaForCausalLM"], tie_word_embeddings: true },
    tied: true,
    dtype: "f16",
  },
  {
    name: "Mistral",
    config: { ...common, architectures: ["MistralForCausalLM"], sliding_window: 9 },
    windowOf: () => 9,
  },
  {
    name: "Qwen2",
    config: {
      ...{ ...common, architectures: ["Qwen2ForCausalLM"], num_key_value_heads: 1 },
      ...{ use_sliding_window: true, sliding_window: 7, max_window_layers: 2 },
    },
    biases: ["q", "k", "v"],
    windowOf: (layer) => layer >= 2 ? 7 : undefined,
  },
  {
    name: "Qwen3",
    config: { ...common, architectures: ["Qwen3ForCausalLM"], num_key_value_heads: 4 },
    headNorms: true,
  },
  {
    name: "Qwen3 with layer types",
    config: {
      ...{ ...common, architectures: ["Qwen3ForCausalLM"], sliding_window: 5 },
      layer_types: ["sliding_attention", "full_attention", "sliding_attention"],
    },
    headNorms: true,
    windowOf: (layer) => layer === 1 ? undefined : 5,
  },
];

/** Random tensors of a case, as numbers that its format has. */
export const tensorsFor = (
  { config, biases = [], headNorms = false, tied = false, dtype = "f32" }: ModelCase,
  seed: number,
): Readonly<Record<string, Tensor>> => {
  const tensors: Record<string, Tensor> = {};
  const { hidden_size, head_dim, num_attention_heads, num_key_value_heads } = config;
  const inner = config["intermediate_size"] as number;
  const vocabulary = config["vocab_size"] as number;
  let n = seed;
  const add = (name: string, shape: ReadonlyArray<number>, scale: number, shift = 0) => {
    const count = shape.reduce((a, b) => a * b, 1);
    const values = normals(n++, count).map((x) => shift + scale * x);
    tensors[name] = { dtype, shape, values: decode(dtype, encode(dtype, values)) };
  };
  const matrix = (name: string, which: string, rows: number, columns: number) => {
    add(`${name}.weight`, [rows, columns], 1 / Math.sqrt(columns));
    if ((biases as ReadonlyArray<string>).includes(which)) add(`${name}.bias`, [rows], 0.3);
  };
  add("model.embed_tokens.weight", [vocabulary, hidden_size], 1);
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const at = `model.layers.${layer}`;
    add(`${at}.input_layernorm.weight`, [hidden_size], 0.2, 1);
    add(`${at}.post_attention_layernorm.weight`, [hidden_size], 0.2, 1);
    const [queries, keys] = [num_attention_heads * head_dim, num_key_value_heads * head_dim];
    matrix(`${at}.self_attn.q_proj`, "q", queries, hidden_size);
    matrix(`${at}.self_attn.k_proj`, "k", keys, hidden_size);
    matrix(`${at}.self_attn.v_proj`, "v", keys, hidden_size);
    matrix(`${at}.self_attn.o_proj`, "o", hidden_size, queries);
    if (headNorms) {
      add(`${at}.self_attn.q_norm.weight`, [head_dim], 0.2, 1);
      add(`${at}.self_attn.k_norm.weight`, [head_dim], 0.2, 1);
    }
    matrix(`${at}.mlp.gate_proj`, "gate", inner, hidden_size);
    matrix(`${at}.mlp.up_proj`, "up", inner, hidden_size);
    matrix(`${at}.mlp.down_proj`, "down", hidden_size, inner);
  }
  add("model.norm.weight", [hidden_size], 0.2, 1);
  if (!tied) add("lm_head.weight", [vocabulary, hidden_size], 1 / Math.sqrt(hidden_size));
  return tensors;
};

/** Writes a model's folder, in so many files. */
export const writeModel = async (
  folder: string,
  { config }: Pick<ModelCase, "config">,
  tensors: Readonly<Record<string, Tensor>>,
  shards = 1,
): Promise<void> => {
  await Deno.mkdir(folder, { recursive: true });
  await Deno.writeTextFile(`${folder}/config.json`, JSON.stringify(config));
  const entries = Object.entries(tensors);
  if (shards === 1) {
    return await Deno.writeFile(`${folder}/model.safetensors`, fileOfTensors(tensors));
  }
  const map: Record<string, string> = {};
  for (let shard = 0; shard < shards; shard++) {
    const name = `model-${shard + 1}-of-${shards}.safetensors`;
    const mine = entries.filter((_, i) => i % shards === shard);
    for (const [tensor] of mine) map[tensor] = name;
    await Deno.writeFile(`${folder}/${name}`, fileOfTensors(Object.fromEntries(mine)));
  }
  await Deno.writeTextFile(
    `${folder}/model.safetensors.index.json`,
    JSON.stringify({ metadata: {}, weight_map: map }),
  );
};

/** The tensors as the reference takes them. */
export const asWeights = (tensors: Readonly<Record<string, Tensor>>): Weights =>
  new Map(Object.entries(tensors));
