/**
 * The three number formats that tensors have in files, on the wire and in device memory.
 *
 * @module
 */

/** IEEE single, IEEE half, or bfloat16 (the upper half of a single). */
export type DType = "f32" | "f16" | "bf16";

/** All formats, widest first. */
export const dtypes: ReadonlyArray<DType> = ["f32", "f16", "bf16"];

/** Bytes of one element. */
export const elementBytes = (dtype: DType): number => dtype === "f32" ? 4 : 2;

/** The bit pattern of the bfloat16 nearest to `x`, ties to even; an overflow becomes an infinity. */
const toBf16 = (() => {
  const single = new Float32Array(1);
  const bits = new Uint32Array(single.buffer);
  return (x: number): number => {
    single[0] = x;
    const b = bits[0]!;
    if (x !== x) return 0x7fc0; // the carry below would turn some NaNs into zeros
    return (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
  };
})();

/** Float32 values as bytes, without a copy. */
export const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength);

/** Elements as float32 values. `bytes` may start anywhere and lie in shared memory; the result is a copy. */
export const decode = (dtype: DType, bytes: Uint8Array): Float32Array<ArrayBuffer> => {
  const aligned = new Uint8Array(bytes).buffer;
  if (dtype === "f32") return new Float32Array(aligned);
  if (dtype === "f16") return Float32Array.from(new Float16Array(aligned));
  const upper = new Uint16Array(aligned);
  const words = new Uint32Array(upper.length);
  for (let i = 0; i < upper.length; i++) words[i] = upper[i]! << 16;
  return new Float32Array(words.buffer);
};

/** The same into memory that is there. */
export const decodeInto = (into: Float32Array, dtype: DType, bytes: Uint8Array): void => {
  const { buffer, byteOffset, byteLength } = bytes;
  const count = byteLength / elementBytes(dtype);
  if (byteOffset % elementBytes(dtype) !== 0) return into.set(decode(dtype, bytes));
  if (dtype === "f32") return into.set(new Float32Array(buffer, byteOffset, count));
  if (dtype === "f16") return into.set(new Float16Array(buffer, byteOffset, count));
  const upper = new Uint16Array(buffer, byteOffset, count);
  const words = new Uint32Array(into.buffer, into.byteOffset, count);
  for (let i = 0; i < count; i++) words[i] = upper[i]! << 16;
};

/** float32 values as elements of `dtype`, rounded to nearest even; always a copy. */
export const encode = (dtype: DType, values: Float32Array): Uint8Array<ArrayBuffer> => {
  if (dtype === "f32") return new Uint8Array(Float32Array.from(values).buffer);
  if (dtype === "f16") return new Uint8Array(Float16Array.from(values).buffer);
  return new Uint8Array(Uint16Array.from(values, toBf16).buffer);
};

/** Elements of one format in another; the same bytes where that is the same. */
export const recode = (from: DType, to: DType, bytes: Uint8Array): Uint8Array =>
  from === to ? bytes : encode(to, decode(from, bytes));

/** The index of the first word that has all bits of the exponent, or −1. A loop: `findIndex` takes ten times as long. */
const firstWith = (exponent: number, words: Uint32Array | Uint16Array): number => {
  for (let i = 0; i < words.length; i++) {
    if ((words[i]! & exponent) === exponent) return i;
  }
  return -1;
};

/** The index of the first NaN or infinity among elements of `dtype`, or −1. */
export const firstNonFinite = (dtype: DType, bytes: Uint8Array): number => {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
  const { buffer, byteOffset, byteLength } = aligned;
  if (dtype === "f32") {
    return firstWith(0x7f800000, new Uint32Array(buffer, byteOffset, byteLength / 4));
  }
  const exponent = dtype === "f16" ? 0x7c00 : 0x7f80;
  return firstWith(exponent, new Uint16Array(buffer, byteOffset, byteLength / 2));
};
