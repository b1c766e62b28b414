/**
 * Programs: what a decoder computes between one attention and the next, as steps over matrices that stay on the device.
 * A model writes them once, and every device can run them.
 *
 * @module
 */
import { type DType, elementBytes } from "./dtype.ts";

/** A tensor of a model: [rows, columns], or [columns] where there is one row. */
export interface WeightSpec {
  readonly name: string;
  readonly rows: number;
  readonly columns: number;
  /** In which a device holds it; what is computed with it is float32. */
  readonly dtype: DType;
}

/** Bytes of a weight as a device holds it. */
export const bytesOfWeight = ({ rows, columns, dtype }: WeightSpec): number =>
  rows * columns * elementBytes(dtype);

/** A float32 matrix [rows, columns] on a device, by its number. */
export type Value = number;

/** What turns pairs of components of each row: cos and sin of its angles, [rows, headDim / 2] each. */
export interface Turns {
  readonly cos: Float32Array;
  readonly sin: Float32Array;
}

/** One step. `out` is new. */
export type Step =
  /** A matrix from outside. */
  | {
    readonly step: "put";
    readonly out: Value;
    readonly values: Float32Array;
    readonly columns: number;
  }
  /** Rows of a weight. */
  | {
    readonly step: "embed";
    readonly out: Value;
    readonly weight: string;
    readonly ids: Uint32Array;
  }
  /** x Wᵀ, plus the bias where there is one. */
  | {
    readonly step: "linear";
    readonly out: Value;
    readonly x: Value;
    readonly weight: string;
    readonly bias?: string;
  }
  /** w · x / √(mean(x²) + ε), over each group of as many components as the weight has. */
  | {
    readonly step: "rmsNorm";
    readonly out: Value;
    readonly x: Value;
    readonly weight: string;
    readonly epsilon: number;
  }
  /** Turns components i and i + headDim / 2 of each head by the row's i-th angle. */
  | {
    readonly step: "rope";
    readonly out: Value;
    readonly x: Value;
    readonly headDim: number;
    readonly turns: Turns;
  }
  /** gate · sigmoid(gate) · up. */
  | { readonly step: "swiglu"; readonly out: Value; readonly gate: Value; readonly up: Value }
  | { readonly step: "add"; readonly out: Value; readonly a: Value; readonly b: Value }
  /** Some rows, in this order. */
  | {
    readonly step: "pick";
    readonly out: Value;
    readonly x: Value;
    readonly rows: Uint32Array;
  };

/** Steps in order. Values that are not kept end with the last step that uses them. */
export interface Program {
  readonly steps: ReadonlyArray<Step>;
  /** To be used by a later program, which lets them go. */
  readonly kept: ReadonlyArray<Value>;
  /** To be given back, in this order. */
  readonly given: ReadonlyArray<Value>;
}

/** The values that a step reads. */
export const inputsOf = (step: Step): ReadonlyArray<Value> => {
  switch (step.step) {
    case "put":
    case "embed":
      return [];
    case "swiglu":
      return [step.gate, step.up];
    case "add":
      return [step.a, step.b];
    default:
      return [step.x];
  }
};

type Unnamed<S> = S extends Step ? Omit<S, "out"> : never;

/** Writes a program. Numbers of values are never used again. */
export class ProgramWriter {
  static #next = 0;
  readonly #steps: Array<Step> = [];
  readonly #kept = new Set<Value>();
  readonly #given: Array<Value> = [];

  #add(step: Unnamed<Step>): Value {
    const out = ProgramWriter.#next++;
    this.#steps.push({ ...step, out });
    return out;
  }

  /** [rows, columns]. */
  put(values: Float32Array, columns: number): Value {
    return this.#add({ step: "put", values, columns });
  }
  /** Rows of a weight. */
  embed(weight: string, ids: Uint32Array): Value {
    return this.#add({ step: "embed", weight, ids });
  }
  /** x Wᵀ, plus the bias where there is one. */
  linear(x: Value, weight: string, bias?: string): Value {
    return this.#add({
      ...{ step: "linear", x, weight },
      ...(bias === undefined ? {} : { bias }),
    });
  }
  /** RMS norm over each group of as many components as the weight has. */
  rmsNorm(x: Value, weight: string, epsilon: number): Value {
    return this.#add({ step: "rmsNorm", x, weight, epsilon });
  }
  /** Rotary position embedding. */
  rope(x: Value, headDim: number, turns: Turns): Value {
    return this.#add({ step: "rope", x, headDim, turns });
  }
  /** gate · sigmoid(gate) · up. */
  swiglu(gate: Value, up: Value): Value {
    return this.#add({ step: "swiglu", gate, up });
  }
  /** a + b. */
  add(a: Value, b: Value): Value {
    return this.#add({ step: "add", a, b });
  }
  /** Some rows; the same value where these are all. */
  pick(x: Value, rows: Uint32Array | undefined): Value {
    if (rows === undefined) return x;
    return this.#add({ step: "pick", x, rows });
  }
  /** Keeps a value for a later program. */
  keep(value: Value): Value {
    this.#kept.add(value);
    return value;
  }
  /** Gives a value back. */
  give(...values: ReadonlyArray<Value>): void {
    this.#given.push(...values);
  }
  /** What was written. */
  get program(): Program {
    return { steps: this.#steps, kept: [...this.#kept], given: this.#given };
  }
}

/** Weights on a device, and programs over them. Runs inside the device's Worker. */
export interface ProgramKernel {
  /** Rows `first` … of a weight, in a format of their own. */
  readonly fill: (
    weight: string,
    first: number,
    dtype: DType,
    bytes: Uint8Array,
  ) => void | Promise<void>;
  /** The values that the program gives. */
  readonly run: (
    program: Program,
  ) => ReadonlyArray<Float32Array> | Promise<ReadonlyArray<Float32Array>>;
  /** Frees the device memory; harmless when repeated. */
  readonly close: () => void;
}
