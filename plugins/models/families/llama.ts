/**
 * Llama 2, 3 and 3.1, and others that name its architecture, such as SmolLM2.
 *
 * Source: Touvron et al. 2023, Grattafiori et al. 2024.
 *
 * @module
 */
import type { Family } from "../family.ts";

/** `LlamaForCausalLM`. */
export const llama: Family = {
  architecture: "LlamaForCausalLM",
  biases: ({ attention_bias = false, mlp_bias = false }) => ({
    qkv: attention_bias,
    o: attention_bias,
    mlp: mlp_bias,
  }),
  headNorms: false,
  windowOf: () => undefined,
};
