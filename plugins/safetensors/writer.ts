/**
 * Writes safetensors files, in any order, into a temporary file beside the final one, which takes its place when all
 * is there: a reader finds the whole file or none.
 *
 * @module
 */
import { basename, dirname, join } from "node:path";
import { Effect, type Scope } from "effect";
import { FileInvalid } from "../../runtime/errors.ts";
import type { Region } from "../../runtime/region.ts";
import { buildHeader, namesOf, quoted, type SafetensorsDeclaration } from "./header.ts";
import {
  copy,
  move,
  pieces,
  rangesOf,
  readAt,
  reasonOf,
  worthRewriting,
  writeAt,
} from "./pieces.ts";

/** A file that is being written. */
export interface SafetensorsWriter {
  readonly path: string;
  /** Where the file is until `commit`; it can be read there once everything was written. */
  readonly part: string;
  /**
   * Writes the bytes of regions of a tensor, one after the other.
   *
   * @param regions In elements of the tensor.
   * @param bytes As many as the regions have; may lie in shared memory, and must not change until it is done.
   */
  readonly write: (
    name: string,
    regions: Iterable<Region>,
    bytes: Uint8Array,
  ) => Effect.Effect<void, FileInvalid>;
  /** Makes the file appear under its name, on the disk, once every tensor got as many bytes as it has. */
  readonly commit: Effect.Effect<void, FileInvalid>;
}

/**
 * Creates a file of these tensors. Until `commit` nothing is seen under `path`; a scope that ends before leaves
 * nothing behind. A file that is there already is replaced, by `commit`.
 */
export const createSafetensors: (
  path: string,
  tensors: ReadonlyArray<SafetensorsDeclaration>,
  metadata?: Readonly<Record<string, string>>,
) => Effect.Effect<SafetensorsWriter, FileInvalid, Scope.Scope> = Effect.fn("createSafetensors")(
  function* (path, tensors, metadata) {
    const invalid = (attempted: string, needed: string) => (cause: unknown) =>
      new FileInvalid({ attempted, file: path, needed, found: reasonOf(cause) });
    const uncreatable = invalid("create", "its folder must be there and writable");

    const head = yield* Effect.fromResult(buildHeader("create", path, tensors, metadata));
    const space = `its disk must take ${head.fileBytes} bytes`;

    // A rename would put a file in the place of a device, and cannot replace a folder.
    const old = yield* Effect.tryPromise({
      try: () =>
        Deno.stat(path).catch((cause) => {
          if (cause instanceof Deno.errors.NotFound) return undefined;
          throw cause;
        }),
      catch: uncreatable,
    });
    if (old !== undefined && !old.isFile) {
      return yield* new FileInvalid({
        attempted: "create",
        file: path,
        needed: "it must be a regular file or not be there yet",
        found: old.isDirectory ? "a folder" : "something else",
      });
    }

    const random = crypto.randomUUID().slice(0, 8);
    const temporary = join(dirname(path), `.${basename(path)}.${random}.part`);
    let committed = false;
    const file = yield* Effect.acquireRelease(
      Effect.tryPromise({
        try: () => Deno.open(temporary, { read: true, write: true, createNew: true }),
        catch: uncreatable,
      }),
      (file) =>
        Effect.promise(async () => {
          if (committed) return;
          file.close();
          await Deno.remove(temporary).catch(() => {}); // somebody else did
        }),
    );
    yield* Effect.try({
      try: () => {
        file.truncateSync(head.fileBytes);
        writeAt(file, 0, head.bytes);
      },
      catch: invalid("create", space),
    });

    const finished = (attempted: string) =>
      new FileInvalid({
        attempted,
        file: path,
        needed: "it must not be finished yet",
        found: "a finished file",
      });
    const written = new Map([...head.tensors.keys()].map((name) => [name, 0]));
    // One for all writes: no fiber runs between filling and emptying it.
    let cover = new Uint8Array(0);
    const write = Effect.fn("SafetensorsWriter.write")(function* (
      name: string,
      regions: Iterable<Region>,
      bytes: Uint8Array,
    ) {
      const attempted = `write tensor ${quoted(name)} of`;
      const refuse = (needed: string, found: string) =>
        new FileInvalid({ attempted, file: path, needed, found });
      if (committed) return yield* finished(attempted);
      const tensor = head.tensors.get(name);
      if (tensor === undefined) {
        return yield* refuse("the file must have been created with it", namesOf(head));
      }
      const { ranges, bytes: size } = yield* Effect.fromResult(
        rangesOf(attempted, path, tensor, regions),
      );
      if (size !== bytes.length) {
        return yield* refuse(
          `its regions must have ${bytes.length} bytes, as was given`,
          `${size}`,
        );
      }
      yield* move(pieces(ranges, worthRewriting), ({ begin, end, parts }) => {
        if (parts.length === 1) {
          const at = parts[0]!.packed;
          return writeAt(file, begin, bytes.subarray(at, at + end - begin));
        }
        if (cover.length < end - begin) cover = new Uint8Array(end - begin);
        const covered = cover.subarray(0, end - begin);
        readAt(file, begin, covered);
        for (const part of parts) {
          copy(bytes, part.packed, part.end - part.begin, covered, part.begin - begin);
        }
        writeAt(file, begin, covered);
      }, invalid(attempted, space));
      written.set(name, written.get(name)! + size);
    });

    const commit = Effect.gen(function* () {
      if (committed) return yield* finished("finish");
      for (const { name, begin, end } of head.tensors.values()) {
        if (written.get(name)! >= end - begin) continue;
        return yield* new FileInvalid({
          attempted: "finish",
          file: path,
          needed: `all ${end - begin} bytes of tensor ${quoted(name)} must have been written`,
          found: `${written.get(name)}`,
        });
      }
      yield* Effect.tryPromise({ try: () => file.sync(), catch: invalid("finish", space) });
      yield* Effect.tryPromise({
        try: () => Deno.rename(temporary, path),
        catch: invalid("finish", "its folder must be there and writable"),
      });
      committed = true;
      file.close();
    }).pipe(Effect.uninterruptible);

    return { path, part: temporary, write, commit };
  },
);
