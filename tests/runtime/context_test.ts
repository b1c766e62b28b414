import assert from "node:assert/strict";
import { longestContext, rowsOn } from "../../runtime/context.ts";
import type { DType } from "../../runtime/dtype.ts";
import type { Model } from "../../runtime/model.ts";

const sized = (dtype: DType): Model =>
  ({
    ...{ layers: 2, vocabulary: 5000, heads: 4, kvHeads: 2, headDim: 8 },
    weights: [
      { name: "embed", rows: 5000, columns: 32, dtype },
      { name: "up", rows: 96, columns: 32, dtype },
    ],
  }) as Partial<Model> as Model;

Deno.test("a turn has more tokens on GPUs, and no more than a device can hold a matrix of", () => {
  const model = sized("f32");
  const gpu = { software: false, largestTensor: 2 ** 31 };
  const other = { software: true, largestTensor: 2 ** 31 };
  assert.equal(rowsOn(model, [gpu, gpu]), 8192);
  assert.equal(rowsOn(model, [gpu, other]), 2048);
  // The widest matrix has 96 columns of 4 bytes: the vocabulary's has rows for those alone that were asked for.
  assert.equal(rowsOn(model, [gpu, { ...gpu, largestTensor: 96 * 4 * 100 + 383 }]), 100);
  assert.equal(rowsOn(model, [{ ...other, largestTensor: 1 }]), 1);
});

Deno.test("the longest context is what weights, as they are held, and activations leave", () => {
  const fixed = 4 * 8 * 100 * 96;
  const weights = 5096 * 32;
  const perToken = 2 * 2 * 2 * 8 * 4;
  const placing = { ring: 3, cache: "f32", rows: 100, together: false } as const;
  for (const [dtype, bytes] of [["f32", 4], ["bf16", 2]] as const) {
    const memory = fixed + bytes * weights + 7 * perToken;
    const at = (memory: number, together = false) =>
      longestContext({ ...placing, together, memory, model: sized(dtype) });
    assert.deepEqual([at(memory), at(memory - 1), at(1)], [21, 18, 0]);
    // One process holds the weights once.
    assert.equal(at(fixed + bytes * weights / 3 + perToken, true), 3);
  }
});
