/**
 * The tensors that `attend` reads: `q` [batch, sequence, heads, head_dim], `k` and `v` [batch, sequence, kv_heads,
 * head_dim], and for gradients `do`, shaped as `q`; in f32, f16 or bf16. In place of `k` and `v` there may be `latent`
 * [batch, sequence, rank + rope] and `kv_b` [heads, head_dim − rope + value, rank].
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import {
  openSafetensors,
  type SafetensorsFile,
  type SafetensorsTensor,
} from "../plugins/safetensors.ts";
import { completeAttention } from "./attention.ts";
import { type Input as TensorName, Source } from "../runtime/exchange.ts";
import type { DType } from "../runtime/dtype.ts";
import { type FileInvalid, TensorInvalid } from "../runtime/errors.ts";
import { documents } from "../plugins/attention.ts";
import type { Variant } from "../runtime/variant.ts";
import type { Problem } from "../runtime/plan.ts";

const formats = new Map<string, DType>([["F32", "f32"], ["F16", "f16"], ["BF16", "bf16"]]);

/** An input file whose tensors fit together. */
export interface Input {
  readonly file: SafetensorsFile;
  readonly problem: Problem;
  readonly dtypes: Source["Service"]["dtypes"];
  readonly source: Source["Service"];
  /** There is a `do`. */
  readonly gradients: boolean;
  /** Names of the tensors that this is made of. */
  readonly read: ReadonlySet<string>;
}

/** The axes of each tensor. */
const dimensions: Readonly<Record<TensorName, ReadonlyArray<string>>> = {
  q: ["batch", "sequence", "heads", "head_dim"],
  do: ["batch", "sequence", "heads", "head_dim"],
  k: ["batch", "sequence", "kv_heads", "head_dim"],
  v: ["batch", "sequence", "kv_heads", "head_dim"],
  latent: ["batch", "sequence", "rank + rope"],
  kv_b: ["heads", "head_dim − rope + value", "rank"],
};

/** Opens a file of one layer and checks its tensors against each other. */
export const openInput = Effect.fn("openInput")(function* (
  path: string,
  attention: ReadonlyArray<Variant>,
): Effect.fn.Return<Input, FileInvalid | TensorInvalid, Scope.Scope> {
  return yield* inputOf(yield* openSafetensors(path), attention);
});

