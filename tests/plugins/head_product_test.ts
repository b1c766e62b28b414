/** Products of a device are those of plain loops, wherever their vectors lie. */
import fc from "fast-check";
import assert from "node:assert/strict";
import { openCpu } from "../../plugins/cpu/open.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { openWebgpu } from "../../plugins/webgpu/open.ts";
import { Gpu } from "../../plugins/webgpu/gpu.ts";
import { HeadProducts } from "../../plugins/webgpu/head_product.ts";
import code from "../../kernels/head_product.wgsl" with { type: "text" };
import { type HeadProduct, headProduct } from "../../runtime/head_product.ts";
import { findLibrary } from "../../runtime/library.ts";
import { normals } from "../support/random.ts";

const shared = (values: Float32Array): Float32Array => {
  const copy = new Float32Array(new SharedArrayBuffer(values.byteLength));
  copy.set(values);
  return copy;
};

/** A product whose vectors lie somewhere, with room between them. */
const anyProduct = fc.record({
  rows: fc.integer({ min: 1, max: 70 }),
  heads: fc.integer({ min: 1, max: 5 }),
  inner: fc.integer({ min: 1, max: 300 }),
  columns: fc.integer({ min: 1, max: 70 }),
  gap: fc.integer({ min: 0, max: 3 }),
  turned: fc.boolean(),
  common: fc.boolean(),
  seed: fc.nat(),
}).map(({ rows, heads, inner, columns, gap, turned, common, seed }): HeadProduct => {
  const vectors = (width: number, heads: number, seed: number) => {
    const [head, row] = [width + gap, heads * (width + gap) + gap];
    return { values: shared(normals(seed, gap + rows * row)), first: gap, row, head };
  };
  const [long, count] = turned ? [columns, inner] : [inner, columns];
  return {
    ...{ rows, heads, inner, columns },
    from: common ? { ...vectors(inner, 1, seed), head: 0 } : vectors(inner, heads, seed),
    matrix: {
      values: shared(normals(seed + 1, gap + heads * count * (long + gap))),
      first: gap,
      row: long + gap,
      head: count * (long + gap),
      turned,
    },
    into: vectors(columns, heads, seed + 2),
  };
});

const assertSame = async (
  product: HeadProduct,
  compute: (product: HeadProduct) => Promise<void>,
): Promise<void> => {
  const wanted = product.into.values.slice();
  headProduct({ ...product, into: { ...product.into, values: wanted } });
  await compute(product);
  // What lies between the vectors is as it was.
  product.into.values.forEach((x, i) => {
    const bound = 2e-6 * Math.sqrt(product.inner) * Math.max(1, Math.abs(wanted[i]!));
    assert.ok(Math.abs(x - wanted[i]!) <= bound, `element ${i} is ${x}, not ${wanted[i]}`);
  });
};

const noLibrary = findLibrary(libraryName) === undefined;
const noAdapter = await findAdapter() === undefined;

Deno.test({
  name: "cpu: products are those of plain loops" +
    (noLibrary ? ` (not here: no ${libraryName})` : ""),
  ignore: noLibrary,
  fn: async () => {
    const kernel = await openCpu();
    await fc.assert(
      fc.asyncProperty(anyProduct, (product) => assertSame(product, kernel.product!)),
      { numRuns: 60 },
    );
    kernel.close();
  },
});

Deno.test({
  name: "webgpu: products are those of plain loops" + (noAdapter ? " (not here: no adapter)" : ""),
  ignore: noAdapter,
  fn: async () => {
    const kernel = await openWebgpu();
    await fc.assert(
      fc.asyncProperty(anyProduct, (product) => assertSame(product, kernel.product!)),
      { numRuns: 40 },
    );
    await kernel.close!();
  },
});

Deno.test({
  name: "webgpu: products that exceed a buffer are made in pieces" +
    (noAdapter ? " (not here: no adapter)" : ""),
  ignore: noAdapter,
  fn: async () => {
    const device = await (await findAdapter())!.requestDevice();
    const gpu = new Gpu(device);
    const pieces = fc.asyncProperty(anyProduct, fc.integer({ min: 1, max: 3 }), (product, n) => {
      const { from, matrix, into } = product;
      // Room for a few rows, or heads.
      const most = Math.max(
        from.first + from.row,
        into.first + into.row,
        matrix.first + matrix.head,
      );
      const products = new HeadProducts(gpu, 4 * n * most);
      return assertSame(product, (product) => products.compute(product));
    });
    await fc.assert(pieces, { numRuns: 15 });
    await gpu.close();
  },
});

Deno.test({
  name: "webgpu: a wrong program of products is refused, and one too large for a buffer" +
    (noAdapter ? " (not here: no adapter)" : ""),
  ignore: noAdapter,
  fn: async () => {
    const device = await (await findAdapter())!.requestDevice();
    const gpu = new Gpu(device);
    const [product] = fc.sample(anyProduct, 1) as [HeadProduct];
    const faults = [["all += sum", "all = sum"], ["i * task.along", "i"], [
      "at.z * task.matrixHead",
      "0u",
    ]];
    for (const [right, wrong] of faults) {
      assert.ok(code.includes(right!));
      const products = new HeadProducts(gpu, 2 ** 27, code.replace(right!, wrong!));
      await assert.rejects(products.compute(product), /computes wrong results: component \d+ of a/);
    }
    const { from, matrix, into } = product;
    const most = Math.max(from.row, into.row, matrix.head);
    const small = new HeadProducts(gpu, 4 * most - 1);
    await assert.rejects(small.compute(product), /a product has \d+ bytes, and a buffer at most/);
    await gpu.close();
  },
});
