/**
 * Attention over arrays: what a script calls.
 *
 * @module
 */
import { Effect } from "effect";
import type { Checkpoints } from "./checkpoint.ts";
import type { Crew } from "./crew.ts";
import { deaf, drive, type RunRecord } from "./driver.ts";
import { bytesOf, type DType } from "./dtype.ts";
import {
  type FileInvalid,
  type FrameRejected,
  InvalidProblem,
  type LinkError,
  type RankFailed,
  type ServerUnavailable,
  type TensorInvalid,
  type VariantInvalid,
} from "./errors.ts";
import { type Input, Sink, Source } from "./exchange.ts";
import { headerBytes } from "./frame.ts";
import { type Job, newRun } from "./job.ts";
import type { Layout } from "./layout.ts";
import { layoutFor } from "./layout_choice.ts";
import { type LatentShape, upSizeOf, widthOf } from "./latent.ts";
import { Links } from "./link.ts";
import { asLse, type Lse } from "./lse.ts";
import { outsideOfThreads } from "./attention_files.ts";
import { type Problem, valueDimOf } from "./plan.ts";
import type { Variant } from "./variant.ts";

/** Payload bytes of a frame on links that carry frames of `maxFrame` bytes. */
export const chunkFor = (maxFrame: number): number => Math.floor((maxFrame - headerBytes) / 8) * 8;

/** Everything of a job that has a default. */
export interface RunOptions {
  /** Ranks in the ring; 1 by default. */
  readonly ring?: number;
  /** By default the one that suits the attention. */
  readonly layout?: Layout;
  /** One number a rank, the share of the tokens that it takes; equal by default. */
  readonly weights?: ReadonlyArray<number>;
  /** Format in which K and V travel; their own by default. */
  readonly wire?: DType;
  /** Gradients as well; false by default. */
  readonly gradients?: boolean;
}

/** A job for the links at hand. */
export const jobFor = Effect.fn("jobFor")(function* (
  problem: Problem,
  dtypes: { readonly q: DType; readonly kv: DType },
  { ring = 1, layout, weights, wire, gradients = false }: RunOptions,
) {
  const { maxFrame } = yield* Links;
  if (weights !== undefined && weights.length !== ring) {
    return yield* new InvalidProblem({
      what: "the number of weights",
      needed: `the ring size, ${ring}`,
      found: String(weights.length),
    });
  }
  if (!(Number.isInteger(ring) && ring >= 1 && ring < 65_535)) {
    return yield* new InvalidProblem({
      what: "the ring size",
      needed: "a whole number from 1 to 65534",
      found: String(ring),
    });
  }
  const spec = {
    problem,
    weights: weights ?? Array.from({ length: ring }, () => 1),
    gradients,
    wire: wire ?? dtypes.kv,
  };
  return {
    ...spec,
    run: yield* newRun,
    epoch: 0,
    layout: layout ?? (yield* Effect.fromResult(layoutFor(spec))),
    dtype: dtypes.q,
    chunkBytes: chunkFor(maxFrame),
  } satisfies Job;
});

/** Keys and values in memory. */
interface KeysAndValues {
  /** As many as `heads` by default. */
  readonly kvHeads?: number;
  /** [batch, tokens, kvHeads, headDim] */
  readonly k: Float32Array;
  /** [batch, tokens, kvHeads, headDim] */
  readonly v: Float32Array;
  readonly latents?: never;
}

/** Latents, which keys and values are made of. */
interface Latents {
  readonly latents: LatentShape & {
    /** [batch, tokens, rank + rope]: what keys and values are made of, and the rope part of the keys. */
    readonly values: Float32Array;
    /** [heads, headDim − rope + value, rank]: what makes keys without rope, and then values, of the first `rank`. */
    readonly up: Float32Array;
  };
  readonly kvHeads?: never;
  readonly k?: never;
  readonly v?: never;
}

/** Inputs in memory, and how to attend. */
export type AttendOptions = AttendCommon & (KeysAndValues | Latents);

interface AttendCommon extends Omit<RunOptions, "gradients"> {
  readonly batch?: number;
  /** Sequence length, S. */
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  /** [batch, tokens, heads, headDim] */
  readonly q: Float32Array;
  /** dO, [batch, tokens, heads, headDim]: then the result has gradients. */
  readonly cotangent?: Float32Array;
  /** Which pairs count, and what is done to their scores: all of these at once. Full attention by default. */
  readonly attention?: ReadonlyArray<Variant>;
  /** 1/√headDim by default. */
  readonly scale?: number;
  /** Where what ranks have gathered is kept, and what was kept before; nowhere by default. */
  readonly checkpoints?: Checkpoints;
}

/** What is wrong with options that no type was held against. */
const optionsFault = ({ attention = [], k, v, latents }: AttendOptions) => {
  const fault = (what: string, needed: string, found: string) =>
    new InvalidProblem({ what, needed, found });
  const variants = "a list of variants, as causal() gives them";
  if (!Array.isArray(attention)) return fault("the attention", variants, typeof attention);
  const odd = attention.findIndex((one) =>
    typeof one?.definition !== "object" || typeof one.params !== "object"
  );
  if (odd >= 0) {
    const found = typeof attention[odd] === "function"
      ? "a function that makes one"
      : "something else";
    return fault("the attention", variants, `${found} at index ${odd}`);
  }
  if (latents !== undefined && (k ?? v) !== undefined) {
    return fault("k and v", "absent beside latents", "both");
  }
};

