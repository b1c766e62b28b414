/**
 * Attention by threads of this machine: memory and jobs, in the order in which they come.
 *
 * @module
 */
import { specOf } from "../../runtime/attention_spec.ts";
import { bytesOf } from "../../runtime/dtype.ts";
import type { HeadProduct } from "../../runtime/head_product.ts";
import type {
  Accumulation,
  Attended,
  BackwardPass,
  KeyValues,
  Outcome,
  Queries,
  Tile,
} from "../../runtime/kernel.ts";
import type { Linear } from "../../runtime/linear.ts";
import { asLse } from "../../runtime/lse.ts";
import type { Band } from "../../runtime/mask.ts";
import { countUpTo, positionAt } from "../../runtime/span.ts";
import {
  chunksOf,
  type Keys,
  type Prepare,
  rangesOf,
  type Rectangle,
  sharedFloats,
  type Slopes,
  type State,
} from "./job.ts";
import { copyOf, Memory } from "./memory.ts";
import { sightOf } from "./sight.ts";
import { keysAtOnce, rowsAtOnce } from "./softmax.ts";
import type { Threads } from "./threads.ts";

/** Bytes in shared memory: the same where they are already. */
const shared = (bytes: Uint8Array): Uint8Array => {
  if (bytes.buffer instanceof SharedArrayBuffer) return bytes;
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.length));
  copy.set(bytes);
  return copy;
};

