import assert from "node:assert/strict";
import { Result } from "effect";
import fc from "fast-check";
import { crc32 } from "node:zlib";
import { type Address, headerBytes, openFrame, sealFrame } from "../../runtime/frame.ts";

const address: Address = {
  run: "0123456789abcdef",
  epoch: 3,
  layer: 2,
  kind: "kv",
  block: 7,
  step: 1,
  from: 4,
  to: 5,
  chunk: 0,
  chunks: 2,
};
const payload = Uint8Array.from({ length: 37 }, (_, i) => i * 5);

const rejection = (frame: Uint8Array, wanted = address, length = payload.length) => {
  const opened = openFrame(frame, wanted, length);
  return Result.isFailure(opened) ? opened.failure : assert.fail("a bad frame was taken");
};

Deno.test("openFrame() gives the payload of the frame that sealFrame() made", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(9), (bytes, chunk) => {
    const there = { ...address, chunk, chunks: chunk + 1 };
    const opened = Result.getOrThrow(openFrame(sealFrame(there, bytes), there, bytes.length));
    assert.deepEqual(opened, bytes);
  }));
});

Deno.test("openFrame() names the field in which a frame is not the expected one", () => {
  const differing: ReadonlyArray<readonly [string, Partial<Address>]> = [
    ["run", { run: "fedcba9876543210" }],
    ["epoch", { epoch: 2 }],
    ["layer", { layer: 0 }],
    ["kind", { kind: "q" }],
    ["block", { block: 6 }],
    ["step", { step: 2 }],
    ["chunk", { chunk: 1 }],
    ["number of chunks", { chunks: 3 }],
    ["sender", { from: 3 }],
    ["sender", { from: "driver" }],
    ["receiver", { to: 6 }],
  ];
  for (const [field, change] of differing) {
    const error = rejection(sealFrame({ ...address, ...change }, payload));
    assert.equal(error.field, field);
    assert.match(
      error.message,
      /^Cannot take a frame of kv 7, chunk 1 of 2 from rank 4 in run 0123/,
    );
  }
  assert.equal(rejection(sealFrame(address, payload), address, 36).field, "payload length");
});

Deno.test("openFrame() takes no frame with a flipped bit, wherever it is", () => {
  const frame = sealFrame(address, payload);
  for (let bit = 0; bit < frame.length * 8; bit++) {
    const damaged = new Uint8Array(frame);
    damaged[bit >> 3]! ^= 1 << (bit & 7);
    rejection(damaged);
  }
});

Deno.test("openFrame() takes no frame that is cut short or has a tail", () => {
  const frame = sealFrame(address, payload);
  for (let length = 0; length < frame.length; length++) rejection(frame.subarray(0, length));
  const longer = new Uint8Array(frame.length + 1);
  longer.set(frame);
  assert.equal(rejection(longer).field, "payload length");
});

Deno.test("openFrame() refuses another version of the wire format by its number", () => {
  const frame = sealFrame(address, payload);
  const view = new DataView(frame.buffer);
  view.setUint16(4, 2, true);
  view.setUint32(60, crc32(frame.subarray(0, 60)), true);
  assert.match(rejection(frame).message, /its version must be 1: found 2/);
});

Deno.test("openFrame() works on a frame at any offset of a buffer", () => {
  const frame = sealFrame(address, payload);
  const shifted = new Uint8Array(frame.length + 3).subarray(3);
  shifted.set(frame);
  assert.deepEqual(Result.getOrThrow(openFrame(shifted, address, payload.length)), payload);
  assert.equal(frame.length, headerBytes + payload.length);
});