/** Attention over the whole sequence, and how it came about. */
export interface AttendResult extends RunRecord {
  /** [batch, tokens, heads, headDim], or a latent's value for the last */
  readonly o: Float32Array<ArrayBuffer>;
  /** [batch, heads, tokens] */
  readonly lse: Lse;
  /** Of Σ dO·o, each shaped as its tensor; where a cotangent was given. */
  readonly gradients?: {
    readonly dq: Float32Array<ArrayBuffer>;
    readonly dk: Float32Array<ArrayBuffer>;
    readonly dv: Float32Array<ArrayBuffer>;
  };
}

/**
 * Exact attention over a ring: of fibers of this process with `inProcess`, or of the nodes of a cluster with
 * `onCluster`.
 *
 * @example A ring of two
 * ```ts
 * import { Effect, Result } from "effect";
 * import { attend, inProcess, reference } from "../mod.ts";
 *
 * const x = Float32Array.from({ length: 6 * 4 }, (_, i) => Math.sin(i));
 * const { o } = await attend({ tokens: 6, heads: 1, headDim: 4, q: x, k: x, v: x, ring: 2 }).pipe(
 *   Effect.provide(inProcess(reference)),
 *   Effect.runPromise,
 * );
 * console.log(o.length); // => 24
 * ```
 */
export const attend = (options: AttendOptions): Effect.Effect<
  AttendResult,
  | FileInvalid
  | FrameRejected
  | InvalidProblem
  | LinkError
  | RankFailed
  | ServerUnavailable
  | TensorInvalid
  | VariantInvalid,
  Crew | Links
> =>
  Effect.gen(function* () {
    yield* outsideOfThreads;
    const { q, cotangent, batch = 1, tokens, heads, headDim, attention = [], latents } = options;
    const { kvHeads = heads, scale = 1 / Math.sqrt(headDim) } = options;
    const fault = optionsFault(options);
    if (fault !== undefined) return yield* fault;
    const problem = {
      ...{ batch, tokens, heads, kvHeads, headDim, scale, attention },
      ...(latents === undefined
        ? {}
        : { latent: { rank: latents.rank, rope: latents.rope, value: latents.value } }),
    };
    const job = yield* jobFor(problem, { q: "f32", kv: "f32" }, {
      ...options,
      gradients: cotangent !== undefined,
    });
    const rows = batch * tokens;
    const elements = { q: rows * heads * headDim, k: rows * kvHeads * headDim };
    const named: ReadonlyArray<readonly [Input, Float32Array | undefined, number, string]> = [
      ["q", q, elements.q, "batch × tokens × heads × headDim"],
      ...(cotangent === undefined ? [] : [
        ["do", cotangent, elements.q, "batch × tokens × heads × headDim"],
      ] as const),
      ...(latents === undefined
        ? [
          ["k", options.k, elements.k, "batch × tokens × kvHeads × headDim"],
          ["v", options.v, elements.k, "batch × tokens × kvHeads × headDim"],
        ] as const
        : [
          ["latent", latents.values, rows * widthOf(latents), "batch × tokens × (rank + rope)"],
          [
            "kv_b",
            latents.up,
            upSizeOf(latents, problem),
            "heads × (headDim − rope + value) × rank",
          ],
        ] as const),
    ];
    const inputs = new Map<Input, Float32Array>();
    for (const [name, array, needed, product] of named) {
      if (!(array instanceof Float32Array)) {
        return yield* new InvalidProblem({
          what: name,
          needed: "a Float32Array",
          found: array === undefined ? "none" : typeof array,
        });
      }
      inputs.set(name, array);
      if (array.length === needed) continue;
      return yield* new InvalidProblem({
        what: `the length of ${name}`,
        needed: `${needed} elements, ${product}`,
        found: String(array.length),
      });
    }
    const results = {
      o: new Float32Array(rows * heads * valueDimOf(problem)),
      lse: asLse(new Float32Array(batch * heads * tokens)),
      dq: new Float32Array(job.gradients ? elements.q : 0),
      dk: new Float32Array(job.gradients ? elements.k : 0),
      dv: new Float32Array(job.gradients ? elements.k : 0),
    };
    const source = Source.of({
      name: "the arrays given",
      dtypes: { q: "f32", k: "f32", v: "f32", do: "f32", latent: "f32", kv_b: "f32" },
      read: (tensor, regions) =>
        Effect.sync(() => {
          const parts = regions.map(({ offset, length }) =>
            inputs.get(tensor)!.subarray(offset, offset + length)
          );
          if (parts.length === 1) return bytesOf(parts[0]!);
          const values = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
          let at = 0;
          for (const part of parts) {
            values.set(part, at);
            at += part.length;
          }
          return bytesOf(values);
        }),
    });
    const sink = Sink.of({
      write: (tensor, regions, bytes) =>
        Effect.sync(() => {
          const written = bytesOf(results[tensor]);
          let at = 0;
          for (const { offset, length } of regions) {
            written.set(bytes.subarray(at * 4, (at + length) * 4), offset * 4);
            at += length;
          }
        }),
    });
    const record = yield* drive(job, deaf, options.checkpoints)
      .pipe(
        Effect.provideService(Source, source),
        Effect.provideService(Sink, sink),
      );
    const { o, lse, ...gradients } = results;
    return { ...record, o, lse, ...(job.gradients ? { gradients } : {}) };
  });
