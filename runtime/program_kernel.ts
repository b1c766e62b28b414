/**
 * Programs in the memory of the host: for devices without any of their own. Sums are in float64, matrices in float32;
 * products of matrices are the kernel's where it has them, and plain loops elsewhere.
 *
 * @module
 */
import { decodeInto, type DType, elementBytes, recode } from "./dtype.ts";
import { type Held, type Linear, linear, widened } from "./linear.ts";
import {
  inputsOf,
  type Program,
  type ProgramKernel,
  type Step,
  type Value,
  type WeightSpec,
} from "./program.ts";

/** [rows, columns] in memory that threads of a device can share. */
interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly values: Float32Array;
}

const matrix = (rows: number, columns: number): Matrix => ({
  rows,
  columns,
  values: new Float32Array(new SharedArrayBuffer(4 * rows * columns)),
});

const like = ({ rows, columns }: Matrix): Matrix => matrix(rows, columns);

/** A weight: the same in its own format. */
interface Weight extends Held {
  readonly rows: number;
  readonly columns: number;
}

const weightOf = ({ rows, columns, dtype }: WeightSpec): Weight => {
  const memory = new SharedArrayBuffer(rows * columns * elementBytes(dtype));
  const values = dtype === "f32" ? new Float32Array(memory) : new Uint16Array(memory);
  return { rows, columns, dtype, values };
};

const fill = (
  { columns, dtype: held, values }: Weight,
  row: number,
  dtype: DType,
  bytes: Uint8Array,
) => {
  const first = row * columns;
  if (values instanceof Float32Array) return decodeInto(values.subarray(first), dtype, bytes);
  const { buffer, byteOffset, byteLength } = values;
  new Uint8Array(buffer, byteOffset, byteLength).set(recode(dtype, held, bytes), 2 * first);
};

type Product = (product: Linear) => void | Promise<void>;

const multiply = async (product: Product, x: Matrix, weight: Weight): Promise<Matrix> => {
  const into = matrix(x.rows, weight.rows);
  await product({
    ...{ rows: x.rows, inner: x.columns, columns: weight.rows },
    ...{ x: x.values, weight, into: into.values },
  });
  return into;
};

const addBias = ({ rows, columns, values }: Matrix, bias: Float32Array): void => {
  for (let row = 0, at = 0; row < rows; row++) {
    for (let c = 0; c < columns; c++, at++) values[at]! += bias[c]!;
  }
};

const rmsNorm = (x: Matrix, weight: Float32Array, epsilon: number): Matrix => {
  const into = like(x);
  const width = weight.length;
  for (let at = 0; at < x.values.length; at += width) {
    let squares = 0;
    for (let c = 0; c < width; c++) squares += x.values[at + c]! ** 2;
    const factor = 1 / Math.sqrt(squares / width + epsilon);
    for (let c = 0; c < width; c++) into.values[at + c] = weight[c]! * (x.values[at + c]! * factor);
  }
  return into;
};

const rope = (x: Matrix, headDim: number, cos: Float32Array, sin: Float32Array): Matrix => {
  const into = like(x);
  const half = headDim / 2;
  for (let row = 0; row < x.rows; row++) {
    for (let head = row * x.columns; head < (row + 1) * x.columns; head += headDim) {
      for (let i = 0; i < half; i++) {
        const [c, s] = [cos[row * half + i]!, sin[row * half + i]!];
        const [a, b] = [x.values[head + i]!, x.values[head + half + i]!];
        into.values[head + i] = a * c - b * s;
        into.values[head + half + i] = b * c + a * s;
      }
    }
  }
  return into;
};

const swiglu = (gate: Matrix, up: Matrix): Matrix => {
  const into = like(gate);
  for (let at = 0; at < into.values.length; at++) {
    const g = gate.values[at]!;
    into.values[at] = g / (1 + Math.exp(-g)) * up.values[at]!;
  }
  return into;
};

const add = (a: Matrix, b: Matrix): Matrix => {
  const into = like(a);
  for (let at = 0; at < into.values.length; at++) into.values[at] = a.values[at]! + b.values[at]!;
  return into;
};

const pick = (x: Weight, rows: Uint32Array): Matrix => {
  const { columns } = x;
  const into = matrix(rows.length, columns);
  for (const [to, from] of rows.entries()) {
    if (from >= x.rows) throw new Error(`row ${from} of ${x.rows} was asked for`);
    into.values.set(widened(x, from * columns, (from + 1) * columns), to * columns);
  }
  return into;
};

/**
 * Programs over these weights, in the memory of the host.
 *
 * @param product The device's own products; plain loops where it has none.
 */
export const hostPrograms = (
  weights: ReadonlyArray<WeightSpec>,
  product: Product = linear,
): ProgramKernel => {
  const held = new Map(weights.map((spec) => [spec.name, weightOf(spec)]));
  const values = new Map<Value, Matrix>();
  const weight = (name: string): Weight => {
    const found = held.get(name);
    if (found === undefined) throw new Error(`the model has no weight "${name}"`);
    return found;
  };
  const vector = (name: string) => widened(weight(name), 0, weight(name).columns);
  const value = (of: Value): Matrix => {
    const found = values.get(of);
    if (found === undefined) throw new Error(`value ${of} is not there any more`);
    return found;
  };
  const compute = async (step: Step): Promise<Matrix> => {
    switch (step.step) {
      case "put": {
        const into = matrix(step.values.length / step.columns, step.columns);
        into.values.set(step.values);
        return into;
      }
      case "embed":
        return pick(weight(step.weight), step.ids);
      case "linear": {
        const into = await multiply(product, value(step.x), weight(step.weight));
        if (step.bias !== undefined) addBias(into, vector(step.bias));
        return into;
      }
      case "rmsNorm":
        return rmsNorm(value(step.x), vector(step.weight), step.epsilon);
      case "rope":
        return rope(value(step.x), step.headDim, step.turns.cos, step.turns.sin);
      case "swiglu":
        return swiglu(value(step.gate), value(step.up));
      case "add":
        return add(value(step.a), value(step.b));
      case "pick":
        return pick({ ...value(step.x), dtype: "f32" }, step.rows);
    }
  };
  return {
    fill: (name, first, dtype, bytes) => fill(weight(name), first, dtype, bytes),
    run: async ({ steps, kept, given }: Program) => {
      const needed = new Set([...kept, ...given]);
      const lastUse = new Map(steps.flatMap((step, i) => inputsOf(step).map((of) => [of, i])));
      try {
        for (const [i, step] of steps.entries()) {
          values.set(step.out, await compute(step));
          for (const input of inputsOf(step)) {
            if (lastUse.get(input) === i && !needed.has(input)) values.delete(input);
          }
        }
        return given.map((out) => value(out).values.slice());
      } finally {
        const stay = new Set(kept);
        for (const out of [...given, ...steps.map(({ out }) => out)]) {
          if (!stay.has(out)) values.delete(out);
        }
      }
    },
    close: () => {
      held.clear();
      values.clear();
    },
  };
};
