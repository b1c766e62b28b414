/**
 * What the device asks of its threads. A job is a number of items that threads take one after the other, whoever is
 * free; every array lies in shared memory. An item adds to its own part of the outputs in an order of its own, so that
 * results do not depend on who took it, or when.
 *
 * @module
 */
import type { DType } from "../../runtime/dtype.ts";
import type { Queries } from "../../runtime/kernel.ts";
import { rowsAtOnce } from "./softmax.ts";

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

/** A tile of the plan. `bounds` has the first key that a row sees, then the first that it does not, and is absent where all rows see all keys. */
export interface Rectangle {
  readonly row: number;
  readonly rows: number;
  readonly column: number;
  readonly columns: number;
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

export type Job = Prepare | Attend | Normalise;

/** How many chunks of tokens there are: as many tokens each as a tile has rows. */
export const chunksOf = (tokens: number): number => Math.ceil(tokens / rowsAtOnce);

/** How many items a job has. */
export const itemsOf = (job: Job): number => {
  switch (job.kind) {
    case "prepare":
      return job.batch * chunksOf(job.tokens);
    case "attend":
      return job.shape.batch * job.shape.heads * chunksOf(job.shape.tokens);
    case "normalise":
      return job.shape.batch * chunksOf(job.shape.tokens);
  }
};

/** A number vector in shared memory, all zero. */
export const sharedFloats = (count: number): Float32Array =>
  new Float32Array(new SharedArrayBuffer(count * 4));
