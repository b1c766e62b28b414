/**
 * Reads safetensors files: the header when a file is opened, then only the regions that are asked for.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import { FileInvalid } from "../../runtime/errors.ts";
import type { Region } from "../../runtime/region.ts";
import {
  longestHeader,
  namesOf,
  parseHeader,
  prefixBytes,
  quoted,
  type SafetensorsHeader,
  type SafetensorsTensor,
} from "./header.ts";
import { copy, move, pieces, rangesOf, readAt, reasonOf, worthReading } from "./pieces.ts";

/** An open file. */
export interface SafetensorsFile extends SafetensorsHeader {
  readonly path: string;
  /** What the header says of a tensor; undefined where the file has none of that name. */
  readonly tensor: (name: string) => SafetensorsTensor | undefined;
  /**
   * The bytes of regions of a tensor, one after the other. Holds them, at most 4 MiB more, and a few words for each region.
   *
   * @param regions In elements of the tensor.
   */
  readonly read: (
    name: string,
    regions: Iterable<Region>,
  ) => Effect.Effect<Uint8Array<ArrayBuffer>, FileInvalid>;
  /** The bytes of elements of a tensor from `offset` on, as many as there is room for in memory that is there. */
  readonly readInto: (
    name: string,
    offset: number,
    into: Uint8Array,
  ) => Effect.Effect<void, FileInvalid>;
}

/** Opens a file and checks its header. The file is closed with the scope. */
export const openSafetensors: (
  path: string,
) => Effect.Effect<SafetensorsFile, FileInvalid, Scope.Scope> = Effect.fn("openSafetensors")(
  function* (path) {
    const invalid = (attempted: string) => (needed: string, found: string) =>
      new FileInvalid({ attempted, file: path, needed, found });
    const refuse = invalid("open");
    const unreadable = (cause: unknown) => refuse("it must be readable", reasonOf(cause));

    // Asked before it is opened: opening a pipe would wait for somebody to write into it.
    const found = yield* Effect.tryPromise({ try: () => Deno.stat(path), catch: unreadable });
    if (!found.isFile) {
      const kind = found.isDirectory ? "a folder" : "something else";
      return yield* refuse("it must be a regular file", kind);
    }
    const file = yield* Effect.acquireRelease(
      Effect.tryPromise({ try: () => Deno.open(path), catch: unreadable }),
      (file) => Effect.sync(() => file.close()),
    );
    const { size } = yield* Effect.tryPromise({ try: () => file.stat(), catch: unreadable });
    const readHead = (at: number, length: number) =>
      Effect.try({
        try: () => {
          const bytes = new Uint8Array(length);
          readAt(file, at, bytes);
          return bytes;
        },
        catch: unreadable,
      });

    if (size < prefixBytes) {
      return yield* refuse(
        "it must begin with the 8 bytes of its header's length",
        `${size} bytes`,
      );
    }
    const prefix = yield* readHead(0, prefixBytes);
    const headerBytes = new DataView(prefix.buffer).getBigUint64(0, true);
    // Before anything of that length is allocated.
    if (headerBytes > BigInt(longestHeader)) {
      const needed = `its header must have at most ${longestHeader} bytes`;
      return yield* refuse(needed, `a length of ${headerBytes}`);
    }
    if (headerBytes > BigInt(size - prefixBytes)) {
      const needed = `its header must end within the file's ${size} bytes`;
      return yield* refuse(needed, `a length of ${headerBytes}`);
    }
    const header = yield* Effect.fromResult(
      parseHeader("open", path, yield* readHead(prefixBytes, Number(headerBytes)), size),
    );

    // One for all reads: no fiber runs between filling and emptying it.
    let cover = new Uint8Array(0);
    const read = Effect.fn("SafetensorsFile.read")(function* (
      name: string,
      regions: Iterable<Region>,
    ) {
      const attempted = `read tensor ${quoted(name)} of`;
      const tensor = header.tensors.get(name);
      if (tensor === undefined) {
        return yield* invalid(attempted)("the file must have it", namesOf(header));
      }
      const { ranges, bytes } = yield* Effect.fromResult(
        rangesOf(attempted, path, tensor, regions),
      );
      const failed = (cause: unknown) =>
        invalid(attempted)(`it must keep its ${size} bytes while it is read`, reasonOf(cause));
      const packed = yield* Effect.try({ try: () => new Uint8Array(bytes), catch: failed });
      yield* move(pieces(ranges, worthReading), ({ begin, end, parts }) => {
        if (parts.length === 1) {
          const at = parts[0]!.packed;
          return readAt(file, begin, packed.subarray(at, at + end - begin));
        }
        if (cover.length < end - begin) cover = new Uint8Array(end - begin);
        readAt(file, begin, cover.subarray(0, end - begin));
        for (const part of parts) {
          copy(cover, part.begin - begin, part.end - part.begin, packed, part.packed);
        }
      }, failed);
      return packed;
    });

    const readInto = Effect.fn("SafetensorsFile.readInto")(function* (
      name: string,
      offset: number,
      into: Uint8Array,
    ) {
      const attempted = `read tensor ${quoted(name)} of`;
      const tensor = header.tensors.get(name);
      if (tensor === undefined) {
        return yield* invalid(attempted)("the file must have it", namesOf(header));
      }
      const length = into.length / (tensor.elementBytes ?? 1);
      const { ranges: [range] } = yield* Effect.fromResult(
        rangesOf(attempted, path, tensor, [{ offset, length }]),
      );
      if (range === undefined) return;
      yield* Effect.try({
        try: () => readAt(file, range.begin, into),
        catch: (cause) =>
          invalid(attempted)(`it must keep its ${size} bytes while it is read`, reasonOf(cause)),
      });
    });

    return { ...header, path, readInto, tensor: (name) => header.tensors.get(name), read };
  },
);
