import assert from "node:assert/strict";
import { SpareBuffers } from "../../../plugins/webgpu/spare_buffers.ts";

/** A device that makes nothing but notes what it was asked for. */
const recording = () => {
  const destroyed: Array<GPUBuffer> = [];
  const createBuffer = ({ label, size, usage }: GPUBufferDescriptor): GPUBuffer => {
    const buffer = { label, size, usage, destroy: () => void destroyed.push(buffer) } as GPUBuffer;
    return buffer;
  };
  return { device: { createBuffer } as unknown as GPUDevice, destroyed };
};

Deno.test("a buffer that came back is lent again, to one user at a time", () => {
  const { device } = recording();
  const spare = new SpareBuffers(device);
  const first = spare.take("outputs", 16, 1);
  spare.give(first);
  assert.equal(spare.take("outputs", 16, 1), first);
  assert.notEqual(spare.take("outputs", 16, 1), first);
});

Deno.test("a buffer of another size, label or usage is not taken, and does not stay", () => {
  const others: ReadonlyArray<[string, number, number]> = [
    ["outputs", 32, 1],
    ["queries", 16, 1],
    ["outputs", 16, 3],
  ];
  for (const wanted of others) {
    const { device, destroyed } = recording();
    const spare = new SpareBuffers(device);
    const first = spare.take("outputs", 16, 1);
    spare.give(first);
    assert.notEqual(spare.take(...wanted), first);
    assert.deepEqual(destroyed, [first]);
  }
});
