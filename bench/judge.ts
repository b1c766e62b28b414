/**
 * Says whether what a contender computed is right, by the float64 oracle: chosen rows of products and of attention,
 * and every row of one head of gradients, because the gradient of a key depends on all queries.
 *
 * @module
 */
import { denseGradients, StreamingOracle } from "../kernels/oracle.ts";
import type { Job, Shape, Tensors } from "./job.ts";

/** Part of a tensor: what it must be, and where it lies. */
interface Expected {
  readonly tensor: string;
  /** A result need not have it. */
  readonly optional?: boolean;
  readonly values: Float64Array;
  /** Index in the tensor of `values[i]`. */
  readonly indexOf: (i: number) => number;
}

/** What the results of a job are compared with. */
export interface Reference {
  readonly expected: ReadonlyArray<Expected>;
}

/** How far a result is from the reference. */
export interface Verdict {
  /** Relative L2 norm of the difference, of the tensor where it is largest; NaN where a tensor is missing. */
  readonly error: number;
  readonly right: boolean;
}

const rowsJudged = 64;

/** Rows spread over all of them, the first and the last among them. */
const chosen = (rows: number): ReadonlyArray<number> => {
  const count = Math.min(rowsJudged, rows);
  return Array.from(
    { length: count },
    (_, i) => Math.round(i * (rows - 1) / Math.max(1, count - 1)),
  );
};

const product = (size: number, a: Float32Array, b: Float32Array): Expected => {
  const rows = chosen(size);
  const values = new Float64Array(rows.length * size);
  rows.forEach((row, r) => {
    for (let k = 0; k < size; k++) {
      const factor = a[row * size + k]!;
      for (let j = 0; j < size; j++) values[r * size + j]! += factor * b[k * size + j]!;
    }
  });
  return {
    tensor: "c",
    values,
    indexOf: (i) => rows[Math.floor(i / size)]! * size + i % size,
  };
};

/** Problem that the oracles know, for this many heads. */
const problemOf = ({ tokens, headDim, causal }: Shape, heads: number) => ({
  batch: 1,
  tokens,
  heads,
  kvHeads: heads,
  headDim,
  scale: 1 / Math.sqrt(headDim),
  rules: { sees: causal ? (_b: number, _h: number, q: number, k: number) => k <= q : () => true },
});

const attention = (shape: Shape, { q, k, v }: Tensors): ReadonlyArray<Expected> => {
  const { heads, tokens, headDim } = shape;
  const positions = chosen(tokens);
  const width = heads * headDim;
  const rows = new Float32Array(positions.length * width);
  positions.forEach((position, r) =>
    rows.set(q!.subarray(position * width, (position + 1) * width), r * width)
  );
  const oracle = new StreamingOracle({ ...problemOf(shape, heads), entry: 0, positions, q: rows });
  oracle.absorb(0, k!, v!);
  const { o, lse } = oracle.finish();
  const count = positions.length;
  return [
    {
      tensor: "o",
      values: o,
      indexOf: (i) => positions[Math.floor(i / width)]! * width + i % width,
    },
    {
      tensor: "lse",
      optional: true,
      values: lse,
      indexOf: (i) => Math.floor(i / count) * tokens + positions[i % count]!,
    },
  ];
};

const gradients = (shape: Shape, inputs: Tensors): ReadonlyArray<Expected> => {
  const { heads, tokens, headDim } = shape;
  const head = heads - 1;
  const indexOf = (i: number) => (Math.floor(i / headDim) * heads + head) * headDim + i % headDim;
  const [q, k, v, dO] = ["q", "k", "v", "dO"].map((name) =>
    Float32Array.from({ length: tokens * headDim }, (_, i) => inputs[name]![indexOf(i)]!)
  ) as [Float32Array, Float32Array, Float32Array, Float32Array];
  const wanted = denseGradients(problemOf(shape, 1), q, k, v, dO);
  return Object.entries(wanted).map(([tensor, values]) => ({ tensor, values, indexOf }));
};

/** The float64 results of a job. */
export const referenceOf = (job: Job, inputs: Tensors): Reference => {
  if (job.kind === "matmul") {
    return { expected: [product(job.size, inputs["a"]!, inputs["b"]!)] };
  }
  const forward = attention(job, inputs);
  return {
    expected: job.kind === "attention" ? forward : [...forward, ...gradients(job, inputs)],
  };
};

/** Compares a result with the reference; it is right where no tensor is farther from it than `bound`. */
export const judge = ({ expected }: Reference, result: Tensors, bound: number): Verdict => {
  const errors = expected.map(({ tensor, optional = false, values, indexOf }) => {
    const found = result[tensor];
    if (found === undefined) return optional ? 0 : NaN;
    let apart = 0, norm = 0;
    values.forEach((wanted, i) => {
      apart += ((found[indexOf(i)] ?? NaN) - wanted) ** 2;
      norm += wanted ** 2;
    });
    return Math.sqrt(apart / norm);
  });
  const error = Math.max(...errors);
  return { error, right: error <= bound };
};
