/**
 * The layers of a file: its tensors `q`, `k` and so on are one layer; those of several begin with `0.`, `1.` and so on.
 *
 * @module
 */
import { Effect } from "effect";
import type { SafetensorsFile } from "../plugins/safetensors.ts";
import { TensorInvalid } from "../runtime/errors.ts";

/** One layer of a file. */
export interface Layer {
  /** What its tensors' names begin with in the file: `0.`, or nothing. */
  readonly prefix: string;
  /** The file as if there were no other layer. */
  readonly file: SafetensorsFile;
}

/** The file as if only the tensors were there whose names begin so, and without that. */
export const layerOf = (file: SafetensorsFile, prefix: string): SafetensorsFile => ({
  ...file,
  tensors: new Map(
    [...file.tensors].filter(([name]) => name.startsWith(prefix))
      .map(([name, tensor]) => [name.slice(prefix.length), tensor]),
  ),
  tensor: (name) => file.tensor(prefix + name),
  read: (name, regions) => file.read(prefix + name, regions),
});

/** All layers, in their order; fails where one is missing between others. */
export const layersOf = Effect.fnUntraced(function* (
  file: SafetensorsFile,
): Effect.fn.Return<ReadonlyArray<Layer>, TensorInvalid> {
  const numbers = [...file.tensors.keys()].flatMap((name) =>
    /^(?:0|[1-9]\d*)\.q$/.test(name) ? [parseInt(name)] : []
  );
  // A file with a `q` is one layer, whatever else is in it; one without any will be refused for that.
  if (file.tensor("q") !== undefined || numbers.length === 0) return [{ prefix: "", file }];
  const last = Math.max(...numbers);
  const missing = Array.from({ length: numbers.length }, (_, i) => i)
    .find((i) => !numbers.includes(i));
  if (missing !== undefined) {
    return yield* new TensorInvalid({
      file: file.path,
      tensor: `${missing}.q`,
      needed: `there, since there is a layer ${last}`,
      found: "none",
    });
  }
  return numbers.map((_, i) => ({ prefix: `${i}.`, file: layerOf(file, `${i}.`) }));
});

/** What goes wrong in a layer, with the names that its tensors have in the file. */
export const inLayer = <E>(prefix: string) => (error: E): E =>
  error instanceof TensorInvalid && prefix !== ""
    ? new TensorInvalid({ ...error, tensor: prefix + error.tensor }) as E
    : error;
