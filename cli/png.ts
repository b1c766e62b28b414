/**
 * A picture as PNG: three bytes a pixel, compressed, and nothing else of what the format can.
 *
 * Source: W3C, Portable Network Graphics (PNG) Specification, third edition.
 *
 * @module
 */
import { crc32, deflateSync } from "node:zlib";

const signature = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** Length, type, content, and the checksum of the last two. */
const chunk = (type: string, content: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(12 + content.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(content, 8);
  view.setUint32(8 + content.length, crc32(bytes.subarray(4, 8 + content.length)));
  return bytes;
};

/** @param pixels Red, green and blue, [height, width, 3]. */
export const pngOf = (
  width: number,
  height: number,
  pixels: Uint8Array,
): Uint8Array<ArrayBuffer> => {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 2], 8); // bits a sample, and that there are three of them
  // Each row begins with how it is filtered: not at all.
  const rows = new Uint8Array(height * (1 + 3 * width));
  for (let y = 0; y < height; y++) {
    rows.set(pixels.subarray(y * 3 * width, (y + 1) * 3 * width), y * (1 + 3 * width) + 1);
  }
  const chunks = [
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(rows)),
    chunk("IEND", new Uint8Array(0)),
  ];
  return Uint8Array.from([...signature, ...chunks.flatMap((bytes) => [...bytes])]);
};
