/**
 * The weights of a model in its folder: one safetensors file or several with an index, as Hugging Face writes them.
 *
 * @module
 */
import { createHash, type Hash } from "node:crypto";
import { join } from "node:path";
import { Effect, Schema, type Scope } from "effect";
import { type DType, elementBytes } from "../../runtime/dtype.ts";
import { type DeviceFailed, FileInvalid, ModelInvalid } from "../../runtime/errors.ts";
import type { Programs } from "../../runtime/device.ts";
import type { WeightSpec } from "../../runtime/program.ts";
import { openSafetensors, type SafetensorsFile } from "../safetensors.ts";

const Index = Schema.fromJsonString(
  Schema.Struct({ weight_map: Schema.Record(Schema.String, Schema.String) }),
);
const decodeIndex = Schema.decodeUnknownEffect(Index);

/** Tensors that files have and nobody needs: they follow from the config. */
const spare = /(^|\.)rotary_emb\.inv_freq$|^lm_head\.weight$/;

const formats = new Map<string, DType>([["F32", "f32"], ["F16", "f16"], ["BF16", "bf16"]]);

/** Bytes that are read at once. */
const pieceBytes = 4 * 1024 * 1024;

/** The files of a model's weights. */
export interface WeightFiles {
  readonly paths: ReadonlyArray<string>;
  /** By tensor. */
  readonly files: ReadonlyMap<string, SafetensorsFile>;
}

/** A file's text, or the error that says which file is needed. */
export const readText = (folder: string, name: string): Effect.Effect<string, FileInvalid> =>
  Effect.tryPromise({
    try: () => Deno.readTextFile(join(folder, name)),
    catch: (cause) =>
      new FileInvalid({
        attempted: "read",
        file: join(folder, name),
        needed: "a model's folder must have it",
        found: cause instanceof Deno.errors.NotFound ? "no such file" : String(cause),
      }),
  });

const isFile = (path: string) =>
  Effect.promise(() => Deno.stat(path).then(({ isFile }) => isFile, () => false));

/** Opens the files of a folder; they are closed with the scope. */
export const openWeights = Effect.fn("openWeights")(function* (
  folder: string,
): Effect.fn.Return<WeightFiles, FileInvalid | ModelInvalid, Scope.Scope> {
  const single = join(folder, "model.safetensors");
  const files = new Map<string, SafetensorsFile>();
  if (yield* isFile(single)) {
    const file = yield* openSafetensors(single);
    for (const name of file.tensors.keys()) files.set(name, file);
    return { paths: [single], files };
  }
  const name = "model.safetensors.index.json";
  if (!(yield* isFile(join(folder, name)))) {
    return yield* new ModelInvalid({
      model: folder,
      needed: `its weights must be in model.safetensors, or in files that ${name} names`,
      found: "neither",
    });
  }
  const { weight_map: map } = yield* Effect.mapError(
    decodeIndex(yield* readText(folder, name)),
    ({ message }) =>
      new ModelInvalid({ model: folder, needed: `${name} must have a weight_map`, found: message }),
  );
  const opened = new Map<string, SafetensorsFile>();
  for (const shard of new Set(Object.values(map))) {
    if (shard.includes("/") || shard.includes("\\")) {
      return yield* new ModelInvalid({
        model: folder,
        needed: `${name} must name files of the same folder`,
        found: `"${shard}"`,
      });
    }
    opened.set(shard, yield* openSafetensors(join(folder, shard)));
  }
  for (const [tensor, shard] of Object.entries(map)) {
    const file = opened.get(shard)!;
    if (file.tensor(tensor) === undefined) {
      return yield* new ModelInvalid({
        model: folder,
        needed: `"${shard}" must have tensor "${tensor}"`,
        found: "none",
      });
    }
    files.set(tensor, file);
  }
  return { paths: [...opened.keys()].sort().map((shard) => join(folder, shard)), files };
});

const some = (names: ReadonlyArray<string>) =>
  `${names.slice(0, 5).map((name) => `"${name}"`).join(", ")}${
    names.length > 5 ? ` and ${names.length - 5} more` : ""
  }`;

