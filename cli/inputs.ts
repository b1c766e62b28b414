/**
 * The tensors that `attend` reads: `q` [batch, sequence, heads, head_dim], `k` and `v` [batch, sequence, kv_heads,
 * head_dim], and for gradients `do`, shaped as `q`; in f32, f16 or bf16.
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
import { type Input as TensorName, Source } from "../runtime/driver.ts";
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
  /** Names of tensors that are none of ours. */
  readonly ignored: ReadonlyArray<string>;
}

/** Opens a file and checks its tensors against each other. */
export const openInput = Effect.fn("openInput")(function* (
  path: string,
  attention: ReadonlyArray<Variant>,
): Effect.fn.Return<Input, FileInvalid | TensorInvalid, Scope.Scope> {
  const file = yield* openSafetensors(path);
  const refuse = (tensor: string, needed: string, found: string) =>
    new TensorInvalid({ file: path, tensor, needed, found });
  const read = Effect.fnUntraced(function* (name: TensorName) {
    const tensor = file.tensor(name);
    const which = name === "q" || name === "do" ? "heads" : "kv_heads";
    const layout = `[batch, sequence, ${which}, head_dim]`;
    if (tensor === undefined) {
      const names = [...file.tensors.keys()].map((key) => `"${key}"`).join(", ") || "none";
      return yield* refuse(name, `there, ${layout}`, `tensors ${names}`);
    }
    const dtype = formats.get(tensor.dtype);
    if (dtype === undefined) return yield* refuse(name, "of type F32, F16 or BF16", tensor.dtype);
    if (tensor.shape.length !== 4) {
      return yield* refuse(name, `of 4 dimensions, ${layout}`, shapeOf(tensor));
    }
    const [batch, tokens, heads, headDim] = tensor.shape as [number, number, number, number];
    return { tensor, dtype, batch, tokens, heads, headDim };
  });
  const [q, k, v] = [yield* read("q"), yield* read("k"), yield* read("v")];
  const empty = q.tensor.shape.includes(0);
  if (empty) return yield* refuse("q", "of at least one element", shapeOf(q.tensor));
  if (q.headDim % 4 !== 0 || q.headDim > 256) {
    return yield* refuse("q", "of a head_dim that is a multiple of 4 up to 256", shapeOf(q.tensor));
  }
  for (const [name, other] of [["k", k], ["v", v]] as const) {
    const wanted = [q.batch, q.tokens, k.heads, q.headDim];
    if (wanted.some((size, i) => size !== other.tensor.shape[i])) {
      const words = name === "k"
        ? `[${q.batch}, ${q.tokens}, kv_heads, ${q.headDim}] to go with q`
        : `[${wanted.join(", ")}], the shape of k`;
      return yield* refuse(name, words, shapeOf(other.tensor));
    }
  }
  const cotangent = file.tensor("do") === undefined ? undefined : yield* read("do");
  if (cotangent?.tensor.shape.some((size, i) => size !== q.tensor.shape[i]) === true) {
    return yield* refuse(
      "do",
      `[${q.tensor.shape.join(", ")}], the shape of q`,
      shapeOf(cotangent.tensor),
    );
  }
  const dtypes = { q: q.dtype, k: k.dtype, v: v.dtype, do: cotangent?.dtype ?? "f32" };
  if (k.heads === 0 || q.heads % k.heads !== 0) {
    return yield* refuse(
      "k",
      `of a number of kv_heads that divides the ${q.heads} heads of q`,
      shapeOf(k.tensor),
    );
  }
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
      kvHeads: k.heads,
      headDim: q.headDim,
      scale: 1 / Math.sqrt(q.headDim),
      attention: variants,
    },
    dtypes,
    source: Source.of({ name: path, dtypes, read: file.read }),
    gradients: cotangent !== undefined,
    ignored: [...file.tensors.keys()].filter((name) =>
      !["q", "k", "v", "do"].includes(name) && !used.has(name)
    ),
  };
});

const shapeOf = ({ shape }: SafetensorsTensor): string => `[${shape.join(", ")}]`;
