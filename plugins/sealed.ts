/**
 * Files that are whole or refused: one line of JSON, bytes, and the CRC-32 of all that, little-endian. They are written
 * under another name, forced to the disk and renamed, so that whatever happens nothing else has their name.
 *
 * @module
 */
import { crc32 } from "node:zlib";

const sumBytes = 4;
/** Read or written at once. */
export const pieceBytes = 4 * 1024 * 1024;

/** What went wrong, in words. */
export const reasonOf = (cause: unknown): string =>
  cause instanceof Error ? cause.message : String(cause);

/** Fills the array; throws where the file has no more. */
export const readFully = async (file: Deno.FsFile, into: Uint8Array): Promise<void> => {
  for (let at = 0; at < into.length;) {
    const count = await file.read(into.subarray(at));
    if (count === null) throw new Error("it ends too early");
    at += count;
  }
};

/** Makes renames in a folder last. */
export const settle = async (folder: string): Promise<void> => {
  using directory = await Deno.open(folder);
  await directory.sync();
};

/** Who hears what is in a file. */
export interface SealedReader {
  /** Bytes of the first line at most. */
  readonly longestHead: number;
  /** Gives how many bytes must follow the line and its end, or throws what is wrong with it. */
  readonly head: (line: string) => number;
  /** Hears them piece by piece, before it is known whether they are right. */
  readonly body?: (bytes: Uint8Array, at: number) => void;
}

/** Reads a file, and throws an error that says what is wrong with it if it is not whole. */
export const readSealed = async (
  path: string,
  { longestHead, head, body = () => {} }: SealedReader,
): Promise<{ readonly begin: number; readonly sum: number }> => {
  // Opening a pipe would wait for somebody to write into it.
  if (!(await Deno.stat(path)).isFile) throw new Error("it is not a regular file");
  using file = await Deno.open(path);
  const { size } = await file.stat();
  const first = new Uint8Array(Math.min(size, longestHead));
  await readFully(file, first);
  const end = first.indexOf(10);
  if (end < 0) throw new Error("it does not begin with a line of JSON");
  const begin = end + 1;
  const whole = begin + head(new TextDecoder().decode(first.subarray(0, end))) + sumBytes;
  if (size !== whole) throw new Error(`it must have ${whole} bytes: found ${size}`);
  await file.seek(begin, Deno.SeekMode.Start);
  const piece = new Uint8Array(pieceBytes);
  let sum = crc32(first.subarray(0, begin));
  for (let at = begin; at < size - sumBytes;) {
    const part = piece.subarray(0, Math.min(pieceBytes, size - sumBytes - at));
    await readFully(file, part);
    sum = crc32(part, sum);
    body(part, at - begin);
    at += part.length;
  }
  const told = new Uint8Array(sumBytes);
  await readFully(file, told);
  if (new DataView(told.buffer).getUint32(0, true) !== sum) throw new Error("its CRC-32 differs");
  return { begin, sum };
};

/** A file that is being written. */
export class Sealing implements Disposable {
  readonly #file: Deno.FsFile;
  #sum = 0;
  #written = 0;

  private constructor(file: Deno.FsFile) {
    this.#file = file;
  }

  /** Only its user may read it: they may be the only one who may read what it was made of. */
  static async create(path: string, head: string): Promise<Sealing> {
    const file = await Deno.open(path, { write: true, createNew: true, mode: 0o600 });
    const sealing = new Sealing(file);
    try {
      await sealing.write(new TextEncoder().encode(`${head}\n`));
    } catch (cause) {
      file.close();
      await Deno.remove(path);
      throw cause;
    }
    return sealing;
  }

  /** Bytes so far, the line included. */
  get written(): number {
    return this.#written;
  }

  /** CRC-32 of them. */
  get sum(): number {
    return this.#sum;
  }

  async write(bytes: Uint8Array): Promise<void> {
    await this.#append(bytes);
    this.#sum = crc32(bytes, this.#sum);
    this.#written += bytes.length;
  }

  /** Nothing follows: it is whole, and on the disk. */
  async seal(): Promise<void> {
    const told = new Uint8Array(sumBytes);
    new DataView(told.buffer).setUint32(0, this.#sum, true);
    await this.#append(told);
    await this.#file.sync();
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }

  async #append(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) at += await this.#file.write(bytes.subarray(at));
  }
}