/** Refuses files that have not just the tensors of the model, each of its shape. */
export const checkWeights = Effect.fn("checkWeights")(function* (
  folder: string,
  weights: ReadonlyArray<WeightSpec>,
  { files }: WeightFiles,
): Effect.fn.Return<void, ModelInvalid> {
  const refuse = (needed: string, found: string) =>
    new ModelInvalid({ model: folder, needed, found });
  const known = new Set(weights.map(({ name }) => name));
  const missing = weights.filter(({ name }) => !files.has(name)).map(({ name }) => name);
  const extra = [...files.keys()].filter((name) => !known.has(name) && !spare.test(name));
  if (missing.length > 0) {
    return yield* refuse(
      `its files must have ${some(missing)}`,
      extra.length === 0 ? "none of that name" : `instead ${some(extra)}`,
    );
  }
  if (extra.length > 0) {
    return yield* refuse("its files may only have tensors that its config names", some(extra));
  }
  for (const { name, rows, columns } of weights) {
    const { shape, dtype } = files.get(name)!.tensor(name)!;
    const needed = name.endsWith(".bias") || name.endsWith("norm.weight")
      ? [columns]
      : [rows, columns];
    if (shape.join() !== needed.join()) {
      return yield* refuse(
        `tensor "${name}" must be [${needed.join(", ")}]`,
        `[${shape.join(", ")}]`,
      );
    }
    if (!formats.has(dtype)) {
      return yield* refuse(`tensor "${name}" must be F32, F16 or BF16`, dtype);
    }
  }
});

const feed = async (hash: Hash, path: string): Promise<void> => {
  using file = await Deno.open(path);
  // Memory that is used again, where a stream would leave as much to the garbage collector as the file has.
  const piece = new Uint8Array(pieceBytes);
  for (;;) {
    const count = await file.read(piece);
    if (count === null) return;
    hash.update(piece.subarray(0, count));
  }
};

/** The hash of a file, in hexadecimal. */
export const digestOf = async (hash: Hash, path: string): Promise<string> => {
  await feed(hash, path);
  return hash.digest("hex");
};

/** Tells files with other contents apart: a hash of the config and of all bytes of the weights. */
export const hashOf = Effect.fn("hashOf")(function* (
  config: string,
  { paths }: WeightFiles,
): Effect.fn.Return<string, FileInvalid> {
  const hash = createHash("sha256").update(config);
  for (const path of paths) {
    yield* Effect.tryPromise({
      try: () => feed(hash, path),
      catch: (cause) =>
        new FileInvalid({
          ...{ attempted: "read", file: path, needed: "it must be readable" },
          found: String(cause),
        }),
    });
  }
  return hash.digest("hex");
});

/** The format of a tensor in its file. */
const formatOf = ({ files }: WeightFiles, name: string): DType =>
  formats.get(files.get(name)!.tensor(name)!.dtype)!;

/** The weights as devices shall hold them: in the formats of the files. */
export const asInFiles = (
  weights: ReadonlyArray<WeightSpec>,
  files: WeightFiles,
): ReadonlyArray<WeightSpec> =>
  weights.map((weight) => ({ ...weight, dtype: formatOf(files, weight.name) }));

/** Fills a device's weights from files, some rows at a time, and tells how many bytes of all were read. */
export const fillWeights = Effect.fn("fillWeights")(function* (
  weights: ReadonlyArray<WeightSpec>,
  files: WeightFiles,
  programs: Programs,
  progress: (done: number, all: number) => Effect.Effect<void>,
): Effect.fn.Return<void, DeviceFailed | FileInvalid> {
  const placed = weights.map(({ name, rows, columns }) => {
    const dtype = formatOf(files, name);
    const row = columns * elementBytes(dtype);
    return { name, rows, columns, dtype, row, atOnce: Math.max(1, Math.floor(pieceBytes / row)) };
  });
  const all = placed.reduce((sum, { rows, row }) => sum + rows * row, 0);
  let done = 0;
  // Read into memory of its own, which a file call needs, and handed over in memory that a Worker shares.
  const largest = Math.max(...placed.map(({ rows, row, atOnce }) => Math.min(rows, atOnce) * row));
  const piece = new Uint8Array(largest);
  const shared = new Uint8Array(new SharedArrayBuffer(largest));
  for (const { name, rows, columns, dtype, row, atOnce } of placed) {
    for (let first = 0; first < rows; first += atOnce) {
      const count = Math.min(atOnce, rows - first) * row;
      yield* files.files.get(name)!.readInto(name, first * columns, piece.subarray(0, count));
      shared.set(piece.subarray(0, count));
      yield* programs.fill(name, first, dtype, shared.subarray(0, count));
      done += count;
      yield* progress(done, all);
    }
  }
});
