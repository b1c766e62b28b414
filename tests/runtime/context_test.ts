import assert from "node:assert/strict";
import { contextRefusal, longestContext, type Placing, turnLimits } from "../../runtime/context.ts";
import type { DType } from "../../runtime/dtype.ts";
import type { DeviceInfo } from "../../runtime/kernel.ts";
import type { Model } from "../../runtime/model.ts";

const sized = (dtype: DType): Model =>
  ({
    ...{ layers: 2, vocabulary: 5000, heads: 4, kvHeads: 2, headDim: 8, widest: 95 },
    weights: [
      { name: "embed", rows: 5000, columns: 32, dtype },
      { name: "up", rows: 95, columns: 32, dtype },
    ],
  }) as Partial<Model> as Model;

const gpu = { software: false, largestTensor: 2 ** 31 } as DeviceInfo;
const other = { ...gpu, software: true };

const placed = (devices: ReadonlyArray<DeviceInfo>, changes: Partial<Placing> = {}): Placing => ({
  ...{ model: sized("f32"), ring: 3, cache: "f32" },
  equipment: { devices, memory: () => 2 ** 40, together: false },
  ...changes,
});

Deno.test("a turn has more tokens on GPUs, and no more than a device or a quarter of the memory holds", () => {
  const rowsOn = (devices: ReadonlyArray<DeviceInfo>, memory = 2 ** 40) =>
    turnLimits(placed(devices, { memory })).rowsAtOnce;
  assert.deepEqual([rowsOn([gpu, gpu]), rowsOn([gpu, other]), rowsOn([])], [8192, 2048, 2048]);
  // A row of 95 columns takes 96: the last vector is whole.
  assert.equal(rowsOn([gpu, { ...gpu, largestTensor: 96 * 4 * 100 + 383 }]), 100);
  assert.equal(rowsOn([{ ...other, largestTensor: 1 }]), 1);
  const weights = 4 * 5095 * 32;
  assert.equal(rowsOn([gpu], weights + 4 * 8 * 96 * 4 * 1000), 1000);
  // Not so few that reading takes for ever; but then there may be no room at all.
  assert.equal(rowsOn([gpu], 0), 64);
});

Deno.test("a turn gives no more logits than a device or a message should hold", () => {
  const logitsOn = (device: DeviceInfo) => turnLimits(placed([device])).logitsAtOnce;
  assert.equal(logitsOn(gpu), Math.floor(2 ** 26 / 20_000));
  assert.equal(logitsOn({ ...gpu, largestTensor: 3 * 20_000 + 1 }), 3);
  assert.equal(logitsOn({ ...gpu, largestTensor: 1 }), 1);
  // 5 logits take 8.
  const model = { ...sized("f32"), vocabulary: 5 };
  const small = placed([{ ...gpu, largestTensor: 100 }], { model });
  assert.equal(turnLimits(small).logitsAtOnce, 3);
});

Deno.test("the longest context is what weights, as they are held, and activations leave", () => {
  // 100 rows are what the device can hold.
  const devices = [{ ...gpu, largestTensor: 4 * 96 * 100 }];
  const fixed = 4 * 8 * 100 * 96;
  const perToken = 2 * 2 * 2 * 8 * 4;
  for (const [dtype, bytes] of [["f32", 4], ["bf16", 2]] as const) {
    const weights = bytes * 5095 * 32;
    const at = (memory: number, together = false) =>
      longestContext(placed(devices, {
        model: sized(dtype),
        equipment: { devices, memory: () => memory, together },
      }));
    const memory = fixed + weights + 30_000 * perToken;
    assert.deepEqual([at(memory), at(memory - 1)], [90_000, 89_997]);
    // One process holds the weights once.
    assert.equal(at(fixed + weights / 3 + 30_000 * perToken, true), 90_000);
  }
  assert.equal(longestContext(placed([gpu], { memory: Infinity })), Infinity);
});

Deno.test("what has no room is refused, with what would help", () => {
  const none = contextRefusal(placed([gpu], { memory: 1000, ring: 1 }), 1);
  assert.match(
    none!.message,
    /^Cannot place the run: it needs \d+ bytes for weights and activations, /,
  );
  assert.match(
    none!.message,
    /and more .*: found 1000; no text is short enough: use machines with/,
  );
  const placing = placed([gpu], { memory: 2 ** 24 });
  const longest = longestContext(placing);
  assert.ok(longest > 0);
  assert.equal(contextRefusal(placing, longest), undefined);
  assert.match(
    contextRefusal(placing, longest + 1)!.message,
    RegExp(`tokens on each of 3 ranks: found ${2 ** 24}; ${longest} tokens would fit`),
  );
});
