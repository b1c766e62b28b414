/**
 * Qwen3: queries and keys of each head have a norm of their own.
 *
 * Source: Yang et al. 2025.
 *
 * @module
 */
import type { Family } from "../family.ts";
import { upperWindow } from "./qwen2.ts";

/** `Qwen3ForCausalLM`. */
export const qwen3: Family = {
  architecture: "Qwen3ForCausalLM",
  biases: ({ attention_bias = false }) => ({
    qkv: attention_bias,
    o: attention_bias,
    mlp: false,
  }),
  headNorms: true,
  windowOf: upperWindow,
};
