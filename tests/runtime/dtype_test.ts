import fc from "fast-check";
import assert from "node:assert/strict";
import {
  decode,
  type DType,
  dtypes,
  elementBytes,
  encode,
  firstNonFinite,
} from "../../runtime/dtype.ts";

/** Every float32 value: the interesting ones appear by their bits. */
const bits = fc.oneof(fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.constantFrom(0, 0x80000000));
const single = bits.map((word) => new Float32Array(Uint32Array.of(word).buffer)[0]!);

/** The value of bfloat16 `pattern`, by its definition. */
const ofBf16 = (pattern: number): number => {
  const sign = pattern & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [pattern >> 7 & 0xff, pattern & 0x7f];
  if (exponent === 0xff) return fraction === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * fraction * 2 ** -133;
  return sign * (1 + fraction / 128) * 2 ** (exponent - 127);
};

const bf16Pattern = (x: number): number => {
  const [low, high] = encode("bf16", Float32Array.of(x));
  return low! | high! << 8;
};

Deno.test("decode() reads little-endian elements as DataView does", () => {
  fc.assert(fc.property(fc.uint8Array({ minLength: 4, maxLength: 64 }), (raw) => {
    const bytes = raw.subarray(0, raw.length & ~3);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const read: Record<DType, (i: number) => number> = {
      f32: (i) => view.getFloat32(i * 4, true),
      f16: (i) => view.getFloat16(i * 2, true),
      bf16: (i) => ofBf16(view.getUint16(i * 2, true)),
    };
    for (const dtype of dtypes) {
      const count = bytes.length / elementBytes(dtype);
      assert.deepEqual(
        [...decode(dtype, bytes)],
        Array.from({ length: count }, (_, i) => read[dtype](i)),
      );
    }
  }));
});

Deno.test("decode() takes bytes at any offset, shared or not, and copies them", () => {
  for (const dtype of dtypes) {
    const values = Float32Array.of(1, -2.5, 0.375);
    const encoded = encode(dtype, values);
    for (const buffer of [new ArrayBuffer(32), new SharedArrayBuffer(32)]) {
      const bytes = new Uint8Array(buffer, 3, encoded.length);
      bytes.set(encoded);
      const decoded = decode(dtype, bytes);
      bytes.fill(0xff);
      assert.deepEqual(decoded, values);
    }
  }
});

Deno.test("encode() and decode() keep every value that the format has", () => {
  for (const dtype of ["f16", "bf16"] as const) {
    const all = new Uint8Array(Uint16Array.from({ length: 2 ** 16 }, (_, i) => i).buffer);
    const values = decode(dtype, all);
    const again = decode(dtype, encode(dtype, values));
    for (let i = 0; i < values.length; i++) {
      assert.ok(Object.is(again[i], values[i]), `${dtype} ${i}`);
    }
  }
  fc.assert(fc.property(single, (x) => {
    assert.ok(Object.is(decode("f32", encode("f32", Float32Array.of(x)))[0], x));
  }));
});

Deno.test("encode() rounds to the nearest bfloat16, and ties to the even one", () => {
  fc.assert(
    fc.property(single.filter(Number.isFinite), (x) => {
      const pattern = bf16Pattern(x);
      const magnitude = pattern & 0x7fff;
      // Beyond the largest finite value, 2¹²⁸ stands in for infinity, as IEEE 754 has it.
      const value = (m: number) => m >= 0x7f80 ? 2 ** 128 : ofBf16(m);
      const error = Math.abs(value(magnitude) - Math.abs(x));
      for (const other of [magnitude - 1, magnitude + 1]) {
        if (other < 0 || other > 0x7f80) continue;
        const distance = Math.abs(value(other) - Math.abs(x));
        assert.ok(error < distance || error === distance && magnitude % 2 === 0);
      }
      assert.equal(pattern >> 15, Object.is(Math.sign(x), -0) || x < 0 ? 1 : 0);
    }),
    { numRuns: 2000 },
  );
  assert.equal(bf16Pattern(1 + 2 ** -8), 0x3f80);
  assert.equal(bf16Pattern(1 + 3 * 2 ** -8), 0x3f82);
});

Deno.test("encode() keeps what is no number, and makes infinities of overflows", () => {
  for (const dtype of dtypes) {
    const values = Float32Array.of(NaN, Infinity, -Infinity, -0);
    assert.deepEqual(decode(dtype, encode(dtype, values)), values);
  }
  // The bits of these NaNs would carry into the sign, or leave an infinity.
  for (const word of [0x7fffffff, 0xffffffff, 0x7f800001]) {
    const nan = new Float32Array(Uint32Array.of(word).buffer);
    assert.ok(Number.isNaN(decode("bf16", encode("bf16", nan))[0]));
  }
  assert.equal(decode("bf16", encode("bf16", Float32Array.of(3.4028234e38)))[0], Infinity);
  assert.equal(decode("f16", encode("f16", Float32Array.of(65520)))[0], Infinity);
  assert.equal(decode("f16", encode("f16", Float32Array.of(-65519)))[0], -65504);
});

Deno.test("firstNonFinite() finds the first NaN or infinity", () => {
  const finite = fc.double({ min: -1000, max: 1000, noNaN: true });
  const value = fc.oneof(
    { weight: 9, arbitrary: finite },
    fc.constantFrom(NaN, Infinity, -Infinity),
  );
  fc.assert(
    fc.property(fc.array(value), fc.constantFrom(...dtypes), fc.nat(5), (list, dtype, at) => {
      const encoded = encode(dtype, Float32Array.from(list));
      const bytes = new Uint8Array(encoded.length + 5).subarray(at, at + encoded.length);
      bytes.set(encoded);
      assert.equal(firstNonFinite(dtype, bytes), list.findIndex((x) => !Number.isFinite(x)));
    }),
  );
});
