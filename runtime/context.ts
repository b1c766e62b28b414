/**
 * How long a text a crew can hold: the weights on every rank, and of the keys and values its share.
 *
 * @module
 */
import { tokenBytesOf } from "./cache.ts";
import { type DType, elementBytes } from "./dtype.ts";
import { PlanRefused } from "./errors.ts";
import type { DeviceInfo } from "./kernel.ts";
import type { Model } from "./model.ts";
import { bytesOfWeight } from "./program.ts";
import { usualRows } from "./session.ts";

/** A model on machines. */
export interface Placing {
  readonly model: Model;
  readonly ring: number;
  /** Format in which keys and values are held. */
  readonly cache: DType;
  /** Bytes that each rank has. */
  readonly memory: number;
  /** Ranks share one process and with it the weights. */
  readonly together: boolean;
  /** New tokens on a rank in one turn, at most. */
  readonly rows: number;
}

/** Matrices of activations that are there at once. */
const matrices = 8;

/** New tokens on a rank in one turn, at most, where every rank has a GPU. */
const gpuRows = 8192;

/** Columns of the widest matrix of activations that has a row for every token. */
const widestOf = ({ weights, vocabulary }: Pick<Model, "weights" | "vocabulary">): number =>
  Math.max(...weights.map(({ rows, columns }) => rows === vocabulary ? columns : rows));

/**
 * New tokens on a rank in one turn, at most: more where all have a GPU, on which a turn waits for as long as it computes,
 * and fewer where a device could not hold their activations.
 */
export const rowsOn = (
  model: Pick<Model, "weights" | "vocabulary">,
  devices: ReadonlyArray<Pick<DeviceInfo, "software" | "largestTensor">>,
): number => {
  const usual = devices.every(({ software }) => !software) ? gpuRows : usualRows;
  const largest = Math.min(...devices.map(({ largestTensor }) => largestTensor));
  return Math.max(1, Math.min(usual, Math.floor(largest / elementBytes("f32") / widestOf(model))));
};

/** Bytes of weights, as they are held, and of activations, which are float32, on a rank. */
const fixedBytes = ({ model, ring, together, rows }: Placing): number => {
  const weights = model.weights.reduce((sum, weight) => sum + bytesOfWeight(weight), 0);
  const activations = elementBytes("f32") * matrices * rows * widestOf(model);
  return weights / (together ? ring : 1) + activations;
};

/** Tokens that the crew has room for, of all texts together. */
export const longestContext = (placing: Placing): number => {
  const { model, ring, cache, memory } = placing;
  const perToken = tokenBytesOf({ ...model, dtype: cache });
  return Math.max(0, Math.floor((memory - fixedBytes(placing)) / perToken)) * ring;
};

/** The refusal of a text that the crew has no room for, before anything is loaded. */
export const contextRefusal = (placing: Placing, tokens: number): PlanRefused | undefined => {
  const { model, ring, cache, memory } = placing;
  const longest = longestContext(placing);
  if (tokens <= longest) return undefined;
  const held = Math.ceil(tokens / ring) * tokenBytesOf({ ...model, dtype: cache });
  return new PlanRefused({
    needed: `${Math.ceil(fixedBytes(placing))} bytes for weights and activations and ${held} for ` +
      `keys and values of ${tokens} tokens on each of ${ring} ranks`,
    found: `${Math.floor(memory)}`,
    knob: `${longest} tokens would fit: use a shorter text, more ranks on other machines (--ring)${
      cache === "f32" ? ", or a narrower format for keys and values (--cache f16)" : ""
    }`,
  });
};
