/**
 * Qwen2 and Qwen2.5: biases of queries, keys and values, and windows in the upper layers where the config says so.
 *
 * Source: Yang et al. 2024.
 *
 * @module
 */
import type { Config } from "../config.ts";
import type { Family } from "../family.ts";

/** The layers from `max_window_layers` on, where windows are used at all. */
export const upperWindow = (
  { use_sliding_window = false, sliding_window, max_window_layers }: Config,
  layer: number,
): number | undefined =>
  use_sliding_window && layer >= (max_window_layers ?? 28) ? sliding_window ?? 4096 : undefined;

/** `Qwen2ForCausalLM`. */
export const qwen2: Family = {
  architecture: "Qwen2ForCausalLM",
  biases: () => ({ qkv: true, o: false, mlp: false }),
  headNorms: false,
  windowOf: upperWindow,
};
