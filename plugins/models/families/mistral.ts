/**
 * Mistral, whose layers see a window where their config has one.
 *
 * Source: Jiang et al. 2023.
 *
 * @module
 */
import type { Family } from "../family.ts";

/** `MistralForCausalLM`. */
export const mistral: Family = {
  architecture: "MistralForCausalLM",
  biases: () => ({ qkv: false, o: false, mlp: false }),
  headNorms: false,
  windowOf: ({ sliding_window }) => sliding_window ?? undefined,
};
