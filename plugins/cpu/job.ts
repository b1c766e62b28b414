/**
 * What the device asks of its threads. A job is a number of items that threads take one after the other, whoever is
 * free; every array lies in shared memory. An item adds to its own part of the outputs in an order of its own, so that
 * results do not depend on who took it, or when.
 *
 * @module
 */
import type { DType } from "../../runtime/dtype.ts";
import type { HeadProduct } from "../../runtime/head_product.ts";
import type { Queries } from "../../runtime/kernel.ts";
import type { Linear } from "../../runtime/linear.ts";
import type { Span } from "../../runtime/span.ts";
import { keysAtOnce, rowsAtOnce } from "./softmax.ts";

/** The query side of a problem. */
export type Shape = Pick<
  Queries,
  "batch" | "tokens" | "heads" | "kvHeads" | "headDim" | "scale"
>;

/** Vectors as they came, and what is to be known of them. One item is a chunk of tokens of a batch entry. */
export interface Prepare {
  readonly kind: "prepare";
  /** [batch, tokens, heads, headDim]. */
  readonly bytes: Uint8Array;
  readonly dtype: DType;
  readonly batch: number;
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  /** Where they are wanted as float32, if that is elsewhere. */
  readonly into?: Float32Array;
  /** Where the largest squared length goes, [batch, chunks, heads], if it is wanted. */
  readonly longest?: Float32Array;
}

/** A tile of the plan. */
export interface Rectangle {
  readonly row: number;
  readonly rows: number;
  readonly column: number;
  readonly columns: number;
  /** The positions of its rows and columns. */
  readonly queries: Span;
  readonly keys: Span;
  /** Each pair must be asked about as well. */
  readonly pairwise?: boolean;
  /** For each row, the first key that it sees, then the first that it does not; absent where all rows see all keys. */
  readonly bounds?: Int32Array;
}

/** A block as the threads see it. */
export interface Keys {
  readonly tokens: number;
  /** Float32 [batch, tokens, kvHeads, headDim], at any address. */
  readonly k: Uint8Array;
  readonly v: Uint8Array;
}

/** What query rows have gathered: õ as it stands in the result, m and l as [batch, heads, tokens]. */
export interface State {
  readonly q: Float32Array;
  readonly longestQueries: Float32Array;
  readonly outputs: Float32Array;
  readonly tops: Float32Array;
  readonly sums: Float32Array;
}

/** Adds a block to the state. One item is a chunk of rows of one head. */
export interface Attend {
  readonly kind: "attend";
  /** The number by which threads know the attention of the queries, where they must ask it. */
  readonly attention?: number;
  readonly shape: Shape;
  readonly state: State;
  readonly keys: Keys;
  readonly longestKeys: Float32Array;
  readonly rectangles: ReadonlyArray<Rectangle>;
}

/** Divides the outputs by the sums, and makes each sum a log-sum-exp. One item is a chunk of tokens of a batch entry. */
export interface Normalise {
  readonly kind: "normalise";
  readonly shape: Shape;
  readonly state: State;
}

/** What the backward pass knows of query rows, and dq as it stands; lse and D are [batch, heads, tokens]. */
export interface Slopes {
  readonly q: Float32Array;
  readonly cotangent: Float32Array;
  readonly lse: Float32Array;
  readonly d: Float32Array;
  readonly dq: Float32Array;
}

/** D = Σ dO·o of every row. One item is a chunk of tokens of a batch entry. */
export interface Delta {
  readonly kind: "delta";
  readonly shape: Shape;
  readonly o: Float32Array;
  readonly slopes: Slopes;
}

/**
 * Adds a block to dq, and its gradients to zeros. One item is a range of a block's keys of one K/V head: dk and dv of
 * these keys are its own. Ranges take turns at dq, chunk of rows by chunk of rows.
 */
export interface Differentiate {
  readonly kind: "differentiate";
  readonly attention?: number;
  readonly shape: Shape;
  readonly slopes: Slopes;
  readonly keys: Keys;
  /** dk then dv, each [batch, block tokens, kvHeads, headDim]. */
  readonly gradients: Float32Array;
  readonly rectangles: ReadonlyArray<Rectangle>;
  /** How many ranges see a chunk before this one does, −1 where this one sees nothing of it: [chunks, ranges]. */
  readonly turns: Int32Array;
  /** How many ranges have added to dq: [batch, heads, chunks]. */
  readonly added: Int32Array;
}

/** What latents need. One item is a chunk of rows of one head. */
export interface Project {
  readonly kind: "project";
  readonly product: HeadProduct;
}

/** What decoders need. One item is some columns of the result. */
export interface Multiply {
  readonly kind: "multiply";
  readonly linear: Linear;
}

export type Job = Prepare | Attend | Normalise | Delta | Differentiate | Project | Multiply;

/** Columns of a product with a weight that are one piece of work, of which threads have some each. */
export const columnsAtOnce = (columns: number): number => Math.max(64, Math.ceil(columns / 32));

/** How many chunks of tokens there are: as many tokens each as a tile has rows. */
export const chunksOf = (tokens: number): number => Math.ceil(tokens / rowsAtOnce);

/** How many ranges of keys there are. */
export const rangesOf = (tokens: number): number => Math.ceil(tokens / keysAtOnce);

/** How many items a job has. */
export const itemsOf = (job: Job): number => {
  switch (job.kind) {
    case "prepare":
      return job.batch * chunksOf(job.tokens);
    case "attend":
      return job.shape.batch * job.shape.heads * chunksOf(job.shape.tokens);
    case "normalise":
    case "delta":
      return job.shape.batch * chunksOf(job.shape.tokens);
    case "differentiate":
      return job.shape.batch * job.shape.kvHeads * rangesOf(job.keys.tokens);
    case "project":
      return job.product.heads * chunksOf(job.product.rows);
    case "multiply":
      return Math.ceil(job.linear.columns / columnsAtOnce(job.linear.columns));
  }
};

/** A number vector in shared memory, all zero. */
export const sharedFloats = (count: number): Float32Array =>
  new Float32Array(new SharedArrayBuffer(count * 4));
