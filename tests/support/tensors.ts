/**
 * Whole safetensors files in memory, sound or not, by code that shares nothing with the plugin.
 *
 * @module
 */
import { decode, type DType, encode } from "../../runtime/dtype.ts";

/** A tensor and its values. */
export interface Tensor {
  readonly dtype: DType;
  readonly shape: ReadonlyArray<number>;
  readonly values: Float32Array;
}

/** The bytes of a file with this header, whatever it says, and these data. */
export const fileOf = (header: string, data: Uint8Array): Uint8Array<ArrayBuffer> => {
  const text = new TextEncoder().encode(header);
  const bytes = new Uint8Array(8 + text.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.length);
  return bytes;
};

/** The bytes of a file of these tensors. */
export const fileOfTensors = (
  tensors: Readonly<Record<string, Tensor>>,
): Uint8Array<ArrayBuffer> => {
  const parts = Object.values(tensors).map(({ dtype, values }) => encode(dtype, values));
  const data = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  const header = Object.entries(tensors).map(([name, { dtype, shape }], i) => {
    const begin = at;
    data.set(parts[i]!, at);
    at += parts[i]!.length;
    return [name, { dtype: dtype.toUpperCase(), shape, data_offsets: [begin, at] }];
  });
  return fileOf(JSON.stringify(Object.fromEntries(header)), data);
};

/** The tensors of a file. */
export const tensorsOf = (path: string): Readonly<Record<string, Tensor>> => {
  const bytes = Deno.readFileSync(path);
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  delete header.__metadata__;
  return Object.fromEntries(
    Object.entries<{ dtype: string; shape: Array<number>; data_offsets: [number, number] }>(header)
      .map(([name, { dtype, shape, data_offsets: [begin, end] }]) => {
        const known = dtype.toLowerCase() as DType;
        const values = decode(known, bytes.subarray(8 + length + begin, 8 + length + end));
        return [name, { dtype: known, shape, values }];
      }),
  );
};
