/**
 * What contenders are asked to compute, and its inputs. A job crosses to their processes as JSON; its tensors lie as
 * raw float32 in files of one folder, so that contenders in any language read the same numbers.
 *
 * @module
 */
import { normals } from "../cli/random.ts";

/** Attention of as many query heads as K/V heads, one batch entry, scaled by 1/√headDim. */
export interface Shape {
  readonly heads: number;
  readonly tokens: number;
  readonly headDim: number;
  readonly causal: boolean;
}

/**
 * `matmul` gives c = a · b, all [size, size]. `attention` gives o, and may give lse; `gradients` gives dq, dk and dv
 * besides, for the cotangent dO of o. Tensors are [tokens, heads, headDim], lse is [heads, tokens].
 */
export type Job =
  | { readonly kind: "matmul"; readonly size: number }
  | ({ readonly kind: "attention" | "gradients" } & Shape);

/** Tensors by their names. */
export type Tensors = Readonly<Record<string, Float32Array>>;

/** Floating-point operations that the job needs, whatever a contender does. */
export const flopsOf = (job: Job): number => {
  if (job.kind === "matmul") return 2 * job.size ** 3;
  const { heads, tokens, headDim, causal } = job;
  const pairs = heads * (causal ? tokens * (tokens + 1) / 2 : tokens ** 2);
  // Two products forward; backward needs the scores once more, and four products for dP, dq, dk and dv.
  return (job.kind === "attention" ? 4 : 14) * headDim * pairs;
};

/** "8 × 2048 × 64, causal" */
export const titleOf = (job: Job): string =>
  job.kind === "matmul"
    ? `${job.size} × ${job.size} × ${job.size}`
    : `${job.heads} × ${job.tokens} × ${job.headDim}, ${job.causal ? "causal" : "full"}`;

/** Standard normal inputs, the same every time. */
export const inputsOf = (job: Job): Tensors => {
  const random = normals(job.kind.length);
  if (job.kind === "matmul") return { a: random(job.size ** 2), b: random(job.size ** 2) };
  const size = job.tokens * job.heads * job.headDim;
  const inputs = { q: random(size), k: random(size), v: random(size) };
  return job.kind === "attention" ? inputs : { ...inputs, dO: random(size) };
};

/** Writes each tensor to its own file. */
export const writeTensors = async (folder: string, tensors: Tensors): Promise<void> => {
  for (const [name, values] of Object.entries(tensors)) {
    await Deno.writeFile(`${folder}/${name}.f32`, new Uint8Array(new Float32Array(values).buffer));
  }
};

/** Reads the tensors of these names. */
export const readTensors = async (
  folder: string,
  names: ReadonlyArray<string>,
): Promise<Tensors> =>
  Object.fromEntries(
    await Promise.all(
      names.map(async (name) =>
        [name, new Float32Array((await Deno.readFile(`${folder}/${name}.f32`)).buffer)] as const
      ),
    ),
  );
