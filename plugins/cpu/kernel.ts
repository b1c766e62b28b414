/**
 * Attention by threads of this machine: memory and jobs, in the order in which they come.
 *
 * @module
 */
import { elementBytes } from "../../runtime/dtype.ts";
import type { Accumulation, Attended, KeyValues, Queries, Tile } from "../../runtime/kernel.ts";
import { asLse } from "../../runtime/lse.ts";
import type { Band } from "../../runtime/mask.ts";
import { countUpTo, positionAt } from "../../runtime/span.ts";
import {
  chunksOf,
  type Keys,
  type Prepare,
  type Rectangle,
  sharedFloats,
  type State,
} from "./job.ts";
import type { Threads } from "./threads.ts";

/** Bytes in shared memory: the same where they are already. */
const shared = (bytes: Uint8Array): Uint8Array => {
  if (bytes.buffer instanceof SharedArrayBuffer) return bytes;
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.length));
  copy.set(bytes);
  return copy;
};

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength);

/** A tile of the plan, with what each row sees of it. */
const rectangleOf = (band: Band) => ({ row, queries, column, keys, full }: Tile): Rectangle => {
  const rectangle = { row, rows: queries.count, column, columns: keys.count };
  if (full) return rectangle;
  const bounds = new Int32Array(new SharedArrayBuffer(queries.count * 8));
  for (let i = 0; i < queries.count; i++) {
    // Keys ascend, so that those which the band allows are neighbours.
    const position = positionAt(queries, i);
    bounds[2 * i] = countUpTo(keys, position - band.back - 1);
    bounds[2 * i + 1] = countUpTo(keys, position + band.ahead);
  }
  return { ...rectangle, bounds };
};

/** Vectors of which float32 values and largest lengths are wanted; the work is the job's. */
const measured = (
  vectors: Omit<Prepare, "kind" | "into" | "longest">,
  into: Float32Array | undefined,
): { readonly job: Prepare; readonly longest: Float32Array } => {
  const longest = sharedFloats(vectors.batch * chunksOf(vectors.tokens) * vectors.heads);
  return {
    longest,
    job: { kind: "prepare", ...vectors, longest, ...(into === undefined ? {} : { into }) },
  };
};

const sizeOf = ({ batch, heads, headDim }: Queries, tokens: number): number =>
  batch * tokens * heads * headDim;

const checkSize = (what: string, announced: number, found: number): void => {
  if (announced === found) return;
  throw new Error(`${what} of ${announced} bytes was announced, ${found} came`);
};

/** Attention on the threads of one device. */
export class CpuAttention {
  readonly #threads: Threads;

  constructor(threads: Threads) {
    this.#threads = threads;
  }

  async begin(queries: Queries): Promise<Accumulation> {
    const { batch, tokens, heads, headDim, dtype, bytes } = queries;
    const size = sizeOf(queries, tokens);
    checkSize("a shard", size * elementBytes(dtype), bytes.length);
    const q = sharedFloats(size);
    const { job, longest } = measured(
      { bytes: shared(bytes), dtype, batch, tokens, heads, headDim },
      q,
    );
    await this.#threads.run(job);
    const rows = batch * heads * tokens;
    const state: State = {
      q,
      longestQueries: longest,
      outputs: sharedFloats(size),
      tops: sharedFloats(rows),
      sums: sharedFloats(rows),
    };
    return {
      absorb: (block, tiles, band) => this.#absorb(queries, state, block, tiles, band),
      finish: () => this.#finish(queries, state),
      close: () => {}, // its memory is the garbage collector's
    };
  }

  /** K and V of a block as float32, and the jobs that make them so. */
  #keys(
    { batch, kvHeads, headDim }: Queries,
    { tokens, dtype, bytes }: KeyValues,
  ): {
    readonly keys: Keys;
    readonly longest: Float32Array;
    readonly jobs: ReadonlyArray<Prepare>;
  } {
    const size = batch * tokens * kvHeads * headDim;
    checkSize("a block", 2 * size * elementBytes(dtype), bytes.length);
    const [k, v] = [0, 1].map((i) =>
      shared(bytes).subarray(i * bytes.length / 2, (i + 1) * bytes.length / 2)
    ) as [Uint8Array, Uint8Array];
    const shape = { dtype, batch, tokens, heads: kvHeads, headDim };
    if (dtype === "f32") {
      const { job, longest } = measured({ bytes: k, ...shape }, undefined);
      return { keys: { tokens, k, v }, longest, jobs: [job] };
    }
    const [wideK, wideV] = [sharedFloats(size), sharedFloats(size)];
    const { job, longest } = measured({ bytes: k, ...shape }, wideK);
    return {
      keys: { tokens, k: bytesOf(wideK), v: bytesOf(wideV) },
      longest,
      jobs: [job, { kind: "prepare", bytes: v, ...shape, into: wideV }],
    };
  }

  async #absorb(
    queries: Queries,
    state: State,
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ): Promise<void> {
    const { keys, longest, jobs } = this.#keys(queries, block);
    await Promise.all([
      ...jobs.map((job) => this.#threads.run(job)),
      this.#threads.run({
        kind: "attend",
        shape: shapeOf(queries),
        state,
        keys,
        longestKeys: longest,
        rectangles: tiles.map(rectangleOf(band)),
      }),
    ]);
  }

  async #finish(queries: Queries, state: State): Promise<Attended> {
    await this.#threads.run({ kind: "normalise", shape: shapeOf(queries), state });
    return { o: new Float32Array(state.outputs), lse: asLse(new Float32Array(state.sums)) };
  }
}

/** Without the bytes, which a message would copy. */
const shapeOf = ({ batch, tokens, heads, kvHeads, headDim, scale }: Queries) => ({
  batch,
  tokens,
  heads,
  kvHeads,
  headDim,
  scale,
});
