/**
 * How long a text a crew can hold: the weights on every rank, and of the keys and values its share.
 *
 * @module
 */
import { tokenBytesOf } from "./cache.ts";
import type { Equipment } from "./crew.ts";
import { type DType, elementBytes } from "./dtype.ts";
import { PlanRefused } from "./errors.ts";
import type { Model } from "./model.ts";
import { bytesOfWeight } from "./program.ts";
import { usualRows } from "./session.ts";

/** A model on a crew. */
export interface Placing {
  readonly model: Model;
  readonly ring: number;
  /** Format in which keys and values are held. */
  readonly cache: DType;
  readonly equipment: Equipment;
  /** Bytes that each rank may use, where that is not what it has. */
  readonly memory?: number | undefined;
}

/** Matrices of activations that are there at once. */
const matrices = 8;

/** New tokens on a rank in one turn, at most, where every rank has a GPU, and what it should not be less than. */
const [gpuRows, fewRows] = [8192, 64];

/** Bytes of the logits that a turn gives, at most. */
const mostLogits = 2 ** 26;

const memoryOf = ({ ring, equipment, memory = equipment.memory(ring) }: Placing): number => memory;

/** Bytes of weights on a rank, as they are held. */
const weightBytes = ({ model, ring, equipment }: Placing): number =>
  model.weights.reduce((sum, weight) => sum + bytesOfWeight(weight), 0) /
  (equipment.together ? ring : 1);

/** Bytes of a row of a matrix on a device, whose last vector of four may be half empty. */
const rowBytes = (columns: number): number => elementBytes("f32") * 4 * Math.ceil(columns / 4);

/**
 * What ranks should hold of a turn at once. New tokens: more where all have a GPU, on which a turn waits for as long as it
 * computes; not more than a device can hold a matrix of; and hardly more than fit a quarter of what weights leave.
 */
export const turnLimits = (
  placing: Placing,
): { readonly rowsAtOnce: number; readonly logitsAtOnce: number } => {
  const { devices } = placing.equipment;
  const usual = devices.length > 0 && devices.every(({ software }) => !software)
    ? gpuRows
    : usualRows;
  const largest = Math.min(...devices.map(({ largestTensor }) => largestTensor));
  const { widest, vocabulary } = placing.model;
  const fitting = (memoryOf(placing) - weightBytes(placing)) / 4 / matrices / rowBytes(widest);
  const held = Math.min(usual, largest / rowBytes(widest));
  const logits = Math.min(largest, mostLogits) / rowBytes(vocabulary);
  return {
    rowsAtOnce: Math.max(1, Math.floor(Math.min(held, Math.max(fewRows, fitting)))),
    logitsAtOnce: Math.max(1, Math.floor(logits)),
  };
};

/** Bytes of weights and of activations, which are float32, on a rank. */
const fixedBytes = (placing: Placing): number =>
  weightBytes(placing) + matrices * turnLimits(placing).rowsAtOnce * rowBytes(placing.model.widest);

/** Tokens that the crew has room for, of all texts together. */
export const longestContext = (placing: Placing): number => {
  const { model, ring, cache } = placing;
  const perToken = tokenBytesOf({ ...model, dtype: cache });
  const left = memoryOf(placing) - fixedBytes(placing);
  return left === Infinity ? Infinity : Math.max(0, Math.floor(left / perToken)) * ring;
};

/** The refusal of a text that the crew has no room for, before anything is loaded. */
export const contextRefusal = (placing: Placing, tokens: number): PlanRefused | undefined => {
  const { model, ring, cache } = placing;
  const longest = longestContext(placing);
  if (tokens <= longest && longest > 0) return undefined;
  const fixed = `${Math.ceil(fixedBytes(placing))} bytes for weights and activations`;
  const onEach = ring === 1 ? "" : ` on each of ${ring} ranks`;
  const found = `${Math.floor(memoryOf(placing))}`;
  if (longest === 0) {
    return new PlanRefused({
      needed: `${fixed}${onEach}, and more for keys and values`,
      found,
      knob: "no text is short enough: use machines with more memory, or a model with fewer or " +
        "narrower weights",
    });
  }
  const held = Math.ceil(tokens / ring) * tokenBytesOf({ ...model, dtype: cache });
  return new PlanRefused({
    needed: `${fixed} and ${held} for keys and values of ${tokens} tokens${onEach}`,
    found,
    knob: `${longest} tokens would fit: use a shorter text, more ranks on other machines (--ring)${
      cache === "f32" ? ", or a narrower format for keys and values (--cache f16)" : ""
    }`,
  });
};
