/**
 * The kernel port: attention as a stateful operation, so that nothing but arriving K/V bytes crosses to the device
 * during a run. Implementations run inside the device's Worker and speak plain promises.
 *
 * @module
 */
import type { Attention, Language } from "./attention.ts";
import type { DType } from "./dtype.ts";
import type { HeadProduct } from "./head_product.ts";
import type { Latent } from "./latent.ts";
import type { Lse } from "./lse.ts";
import type { Band } from "./mask.ts";
import type { Linear } from "./linear.ts";
import type { ProgramKernel, WeightSpec } from "./program.ts";
import type { Span } from "./span.ts";

/** The query rows of one rank. */
export interface Queries {
  readonly batch: number;
  readonly heads: number;
  /** Divides `heads`; query head `h` reads K/V head `floor(h · kvHeads / heads)`. */
  readonly kvHeads: number;
  /** A multiple of 4, at most 256, or rank + rope where the queries absorb a latent. */
  readonly headDim: number;
  /** Multiplies every score; usually 1/√headDim. */
  readonly scale: number;
  /** Query tokens, the shard's length. */
  readonly tokens: number;
  readonly dtype: DType;
  /** What masks and scores are beyond bands; nothing where it is absent. */
  readonly attention?: Attention;
  /** Where blocks are latents, what makes keys and values of them. Few kernels get this: see `latent_kernel.ts`. */
  readonly latent?: Latent;
  /** [batch, tokens, heads, headDim]; may lie in shared memory. */
  readonly bytes: Uint8Array;
}

/** The K and V of one block. */
export interface KeyValues {
  readonly tokens: number;
  readonly dtype: DType;
  /** K then V, each [batch, tokens, kvHeads, headDim], or [batch, tokens, rank + rope]; may lie in shared memory. */
  readonly bytes: Uint8Array;
}

/** A rectangle of (query, key) pairs, some of which the band allows. */
export interface Tile {
  /** Index in the shard of the rectangle's first query token. */
  readonly row: number;
  readonly queries: Span;
  /** Index in the block of the rectangle's first key token. */
  readonly column: number;
  readonly keys: Span;
  /** Every pair is allowed, so that no mask needs to be computed. */
  readonly full: boolean;
  /** Of the pairs that the band allows, those count that the attention's mask allows as well; else all of them do. */
  readonly pairwise?: boolean;
}

/** What a query shard has gathered when every block was absorbed. */
export interface Attended {
  /** [batch, tokens, heads, headDim], or a latent's value for the last; normalised, 0 where a row saw no key. */
  readonly o: Float32Array<ArrayBuffer>;
  /** [batch, heads, tokens]; −∞ where a row saw no key. */
  readonly lse: Lse;
}

/** (õ, m, l) of one query shard, float32 at least, on the device from `begin` to `close`. */
export interface Accumulation {
  /**
   * Adds the pairs of `tiles` that `band` allows. Resolves when the block's bytes are not needed any more; the device
   * may lag by this one call. Called again before that, so that the next block is queued while one is computed.
   */
  readonly absorb: (
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ) => void | Promise<void>;
  /** Called once, after the last block. */
  readonly finish: () => Attended | Promise<Attended>;
  /** Frees the device memory; harmless when repeated. */
  readonly close: () => void;
}

/** What the backward pass knows of its query rows. May lie in shared memory. */
export interface Outcome {
  /** [batch, tokens, heads, headDim], over the whole sequence. */
  readonly o: Float32Array;
  /** [batch, heads, tokens], over the whole sequence: with a block's own, dq and dk are wrong without a sign of it. */
  readonly lse: Float32Array;
  /** The cotangent of o, dO: [batch, tokens, heads, headDim]. */
  readonly cotangent: Float32Array;
}

/** dq of one query shard, float32 at least, on the device from `beginBackward` to `close`. */
export interface BackwardPass {
  /**
   * Adds the pairs of `tiles` that `band` allows to dq, and gives dk then dv of these pairs alone, each
   * [batch, block tokens, kvHeads, headDim] and summed over the query heads that share a K/V head. Called again before
   * it resolves, as `Accumulation.absorb`.
   *
   * P = exp(scale · q·k − lse), D = Σ dO·o, dS = P ∘ (dO·v − D): dv = Pᵀ dO, dq = scale · dS k, dk = scale · dSᵀ q.
   */
  readonly absorb: (
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ) => Float32Array | Promise<Float32Array>;
  /** dq, [batch, tokens, heads, headDim]; 0 where a row saw no key. */
  readonly finish: () => Float32Array | Promise<Float32Array>;
  /** Frees the device memory; harmless when repeated. */
  readonly close: () => void;
}

/** What kind of machine a device is, as every report repeats it. */
export interface DeviceInfo {
  /** The plugin's name: `webgpu`, `reference`. */
  readonly name: string;
  /** What it runs on: a GPU and its driver, or `JavaScript`. */
  readonly backend: string;
  /** Arithmetic happens on the CPU; never presented as a GPU. */
  readonly software: boolean;
  readonly features: ReadonlyArray<string>;
  /** It has a backward pass. */
  readonly gradients: boolean;
  /** In which form it asks for masks and scores of pairs; absent where it knows bands alone. */
  readonly forms?: Language;
  /** Bytes of memory of the machine or, where the driver tells, of the device. */
  readonly memory: number;
  /** Bytes that one tensor may have before the device splits it. */
  readonly largestTensor: number;
  /** Components that queries may have where they absorb a latent; 256 where it is absent, as everywhere else. */
  readonly largestHeadDim?: number;
  /** What its operator should know: what it does without, and why. */
  readonly notes?: ReadonlyArray<string>;
}

/** Components that queries may have where they absorb a latent. */
export const largestHeadDimOf = ({ largestHeadDim = 256 }: DeviceInfo): number => largestHeadDim;

/** Attention on one device. */
export interface AttentionKernel {
  readonly info: DeviceInfo;
  /** Uploads the queries; their bytes are not needed any more when this resolves. */
  readonly begin: (queries: Queries) => Accumulation | Promise<Accumulation>;
  /** The same for gradients; absent where `info.gradients` is false. */
  readonly beginBackward?: (
    queries: Queries,
    outcome: Outcome,
  ) => BackwardPass | Promise<BackwardPass>;
  /** It is given queries with latents to expand, and does so itself. Its o has zeros where a value has no component. */
  readonly expandsLatents?: boolean;
  /** For latents; plain loops where it is absent. The arrays lie in shared memory. */
  readonly product?: (product: HeadProduct) => Promise<void>;
  /** For weights in the memory of the host; plain loops where it is absent. The arrays lie in shared memory. */
  readonly linear?: (linear: Linear) => Promise<void>;
  /** What decoders compute beside attention; in the memory of the host where it is absent. */
  readonly programs?: (
    weights: ReadonlyArray<WeightSpec>,
  ) => ProgramKernel | Promise<ProgramKernel>;
  /**
   * Lets go of what the end of the Worker alone would not, or not in time; the last call. A host makes it where it opens
   * the Worker with some time for that (`closing`).
   */
  readonly close?: () => void | Promise<void>;
}
