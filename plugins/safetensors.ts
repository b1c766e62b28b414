/**
 * Tensors in safetensors files, read and written piece by piece, so that a file may be larger than memory.
 *
 * The format (https://github.com/huggingface/safetensors):
 *
 * | bytes | hold |
 * | --- | --- |
 * | 8 | the length N of the header, an unsigned little-endian integer |
 * | N | the header: JSON in UTF-8 that begins with `{`, padded with spaces |
 * | the rest | the elements of all tensors, little-endian and row-major, without gaps |
 *
 * The header maps each tensor's name to `{"dtype": "F16", "shape": [1, 16, 256], "data_offsets": [begin, end]}`, with
 * the offsets counted from the end of the header, and `__metadata__` to a map from texts to texts. Files that break
 * one of these rules are refused when they are opened, before anything of a length that they claim is allocated.
 *
 * @module
 */
export type {
  SafetensorsDeclaration,
  SafetensorsHeader,
  SafetensorsTensor,
} from "./safetensors/header.ts";
export { openSafetensors, type SafetensorsFile } from "./safetensors/reader.ts";
export { createSafetensors, type SafetensorsWriter } from "./safetensors/writer.ts";
