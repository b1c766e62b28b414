/**
 * The layers of a file: its tensors `q`, `k` and so on are one layer; those of several begin with `0.`, `1.` and so on.
 * A table of an attention that does not begin so is for all layers that have none of their own.
 *
 * @module
 */
import { Effect } from "effect";
import type { SafetensorsFile } from "../plugins/safetensors.ts";
import { inputs } from "../runtime/exchange.ts";
import { TensorInvalid } from "../runtime/errors.ts";

/** One layer of a file. */
export interface Layer {
  /** What its tensors' names begin with in the file: `0.`, or nothing. */
  readonly prefix: string;
  /** What a tensor of the layer is called in the file. */
  readonly nameOf: (name: string) => string;
  /** The file as if there were no other layer. */
  readonly file: SafetensorsFile;
}

/** The layer whose tensors' names begin so; with the tables of all layers, where it has none of its own. */
export const layerOf = (file: SafetensorsFile, prefix: string): Layer => {
  const own = new Map(
    [...file.tensors].filter(([name]) => name.startsWith(prefix))
      .map(([name, tensor]) => [name.slice(prefix.length), tensor]),
  );
  const nameOf = (name: string) => {
    const shared = !own.has(name) && !inputs.some((input) => input === name) &&
      file.tensor(name) !== undefined;
    return shared ? name : prefix + name;
  };
  return {
    prefix,
    nameOf,
    file: {
      ...file,
      tensors: own,
      tensor: (name) => file.tensor(nameOf(name)),
      read: (name, regions) => file.read(nameOf(name), regions),
    },
  };
};

const ofLayer = RegExp(`^(0|[1-9]\\d*)\\.(?:${inputs.join("|")})$`);

/** All layers, in their order; fails where one is missing between others, or has no queries. */
export const layersOf = Effect.fnUntraced(function* (
  file: SafetensorsFile,
): Effect.fn.Return<ReadonlyArray<Layer>, TensorInvalid> {
  const names = [...file.tensors.keys()].filter((name) => ofLayer.test(name));
  // A file with a `q` is one layer, whatever else is in it; one without any will be refused for that.
  if (file.tensor("q") !== undefined || names.length === 0) return [layerOf(file, "")];
  const numbers = new Set(names.map((name) => parseInt(name)));
  const layers = Array.from(numbers, (_, i) => `${i}.`);
  const last = names.reduce((a, b) => parseInt(b) > parseInt(a) ? b : a);
  const missing = layers.find((prefix) => file.tensor(`${prefix}q`) === undefined);
  if (missing !== undefined) {
    return yield* new TensorInvalid({
      file: file.path,
      tensor: `${missing}q`,
      needed: `there, since there is "${last}"`,
      found: "none",
    });
  }
  return layers.map((prefix) => layerOf(file, prefix));
});

/** What goes wrong in a layer, with the names that its tensors have in the file. */
export const inLayer = <E>({ nameOf }: Layer) => (error: E): E =>
  error instanceof TensorInvalid
    ? new TensorInvalid({ ...error, tensor: nameOf(error.tensor) }) as E
    : error;
