/**
 * A decoder as ranks run it: names and shapes of its weights, and what it computes before, between and after the
 * attention of its layers, as programs. A family of models is one function that gives this.
 *
 * @module
 */
import { Context, type Effect, type Scope } from "effect";
import type { Programs } from "./device.ts";
import type { DeviceFailed, FileInvalid, ModelInvalid } from "./errors.ts";
import type { ProgramWriter, Turns, Value, WeightSpec } from "./program.ts";
import type { Variant } from "./variant.ts";

/** Queries, keys and values of a layer, [rows, heads · ownHeadDim] each, or [rows, kvHeads · ownHeadDim]. */
export interface Projected {
  readonly q: Value;
  readonly k: Value;
  readonly v: Value;
}

/** A decoder. */
export interface Model {
  readonly layers: number;
  readonly vocabulary: number;
  readonly heads: number;
  /** Divides `heads`. */
  readonly kvHeads: number;
  /** Components of a head in the attention, which wants a multiple of 4. */
  readonly headDim: number;
  /** Of these, the ones that the model has itself; attention gets zeros for the rest, which change no score. */
  readonly ownHeadDim: number;
  /** Multiplies every score. */
  readonly scale: number;
  /** Columns of its widest matrix of activations, of those that have a row for every token. */
  readonly widest: number;
  /** Tokens that it was made for. */
  readonly longest: number;
  /** Radians by which pair i of the components of queries and keys turns from one token to the next. */
  readonly frequencies: Float64Array;
  readonly weights: ReadonlyArray<WeightSpec>;
  /** What a layer's queries see. */
  readonly attention: (layer: number) => ReadonlyArray<Variant>;
  /** x of the first layer, [rows, hidden]. */
  readonly embed: (program: ProgramWriter, ids: Uint32Array) => Value;
  /**
   * What a layer's attention needs of x.
   *
   * @param turns Of the rows of k and v.
   * @param queries Rows that have queries, where not all of them do, and their turns.
   */
  readonly project: (
    program: ProgramWriter,
    layer: number,
    x: Value,
    turns: Turns,
    queries?: { readonly rows: Uint32Array; readonly turns: Turns },
  ) => Projected;
  /** x of the next layer, of the x and the attention of the same rows, [rows, heads · ownHeadDim]. */
  readonly combine: (program: ProgramWriter, layer: number, x: Value, o: Value) => Value;
  /** [rows, vocabulary], of the x after the last layer. */
  readonly logits: (program: ProgramWriter, x: Value) => Value;
}

/** cos and sin of the angles of tokens at these positions; in float64 until they are numbers from −1 to 1. */
export const turnsAt = (
  { frequencies }: Pick<Model, "frequencies">,
  positions: ArrayLike<number>,
): Turns => {
  const half = frequencies.length;
  const [cos, sin] = [0, 1].map(() => new Float32Array(half * positions.length)) as [
    Float32Array,
    Float32Array,
  ];
  for (let row = 0, at = 0; row < positions.length; row++) {
    for (let i = 0; i < half; i++, at++) {
      const angle = positions[row]! * frequencies[i]!;
      cos[at] = Math.cos(angle);
      sin[at] = Math.sin(angle);
    }
  }
  return { cos, sin };
};

/** A model with its weights on this process's device. */
export interface LoadedModel {
  readonly model: Model;
  readonly programs: Programs;
}

/** The models that this process can run. */
export class Models extends Context.Service<Models, {
  /**
   * The one whose files have this hash; loads its weights the first time.
   *
   * @param window Tokens that every layer sees at most.
   */
  readonly open: (
    hash: string,
    window?: number,
  ) => Effect.Effect<LoadedModel, DeviceFailed | FileInvalid | ModelInvalid, Scope.Scope>;
}>()("annulus/runtime/Models") {}
