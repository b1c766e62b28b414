/**
 * Device memory for K or V: one piece of a tensor after the other, in a buffer or a texture that is replaced when it
 * is too small.
 *
 * @module
 */
import { type DType, elementBytes } from "../../runtime/dtype.ts";
import { headsAcross, texelFormat } from "./program.ts";

/** What a piece consists of: `heads` counts those of all its tokens and batch entries. */
export interface Heads {
  readonly heads: number;
  readonly headDim: number;
  readonly dtype: DType;
}

/** Memory of which a part can be written. */
export interface Room {
  readonly resource: GPUBindingResource;
  /** Copies whole heads to the place of head `first` and those after it; the bytes may lie in shared memory. */
  readonly write: (first: number, bytes: Uint8Array) => void;
  readonly destroy: () => void;
}

/** Gives room for a piece, whose content the next piece overwrites. */
export type KeyMemory = (piece: Heads) => Room;

/** The types exclude shared memory as the standard once did; the queue copies the bytes before it returns. */
export const unshared = (bytes: Uint8Array) => bytes as Uint8Array<ArrayBuffer>;

/** Heads one after the other in a buffer. */
export const bufferMemory = (device: GPUDevice, label: string): KeyMemory => {
  let buffer: GPUBuffer | undefined;
  return ({ heads, headDim, dtype }) => {
    const headBytes = headDim * elementBytes(dtype);
    const size = heads * headBytes;
    if (buffer === undefined || buffer.size < size) {
      buffer?.destroy();
      const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST;
      buffer = device.createBuffer({ label, size, usage });
    }
    const there = buffer;
    return {
      resource: { buffer: there },
      write: (first, bytes) => device.queue.writeBuffer(there, first * headBytes, unshared(bytes)),
      destroy: () => there.destroy(),
    };
  };
};

/**
 * The height of a texture with so many rows in use. llvmpipe compiles a program once for textures whose height is a
 * power of two, and again for others, which takes seconds: so none is.
 */
const heightFor = (rows: number): number => Math.max(rows | 1, 3);

/** Rows of a texture that can be used where its height has a limit. */
export const rowsWithin = (tallest: number): number =>
  tallest === Infinity ? tallest : (tallest - 1) | 1;

/** Heads side by side in the rows of a texture. */
export const textureMemory = (device: GPUDevice, label: string): KeyMemory => {
  let texture: GPUTexture | undefined;
  return ({ heads, headDim, dtype }) => {
    const across = headsAcross(headDim);
    const quads = headDim / 4;
    const format = texelFormat(dtype);
    const [width, height] = [across * quads, heightFor(Math.ceil(heads / across))];
    if (
      texture === undefined || texture.format !== format || texture.width !== width ||
      texture.height < height
    ) {
      texture?.destroy();
      const usage = GPUTextureUsage.STORAGE_BINDING | GPUTextureUsage.COPY_DST;
      texture = device.createTexture({ label, size: [width, height], format, usage });
    }
    const there = texture;
    const headBytes = headDim * elementBytes(dtype);
    return {
      resource: there.createView(),
      write: (first, bytes) => {
        const end = first + bytes.length / headBytes;
        // A stretch within a row, then whole rows, then the rest.
        for (let head = first; head < end;) {
          const x = head % across;
          const rows = x === 0 ? Math.max(Math.floor((end - head) / across), 1) : 1;
          const count = Math.min(rows * across - x, end - head);
          const from = (head - first) * headBytes;
          device.queue.writeTexture(
            { texture: there, origin: [x * quads, Math.floor(head / across)] },
            unshared(bytes.subarray(from, from + count * headBytes)),
            { bytesPerRow: across * headBytes },
            [Math.min(count, across) * quads, rows],
          );
          head += count;
        }
      },
      destroy: () => there.destroy(),
    };
  };
};