/** A tile of the plan, with what each row sees of it. */
const rectangleOf = (band: Band) => (tile: Tile): Rectangle => {
  const { row, queries, column, keys, full, pairwise = false } = tile;
  const [rows, columns] = [queries.count, keys.count];
  const rectangle = { row, rows, column, columns, queries, keys, pairwise };
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

/** `turns` of a job: which ranges of keys see which chunks of rows, and in which order they add to dq. */
const turnsOf = (
  rectangles: ReadonlyArray<Rectangle>,
  tokens: number,
  keys: number,
): Int32Array => {
  const [chunks, ranges] = [chunksOf(tokens), rangesOf(keys)];
  const turns = new Int32Array(new SharedArrayBuffer(chunks * ranges * 4)).fill(-1);
  for (let index = 0; index < chunks; index++) {
    const seen = rectangles.flatMap((rectangle) => {
      const sight = sightOf(rectangle, index * rowsAtOnce, (index + 1) * rowsAtOnce);
      if (sight === undefined) return [];
      return [[rectangle.column + sight.first, rectangle.column + sight.end] as const];
    });
    let turn = 0;
    for (let range = 0; range < ranges; range++) {
      const [from, to] = [range * keysAtOnce, (range + 1) * keysAtOnce];
      if (!seen.some(([first, end]) => first < to && end > from)) continue;
      turns[index * ranges + range] = turn++;
    }
  }
  return turns;
};

/** Where the largest squared lengths of the vectors of a [batch, tokens, heads, headDim] tensor go. */
const lengthsFor = (batch: number, tokens: number, heads: number): Float32Array =>
  sharedFloats(batch * chunksOf(tokens) * heads);

const sizeOf = ({ batch, heads, headDim }: Queries, tokens: number): number =>
  batch * tokens * heads * headDim;

/** Without the bytes, which a message would copy. */
const shapeOf = ({ batch, tokens, heads, kvHeads, headDim, scale }: Queries) => ({
  batch,
  tokens,
  heads,
  kvHeads,
  headDim,
  scale,
});

/** Attention on the threads of one device. */
export class CpuAttention {
  readonly #threads: Threads;
  readonly #memory = new Memory();
  /** K and V of a 16-bit block as float32, for one block after the other: jobs are done in order. */
  readonly #wide = [sharedFloats(0), sharedFloats(0)];

  constructor(threads: Threads) {
    this.#threads = threads;
  }

  async begin(queries: Queries): Promise<Accumulation> {
    const { batch, tokens, heads, headDim, dtype, bytes } = queries;
    const size = sizeOf(queries, tokens);
    const rows = batch * heads * tokens;
    const loan = this.#memory.lend();
    const state: State = {
      q: loan.take(size),
      longestQueries: lengthsFor(batch, tokens, heads),
      outputs: loan.take(size),
      tops: loan.take(rows),
      sums: loan.take(rows),
    };
    await loan.within(this.#threads.run({
      kind: "prepare",
      bytes: shared(bytes),
      dtype,
      ...{ batch, tokens, heads, headDim },
      into: state.q,
      longest: state.longestQueries,
    }));
    const attention = this.#learn(queries);
    return {
      absorb: (block, tiles, band) =>
        loan.within(this.#absorb(queries, state, block, tiles, band, attention)),
      finish: () => loan.within(this.#finish(queries, state)),
      close: () => {
        loan.end();
        this.#forget(attention);
      },
    };
  }

  /** What latents need; the arrays lie in shared memory. */
  async product(product: HeadProduct): Promise<void> {
    await this.#threads.run({ kind: "project", product });
  }

  /** What decoders need; the arrays lie in shared memory. */
  async linear(linear: Linear): Promise<void> {
    await this.#threads.run({ kind: "multiply", linear });
  }

  #learn({ attention }: Queries): number | undefined {
    if (attention === undefined) return undefined;
    return this.#threads.learn(specOf(attention));
  }

  #forget(attention: number | undefined): void {
    if (attention !== undefined) this.#threads.forget(attention);
  }

  /** K and V of a block as float32, and the jobs that make them so; these note the longest keys where there is room. */
  #keys(
    { batch, kvHeads, headDim }: Queries,
    { tokens, dtype, bytes }: KeyValues,
    longest?: Float32Array,
  ): { readonly keys: Keys; readonly jobs: ReadonlyArray<Prepare> } {
    const size = batch * tokens * kvHeads * headDim;
    const both = shared(bytes);
    const [k, v] = [both.subarray(0, both.length / 2), both.subarray(both.length / 2)];
    const shape = { kind: "prepare", dtype, batch, tokens, heads: kvHeads, headDim } as const;
    const measure = longest === undefined ? {} : { longest };
    if (dtype === "f32") {
      const jobs = longest === undefined ? [] : [{ ...shape, bytes: k, ...measure }];
      return { keys: { tokens, k, v }, jobs };
    }
    const [wideK, wideV] = [this.#wideOf(0, size), this.#wideOf(1, size)];
    return {
      keys: { tokens, k: bytesOf(wideK), v: bytesOf(wideV) },
      jobs: [
        { ...shape, bytes: k, into: wideK, ...measure },
        { ...shape, bytes: v, into: wideV },
      ],
    };
  }

  #wideOf(which: 0 | 1, size: number): Float32Array {
    if (this.#wide[which]!.length < size) this.#wide[which] = sharedFloats(size);
    return this.#wide[which]!.subarray(0, size);
  }

  async #absorb(
    queries: Queries,
    state: State,
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
    attention: number | undefined,
  ): Promise<void> {
    const rectangles = tiles.map(rectangleOf(band));
    const longest = lengthsFor(queries.batch, block.tokens, queries.kvHeads);
    const { keys, jobs } = this.#keys(queries, block, longest);
    await Promise.all([
      ...jobs.map((job) => this.#threads.run(job)),
      this.#threads.run({
        kind: "attend",
        ...(attention === undefined ? {} : { attention }),
        shape: shapeOf(queries),
        state,
        keys,
        longestKeys: longest,
        rectangles,
      }),
    ]);
  }

  async #finish(queries: Queries, state: State): Promise<Attended> {
    await this.#threads.run({ kind: "normalise", shape: shapeOf(queries), state });
    return { o: copyOf(state.outputs), lse: asLse(copyOf(state.sums)) };
  }

  async beginBackward(queries: Queries, outcome: Outcome): Promise<BackwardPass> {
    const { batch, tokens, heads, headDim, dtype, bytes } = queries;
    const size = sizeOf(queries, tokens);
    const loan = this.#memory.lend();
    const slopes: Slopes = {
      q: loan.take(size),
      cotangent: loan.take(size),
      lse: loan.take(batch * heads * tokens),
      d: loan.take(batch * heads * tokens),
      dq: loan.take(size),
    };
    slopes.lse.set(outcome.lse);
    slopes.cotangent.set(outcome.cotangent);
    const o = loan.take(size);
    o.set(outcome.o);
    await loan.within(Promise.all([
      this.#threads.run({
        kind: "prepare",
        bytes: shared(bytes),
        dtype,
        ...{ batch, tokens, heads, headDim },
        into: slopes.q,
      }),
      this.#threads.run({ kind: "delta", shape: shapeOf(queries), o, slopes }),
    ]));
    const attention = this.#learn(queries);
    return {
      absorb: (block, tiles, band) =>
        loan.within(this.#absorbBackward(queries, slopes, block, tiles, band, attention)),
      finish: () => copyOf(slopes.dq),
      close: () => {
        loan.end();
        this.#forget(attention);
      },
    };
  }

  async #absorbBackward(
    queries: Queries,
    slopes: Slopes,
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
    attention: number | undefined,
  ): Promise<Float32Array> {
    const { batch, tokens, heads, kvHeads, headDim } = queries;
    const { keys, jobs } = this.#keys(queries, block);
    const loan = this.#memory.lend();
    const gradients = loan.take(2 * batch * block.tokens * kvHeads * headDim);
    const rectangles = tiles.map(rectangleOf(band));
    await loan.within(Promise.all([
      ...jobs.map((job) => this.#threads.run(job)),
      this.#threads.run({
        kind: "differentiate",
        ...(attention === undefined ? {} : { attention }),
        shape: shapeOf(queries),
        slopes,
        keys,
        gradients,
        rectangles,
        turns: turnsOf(rectangles, tokens, block.tokens),
        added: new Int32Array(new SharedArrayBuffer(batch * heads * chunksOf(tokens) * 4)),
      }),
    ]));
    const given = copyOf(gradients);
    loan.end();
    return given;
  }
}
