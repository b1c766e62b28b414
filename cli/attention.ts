/**
 * `--attention 'causal & window(4096) & documents'`: names of variants with their parameters, in the order of the
 * definition or by name; what is not given comes from the tensor of its name in the input file.
 *
 * @module
 */
import { Effect, Result } from "effect";
import type { SafetensorsFile } from "../plugins/safetensors.ts";
import { inputs, outputs } from "../runtime/exchange.ts";
import { decode } from "../runtime/dtype.ts";
import { TensorInvalid } from "../runtime/errors.ts";
import type { Definition, Variant } from "../runtime/variant.ts";

const pattern = /^\s*([A-Za-z][A-Za-z0-9-]*)\s*(?:\(([^()]*)\))?\s*$/;

/** "4096", "[1, 2, 3]" */
const valueOf = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return text.trim();
  }
};

/** Commas that are not within brackets. */
const parted = (text: string): ReadonlyArray<string> =>
  text.trim() === "" ? [] : text.split(/,(?![^[]*\])/);

/** The variants of an expression; or what is wrong with it. */
export const parseAttention = (
  expression: string,
  known: ReadonlyArray<Definition>,
): Result.Result<ReadonlyArray<Variant>, string> => {
  const variants: Array<Variant> = [];
  for (const part of expression.split("&")) {
    const [, name, given = ""] = pattern.exec(part) ?? [];
    const definition = known.find((one) => one.name === name);
    if (definition === undefined) {
      const names = known.map(({ name }) => name).join(", ");
      return Result.fail(
        `--attention needs names with & between them, of ${names}: found "${part.trim()}"`,
      );
    }
    const keys = Object.keys(definition.params ?? {});
    const params: Record<string, unknown> = {};
    for (const [i, argument] of parted(given).entries()) {
      const [key, value] = /^\s*(\w+)\s*=(.*)$/s.exec(argument)?.slice(1) ?? [keys[i], argument];
      if (key === undefined || !keys.includes(key)) {
        const needed = keys.length === 0 ? "no parameters" : `parameters of ${keys.join(", ")}`;
        return Result.fail(`attention "${name}" needs ${needed}: found "${argument.trim()}"`);
      }
      if (key in params) return Result.fail(`attention "${name}" needs one ${key}: found two`);
      params[key] = valueOf(value!);
    }
    variants.push({ definition, params });
  }
  return Result.succeed(variants);
};

/** What these names mean in a file, whatever a variant calls its tables. */
const tensors: ReadonlySet<string> = new Set([...inputs, ...outputs]);

/** More numbers than this are no table of an attention. */
const largestTable = 2 ** 26;

/** Reads a tensor of numbers. */
const numbersOf = Effect.fnUntraced(function* (file: SafetensorsFile, path: string, name: string) {
  const tensor = file.tensor(name)!;
  const refuse = (needed: string, found: string) =>
    new TensorInvalid({ file: path, tensor: name, needed, found });
  const length = tensor.shape.reduce((a, b) => a * b, 1);
  if (length > largestTable) {
    return yield* refuse(`of at most ${largestTable} numbers`, String(length));
  }
  const read = file.read(name, length === 0 ? [] : [{ offset: 0, length }]);
  switch (tensor.dtype) {
    case "I32":
      return Array.from(new Int32Array((yield* read).slice().buffer));
    case "I64":
      return Array.from(new BigInt64Array((yield* read).slice().buffer), Number);
    case "F32":
    case "F16":
    case "BF16":
      return Array.from(
        decode(({ F32: "f32", F16: "f16", BF16: "bf16" } as const)[tensor.dtype], yield* read),
      );
    default:
      return yield* refuse("of type I32, I64, F32, F16 or BF16", tensor.dtype);
  }
});

/** Completes variants by tensors of the input file, and gives the names of those that were read. */
export const completeAttention = Effect.fn("completeAttention")(function* (
  variants: ReadonlyArray<Variant>,
  file: SafetensorsFile,
  path: string,
) {
  const read = new Set<string>();
  const completed: Array<Variant> = [];
  for (const { definition, params } of variants) {
    const own: Record<string, unknown> = { ...params };
    for (const [key, { table }] of Object.entries(definition.params ?? {})) {
      if (!table || key in own || tensors.has(key) || file.tensor(key) === undefined) continue;
      own[key] = yield* numbersOf(file, path, key);
      read.add(key);
    }
    completed.push({ definition, params: own });
  }
  return { variants: completed, read };
});
