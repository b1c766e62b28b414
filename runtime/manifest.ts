/**
 * The manifest of a run: every transfer that its plan asks for, with address and size, the same at both ends.
 *
 * @module
 */
import { elementBytes } from "./dtype.ts";
import type { Job } from "./job.ts";
import { upSizeOf } from "./latent.ts";
import { type BlockPlan, type RankPlan, valueDimOf } from "./plan.ts";
import type { Transfer } from "./transfer.ts";

/** What queries have gathered, as results are. */
interface Gathered {
  readonly o: Transfer;
  readonly lse: Transfer;
}

/** One number, little-endian. */
const markBytes = 4;

/** The mark of a checkpoint of so many blocks. */
export const sealMark = (merged: number): Uint8Array => {
  const mark = new DataView(new ArrayBuffer(markBytes));
  mark.setUint32(0, merged, true);
  return new Uint8Array(mark.buffer);
};

/** How many blocks a checkpoint is of. */
export const openMark = ({ buffer, byteOffset }: Uint8Array): number =>
  new DataView(buffer, byteOffset, markBytes).getUint32(0, true);

/** The transfers of a job. */
export interface Manifest {
  /** [batch, tokens, heads, headDim] in the job's dtype, from the driver to a rank. */
  readonly queries: (rank: RankPlan) => Transfer;
  /** What makes keys and values of latents, `up` in float32, from the driver to a rank. */
  readonly up: (rank: RankPlan) => Transfer;
  /** A K/V block, K then V, each [batch, tokens, kvHeads, headDim], or latents, in the wire format, to its home. */
  readonly home: (block: BlockPlan) => Transfer;
  /** A K/V block's hop to rank `to` from the stop before on its path. */
  readonly hop: (block: BlockPlan, to: number) => Transfer;
  /** The same block once more, for its gradients. */
  readonly hopAgain: (block: BlockPlan, to: number) => Transfer;
  /** The block's dk then dv in float32, [batch, tokens, kvHeads, headDim] each, to rank `to` on their way home. */
  readonly gradientHop: (block: BlockPlan, to: number) => Transfer;
  /** dO, [batch, tokens, heads, headDim] in float32, from the driver to a rank. */
  readonly cotangent: (rank: RankPlan) => Transfer;
  /** [batch, tokens, heads, headDim], or a latent's value for the last, in float32, back to the driver. */
  readonly o: (rank: RankPlan) => Transfer;
  /** [batch, heads, tokens] in float32, back to the driver. */
  readonly lse: (rank: RankPlan) => Transfer;
  /** The n-th checkpoint of a rank, from 1 on: how many blocks it is of, then what the queries gathered of them. */
  readonly checkpoint: (rank: RankPlan, n: number) => Gathered & { readonly mark: Transfer };
  /** The same, from the driver to a rank that goes on with it. */
  readonly restored: (rank: RankPlan) => Gathered;
  /** [batch, tokens, heads, headDim] in float32, back to the driver. */
  readonly dq: (rank: RankPlan) => Transfer;
  /** A home block's gradients in float32, dk then dv, back to the driver. */
  readonly gradients: (block: BlockPlan) => Transfer;
}

/** The manifest of a job. */
export const manifestOf = (job: Job): Manifest => {
  const { batch, heads, headDim, latent } = job.problem;
  const ring = job.weights.length;
  const common = {
    run: job.run,
    epoch: job.epoch,
    layer: 0,
    step: 0,
    chunkBytes: job.chunkBytes,
  };
  const rows = (rank: RankPlan) => batch * rank.tokens * heads;
  const gathered = (rank: RankPlan) => ({
    o: { kind: "o", bytes: rows(rank) * valueDimOf(job.problem) * 4 },
    lse: { kind: "lse", bytes: rows(rank) * 4 },
  } as const);
  const result = (rank: RankPlan) =>
    ({ ...common, block: rank.rank, from: rank.rank, to: "driver" }) as const;
  const hop = ({ id, home, path }: BlockPlan, to: number) => {
    const stops = [home, ...path, home];
    return {
      ...common,
      block: id,
      step: (to - home + ring - 1) % ring + 1,
      from: stops[stops.indexOf(to, 1) - 1]!,
      to,
    };
  };
  const toRank = (rank: RankPlan) =>
    ({ ...common, block: rank.rank, from: "driver", to: rank.rank }) as const;
  return {
    queries: (rank) => ({
      ...toRank(rank),
      kind: "q",
      bytes: rows(rank) * headDim * elementBytes(job.dtype),
    }),
    up: (rank) => ({
      ...toRank(rank),
      kind: "up",
      bytes: latent === undefined ? 0 : 4 * upSizeOf(latent, job.problem),
    }),
    cotangent: (rank) => ({ ...toRank(rank), kind: "do", bytes: rows(rank) * headDim * 4 }),
    home: ({ id, home, bytes }) => ({
      ...common,
      kind: "kv",
      block: id,
      from: "driver",
      to: home,
      bytes,
    }),
    hop: (block, to) => ({ ...hop(block, to), kind: "kv", bytes: block.bytes }),
    hopAgain: (block, to) => ({ ...hop(block, to), kind: "kv again", bytes: block.bytes }),
    gradientHop: (block, to) => ({ ...hop(block, to), kind: "dkv", bytes: block.gradientBytes }),
    o: (rank) => ({ ...result(rank), ...gathered(rank).o }),
    lse: (rank) => ({ ...result(rank), ...gathered(rank).lse }),
    checkpoint: (rank, n) => {
      const numbered = { ...result(rank), step: n };
      return {
        mark: { ...numbered, kind: "mark", bytes: markBytes },
        o: { ...numbered, ...gathered(rank).o },
        lse: { ...numbered, ...gathered(rank).lse },
      };
    },
    restored: (rank) => ({
      o: { ...toRank(rank), ...gathered(rank).o },
      lse: { ...toRank(rank), ...gathered(rank).lse },
    }),
    dq: (rank) => ({ ...result(rank), kind: "dq", bytes: rows(rank) * headDim * 4 }),
    gradients: ({ id, home, gradientBytes }) => ({
      ...common,
      kind: "dkv",
      block: id,
      from: home,
      to: "driver",
      bytes: gradientBytes,
    }),
  };
};