/** Checks the tensors of a layer against each other. */
export const inputOf = Effect.fn("inputOf")(function* (
  file: SafetensorsFile,
  attention: ReadonlyArray<Variant>,
): Effect.fn.Return<Input, FileInvalid | TensorInvalid> {
  const { path } = file;
  const refuse = (tensor: string, needed: string, found: string) =>
    new TensorInvalid({ file: path, tensor, needed, found });
  const own = new Set<string>();
  const read = Effect.fnUntraced(function* (name: TensorName) {
    const tensor = file.tensor(name);
    const layout = `[${dimensions[name].join(", ")}]`;
    if (tensor === undefined) {
      const names = [...file.tensors.keys()].map((key) => `"${key}"`).join(", ") || "none";
      return yield* refuse(name, `there, ${layout}`, `tensors ${names}`);
    }
    const dtype = formats.get(tensor.dtype);
    if (dtype === undefined) return yield* refuse(name, "of type F32, F16 or BF16", tensor.dtype);
    own.add(name);
    const { length } = dimensions[name];
    if (tensor.shape.length !== length) {
      return yield* refuse(name, `of ${length} dimensions, ${layout}`, shapeOf(tensor));
    }
    const [batch, tokens, heads, headDim] = tensor.shape as [number, number, number, number];
    return { tensor, dtype, batch, tokens, heads, headDim };
  });
  const q = yield* read("q");
  const empty = q.tensor.shape.includes(0);
  if (empty) return yield* refuse("q", "of at least one element", shapeOf(q.tensor));
  if (q.headDim % 4 !== 0 || q.headDim > 256) {
    return yield* refuse("q", "of a head_dim that is a multiple of 4 up to 256", shapeOf(q.tensor));
  }
  const isLatent = file.tensor("latent") !== undefined;
  const both = ["k", "v"].find((name) => isLatent && file.tensor(name) !== undefined);
  if (both !== undefined) return yield* refuse(both, 'absent beside "latent"', "both");
  /** Keys and values as they are. */
  const readKeys = Effect.gen(function* () {
    const [k, v] = [yield* read("k"), yield* read("v")];
    for (const [name, other] of [["k", k], ["v", v]] as const) {
      const wanted = [q.batch, q.tokens, k.heads, q.headDim];
      if (wanted.some((size, i) => size !== other.tensor.shape[i])) {
        const words = name === "k"
          ? `[${q.batch}, ${q.tokens}, kv_heads, ${q.headDim}] to go with q`
          : `[${wanted.join(", ")}], the shape of k`;
        return yield* refuse(name, words, shapeOf(other.tensor));
      }
    }
    if (k.heads === 0 || q.heads % k.heads !== 0) {
      const needed = `of a number of kv_heads that divides the ${q.heads} heads of q`;
      return yield* refuse("k", needed, shapeOf(k.tensor));
    }
    return { kvHeads: k.heads, dtypes: { k: k.dtype, v: v.dtype } };
  });
  /** What keys and values are made of. */
  const readLatents = Effect.gen(function* () {
    const [latent, up] = [yield* read("latent"), yield* read("kv_b")];
    const [batch, tokens, width] = latent.tensor.shape as [number, number, number];
    const [heads, rows, rank] = up.tensor.shape as [number, number, number];
    const rope = width - rank, value = rows - (q.headDim - rope);
    if (batch !== q.batch || tokens !== q.tokens) {
      const needed = `[${q.batch}, ${q.tokens}, rank + rope] to go with q`;
      return yield* refuse("latent", needed, shapeOf(latent.tensor));
    }
    const sizes = [rank, rope + 4, value];
    if (
      heads !== q.heads || rope >= q.headDim || value > q.headDim ||
      sizes.some((size) => size % 4 !== 0 || size < 4)
    ) {
      return yield* refuse(
        "kv_b",
        `[${q.heads}, ${q.headDim} − rope + value, rank] with rank + rope = ${width}, multiples of 4, and value up ` +
          `to ${q.headDim}`,
        shapeOf(up.tensor),
      );
    }
    return {
      kvHeads: q.heads,
      dtypes: { latent: latent.dtype, kv_b: up.dtype },
      latent: { rank, rope, value },
    };
  });
  const keys = isLatent ? yield* readLatents : yield* readKeys;
  const cotangent = file.tensor("do") === undefined ? undefined : yield* read("do");
  if (cotangent?.tensor.shape.some((size, i) => size !== q.tensor.shape[i]) === true) {
    return yield* refuse(
      "do",
      `[${q.tensor.shape.join(", ")}], the shape of q`,
      shapeOf(cotangent.tensor),
    );
  }
  const dtypes: Readonly<Record<TensorName, DType>> = {
    q: q.dtype,
    do: cotangent?.dtype ?? "f32",
    ...{ k: "f32", v: "f32", latent: "f32", kv_b: "f32" },
    ...keys.dtypes,
  };
  // Documents are documents, whether somebody said so or not: ignoring them would be a wrong answer without a word.
  const packed = file.tensor("cu_seqlens") !== undefined &&
    !attention.some(({ definition: { name } }) => name === "documents");
  const { variants, read: used } = yield* completeAttention(
    packed ? [...attention, { definition: documents.definition, params: {} }] : attention,
    file,
    path,
  );
  return {
    file,
    problem: {
      batch: q.batch,
      tokens: q.tokens,
      heads: q.heads,
      kvHeads: keys.kvHeads,
      headDim: q.headDim,
      scale: 1 / Math.sqrt(q.headDim),
      attention: variants,
      ...("latent" in keys ? { latent: keys.latent } : {}),
    },
    dtypes,
    source: Source.of({ name: path, dtypes, read: file.read }),
    gradients: cotangent !== undefined,
    read: own.union(used),
  };
});

const shapeOf = ({ shape }: SafetensorsTensor): string => `[${shape.join(", ")}]`;
