/**
 * Rotary position embeddings: by how much each pair of components turns from one token to the next.
 *
 * Source: Su et al. 2021 (RoFormer); for `llama3` the scaling of Llama 3.1, which leaves short waves alone, stretches long
 * ones and blends between them.
 *
 * @module
 */
import { Result } from "effect";
import { ModelInvalid } from "../../runtime/errors.ts";
import type { Config } from "./config.ts";

/** The kinds of scaling that are known. */
export const ropeTypes = ["default", "linear", "llama3"] as const;

/** Radians a token for every pair, [headDim / 2], in float64. */
export const frequenciesOf = (
  model: string,
  headDim: number,
  { rope_theta, rope_scaling, rope_parameters, max_position_embeddings }: Config,
): Result.Result<Float64Array, ModelInvalid> => {
  const scaling = rope_parameters ?? rope_scaling ?? {};
  const theta = scaling.rope_theta ?? rope_theta ?? 10_000;
  const type = scaling.rope_type ?? scaling.type ?? "default";
  const plain = Float64Array.from({ length: headDim / 2 }, (_, i) => theta ** (-2 * i / headDim));
  const refuse = (needed: string, found: string) =>
    Result.fail(new ModelInvalid({ model, needed, found }));
  const { factor } = scaling;
  if (type === "default") return Result.succeed(plain);
  if (type !== "linear" && type !== "llama3") {
    return refuse(`its rope scaling must be one of ${ropeTypes.join(", ")}`, `"${type}"`);
  }
  if (factor === undefined || !(factor > 0)) {
    return refuse("its rope scaling must have a factor above 0", String(factor));
  }
  if (type === "linear") return Result.succeed(plain.map((frequency) => frequency / factor));
  const { low_freq_factor: low, high_freq_factor: high } = scaling;
  const original = scaling.original_max_position_embeddings ?? max_position_embeddings;
  if (low === undefined || high === undefined || !(high > low)) {
    return refuse(
      "its rope scaling must have a high_freq_factor above its low_freq_factor",
      `${high} and ${low}`,
    );
  }
  return Result.succeed(plain.map((frequency) => {
    const turns = original * frequency / (2 * Math.PI);
    const blend = Math.min(1, Math.max(0, (turns - low) / (high - low)));
    return (1 - blend) * frequency / factor + blend * frequency;
  }));
};
