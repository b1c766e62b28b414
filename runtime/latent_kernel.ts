/**
 * Latent attention on a kernel that knows keys and values alone: blocks are expanded before it absorbs them, or queries
 * are before it begins, and its result is afterwards.
 *
 * @module
 */
import { bytesOf, decode } from "./dtype.ts";
import { type HeadProduct, headProduct } from "./head_product.ts";
import type { Accumulation, Attended, AttentionKernel, KeyValues, Queries } from "./kernel.ts";
import { type Latent, upRowsOf, widthOf } from "./latent.ts";

/** All zero, in memory that threads of a device can share. */
const zeros = (count: number): Float32Array => new Float32Array(new SharedArrayBuffer(4 * count));

/** Copies `count` components of each vector, to where they belong in others. */
const copyParts = (
  rows: number,
  count: number,
  from: Float32Array,
  at: (row: number) => number,
  into: Float32Array,
  to: (row: number) => number,
): void => {
  for (let row = 0; row < rows; row++) {
    const begin = at(row);
    into.set(from.subarray(begin, begin + count), to(row));
  }
};

type Product = (product: HeadProduct) => void | Promise<void>;

/** Where W_K and W_V lie in `up`. */
const matricesOf = (queries: Queries, latent: Latent) => {
  const { headDim } = queries;
  const { up, rank, rope } = latent;
  const shape = { values: up, row: rank, head: upRowsOf(latent, queries) * rank };
  return { ofKeys: { ...shape, first: 0 }, ofValues: { ...shape, first: (headDim - rope) * rank } };
};

/** The components of o that a value has. */
const trimmed = ({ o, lse }: Attended, headDim: number, { value }: Latent): Attended => {
  const rows = o.length / headDim;
  const values = new Float32Array(rows * value);
  copyParts(rows, value, o, (row) => row * headDim, values, (row) => row * value);
  return { o: values, lse };
};

/** What a form does to queries, blocks and the result. */
interface Form {
  readonly queries: () => Promise<Queries>;
  /** `done` is called when the block is not needed any more. */
  readonly block: (
    block: KeyValues,
  ) => Promise<{ readonly block: KeyValues; readonly done: () => void }>;
  readonly result: (attended: Attended) => Promise<Attended>;
}

/** The kernel expands latents itself. */
const expandedThere = (queries: Queries, latent: Latent): Form => ({
  queries: () => Promise.resolve(queries),
  block: (block) => Promise.resolve({ block, done: () => {} }),
  result: (attended) => Promise.resolve(trimmed(attended, queries.headDim, latent)),
});

/** K and V of all heads, of a value's components those that there are; the rest is 0 and stays so in o. */
const expanding = (product: Product, queries: Queries, latent: Latent): Form => {
  const { batch, heads, headDim } = queries;
  const { rank, rope, value } = latent;
  const { ofKeys, ofValues } = matricesOf(queries, latent);
  const width = heads * headDim;
  const spare: Array<Float32Array> = [];
  const expanded = async (block: KeyValues): Promise<Float32Array> => {
    const rows = batch * block.tokens;
    const size = rows * width;
    const there = spare.findIndex(({ length }) => length === 2 * size);
    // Components beyond a value's were 0 from the begin.
    const both = there < 0 ? zeros(2 * size) : spare.splice(there, 1)[0]!;
    const decoded = zeros(rows * widthOf(latent));
    decoded.set(decode(block.dtype, block.bytes));
    const from = { values: decoded, first: 0, row: widthOf(latent), head: 0 };
    const into = { values: both, row: width, head: headDim };
    const common = { rows, heads, inner: rank, from };
    await product({
      ...common,
      columns: headDim - rope,
      matrix: { ...ofKeys, turned: false },
      into: { ...into, first: 0 },
    });
    await product({
      ...common,
      columns: value,
      matrix: { ...ofValues, turned: false },
      into: { ...into, first: size },
    });
    copyParts(
      rows * heads,
      rope,
      decoded,
      (row) => Math.floor(row / heads) * widthOf(latent) + rank,
      both,
      (row) => (row + 1) * headDim - rope,
    );
    return both;
  };
  return {
    queries: () => Promise.resolve(queries),
    block: async (block: KeyValues) => {
      const both = await expanded(block);
      return {
        block: { tokens: block.tokens, dtype: "f32", bytes: bytesOf(both) } as const,
        done: () => void spare.push(both),
      };
    },
    result: (attended) => Promise.resolve(trimmed(attended, headDim, latent)),
  };
};

/** One key for all heads, which is the value as well; what of o comes from its rope part counts for nothing. */
const absorbing = (product: Product, queries: Queries, latent: Latent): Form => {
  const { batch, tokens, heads, headDim } = queries;
  const { rank, rope, value } = latent;
  const { ofKeys, ofValues } = matricesOf(queries, latent);
  const [rows, width, nope] = [batch * tokens, widthOf(latent), headDim - rope];
  return {
    queries: async (): Promise<Queries> => {
      const q = zeros(rows * heads * headDim);
      q.set(decode(queries.dtype, queries.bytes));
      const wide = zeros(rows * heads * width);
      await product({
        ...{ rows, heads, inner: nope, columns: rank },
        from: { values: q, first: 0, row: heads * headDim, head: headDim },
        matrix: { ...ofKeys, turned: true },
        into: { values: wide, first: 0, row: heads * width, head: width },
      });
      copyParts(
        rows * heads,
        rope,
        q,
        (row) => row * headDim + nope,
        wide,
        (row) => row * width + rank,
      );
      return { ...queries, dtype: "f32", kvHeads: 1, headDim: width, bytes: bytesOf(wide) };
    },
    block: ({ bytes, ...block }: KeyValues) => {
      const both = new Uint8Array(new SharedArrayBuffer(2 * bytes.length));
      both.set(bytes);
      both.set(bytes, bytes.length);
      return Promise.resolve({ block: { ...block, bytes: both }, done: () => {} });
    },
    result: async ({ o, lse }: Attended): Promise<Attended> => {
      const gathered = zeros(o.length);
      gathered.set(o);
      const values = zeros(rows * heads * value);
      await product({
        ...{ rows, heads, inner: rank, columns: value },
        from: { values: gathered, first: 0, row: heads * width, head: width },
        matrix: { ...ofValues, turned: false },
        into: { values, first: 0, row: heads * value, head: value },
      });
      return { o: values.slice(), lse };
    },
  };
};

/** Begins with queries whose keys and values travel as latents. */
const beginLatent = async (
  kernel: AttentionKernel,
  queries: Queries,
  latent: Latent,
): Promise<Accumulation> => {
  const product: Product = kernel.product ?? headProduct;
  const { latent: _, ...plain } = queries;
  const form = latent.form === "absorb"
    ? absorbing(product, plain, latent)
    : kernel.expandsLatents === true
    ? expandedThere(queries, latent)
    : expanding(product, plain, latent);
  const begun = await kernel.begin(await form.queries());
  // Blocks go to the kernel in the order in which they came.
  let issued: Promise<unknown> = Promise.resolve();
  return {
    absorb: async (block, tiles, band) => {
      const mine = issued.then(async () => {
        const made = await form.block(block);
        return { over: Promise.resolve(begun.absorb(made.block, tiles, band)), done: made.done };
      });
      issued = mine;
      const { over, done } = await mine;
      await over;
      done();
    },
    finish: async () => await form.result(await begun.finish()),
    close: begun.close,
  };
};

/** The kernel, which can do latent attention as well. */
export const withLatents = (kernel: AttentionKernel): AttentionKernel => {
  const others: Partial<AttentionKernel> = Object.fromEntries(
    (["beginBackward", "product", "linear", "programs", "close"] as const).flatMap((name) => {
      // Methods of a class are none of its object's own properties.
      const method: unknown = kernel[name]?.bind(kernel);
      return method === undefined ? [] : [[name, method]];
    }),
  );
  return {
    ...others,
    info: kernel.info,
    ...(kernel.expandsLatents === true ? { expandsLatents: true } : {}),
    begin: (queries) =>
      queries.latent === undefined
        ? kernel.begin(queries)
        : beginLatent(kernel, queries, queries.latent),
  };
};
