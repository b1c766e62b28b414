/**
 * The plan: a pure function of lengths, mask, layout and weights that says, before anything moves, what every rank
 * holds, computes, receives, sends on and needs in memory. Driver and ranks compute it from the same job, so that no
 * size ever has to be believed from the wire.
 *
 * @module
 */
import { Result } from "effect";
import { type DType, elementBytes } from "./dtype.ts";
import { InvalidProblem, PlanRefused } from "./errors.ts";
import type { Tile } from "./kernel.ts";
import { type Layout, shardsOf } from "./layout.ts";
import { type Band, bandOf, type Mask, pairsBetween } from "./mask.ts";
import { slice, type Span } from "./span.ts";

/** What is to be computed. */
export interface Problem {
  readonly batch: number;
  /** Length of the sequence, S. */
  readonly tokens: number;
  readonly heads: number;
  /** Divides `heads`. */
  readonly kvHeads: number;
  /** A multiple of 4, at most 256. */
  readonly headDim: number;
  /** Multiplies every score; usually 1/√headDim. */
  readonly scale: number;
  readonly mask: Mask;
}

/** What is to be computed, and over what. */
export interface PlanSpec {
  readonly problem: Problem;
  readonly layout: Layout;
  /** One number a rank: the share of the tokens that it takes. Their count is the ring size N. */
  readonly weights: ReadonlyArray<number>;
  /** Format in which K and V travel and are held. */
  readonly wire: DType;
  /** Gradients as well; false by default. */
  readonly gradients?: boolean;
}

/** Part of one shard's K and V, as it travels. */
export interface BlockPlan {
  readonly id: number;
  /** The rank that it starts from. */
  readonly home: number;
  /** Its tokens; a block never crosses from one span of its shard into the next. */
  readonly span: Span;
  /** Index in the shard of its first token. */
  readonly row: number;
  readonly bytes: number;
  /** Bytes of its gradients, which are float32 whatever the wire. */
  readonly gradientBytes: number;
  /** How far it travels: the distance to the last rank whose mask needs it, at most N − 1. */
  readonly hops: number;
}

/** One rank's compute on one block. */
export interface StepPlan {
  readonly block: BlockPlan;
  /** Hops from the block's home to this rank; 0 is the rank's own block. */
  readonly distance: number;
  /** None, all or some of the (query, key) pairs count. */
  readonly state: "skip" | "full" | "partial";
  /** Pairs that count, per head and batch entry. */
  readonly pairs: number;
  readonly tiles: ReadonlyArray<Tile>;
}

/** What one rank does for a block's gradients. They visit the ranks that K/V visited, in the same direction. */
export interface HomingPlan {
  readonly block: BlockPlan;
  /** Hops from the block's home; N is home again. */
  readonly distance: number;
  /** The rank's own share is part of them. At distance 0 it stays with the rank until the others' shares are home. */
  readonly own: boolean;
  /** The shares of the ranks before come from the left neighbour. */
  readonly receive: boolean;
}

/** Everything that one rank does. */
export interface RankPlan {
  readonly rank: number;
  /** Ranks in the ring. */
  readonly ring: number;
  readonly shard: ReadonlyArray<Span>;
  readonly tokens: number;
  /** In the order of merging, which is the order in which blocks arrive. */
  readonly steps: ReadonlyArray<StepPlan>;
  /** From the left neighbour, in this order. */
  readonly receives: ReadonlyArray<
    { readonly block: BlockPlan; readonly compute: boolean; readonly forward: boolean }
  >;
  /** To the right neighbour, in this order. */
  readonly sends: ReadonlyArray<BlockPlan>;
  /** For gradients, in this order; empty where none are asked for. */
  readonly homing: ReadonlyArray<HomingPlan>;
  readonly pairs: number;
  /** Bytes that `sends` puts on the link. */
  readonly sentBytes: number;
  /** Most bytes of K/V that the rank holds at any time. */
  readonly kvBytes: number;
  /** Most bytes that the rank holds in all: queries, accumulator, result and K/V. */
  readonly bytes: number;
}

/** A whole run. */
export interface Plan extends PlanSpec {
  readonly band: Band;
  readonly ring: number;
  readonly blocks: ReadonlyArray<BlockPlan>;
  readonly ranks: ReadonlyArray<RankPlan>;
  /** (query, key) pairs that count, per head and batch entry. */
  readonly pairs: number;
  /**
   * Floating-point operations: 4 · headDim for each pair, head and batch entry, and 10 · headDim more for gradients.
   */
  readonly flops: number;
}

/**
 * Shards travel in about this many blocks, so that a rank holds little more than its own shard: one block being
 * received, one waiting and one in use.
 */
const blocksPerShard = 4;
/** Smaller blocks would cost more in waits than they save in memory. */
const smallestBlock = 256 * 1024;
/** Larger blocks would exceed what WebGPU binds at once on any adapter. */
const largestBlock = 64 * 1024 * 1024;
/** Blocks that a rank holds beside its own: arriving, queued on the device, in use. See `ring.ts`. */
export const passingBlocks = 3;
/** Blocks of gradients in memory at once beside those that are home. See `homing.ts`. */
const passingGradients = 6;

/** Far from where sums of weights lose whole tokens. */
const largestWeight = 1e6;

const problemFault = (spec: PlanSpec): InvalidProblem | undefined => {
  const { problem, weights } = spec;
  const whole = (what: string, value: number, most: number) =>
    Number.isInteger(value) && value >= 1 && value <= most ? undefined : new InvalidProblem({
      what,
      needed: `a whole number from 1 to ${most}`,
      found: String(value),
    });
  const must = (holds: boolean, what: string, needed: string, found: string) =>
    holds ? undefined : new InvalidProblem({ what, needed, found });
  const { batch, tokens, heads, kvHeads, headDim, scale, mask } = problem;
  return whole("the batch size", batch, 65_535) ??
    whole("the sequence length", tokens, 2 ** 29) ??
    whole("the number of query heads", heads, 65_535) ??
    whole("the number of KV heads", kvHeads, 65_535) ??
    must(
      heads % kvHeads === 0,
      "the number of query heads",
      `a multiple of the ${kvHeads} KV heads`,
      String(heads),
    ) ??
    must(
      headDim >= 4 && headDim <= 256 && headDim % 4 === 0,
      "the head dim",
      "a multiple of 4 from 4 to 256",
      String(headDim),
    ) ??
    must(Number.isFinite(scale), "the score scale", "a finite number", String(scale)) ??
    (mask.kind === "window" ? whole("the window", mask.window, 2 ** 29) : undefined) ??
    whole("the ring size", weights.length, 65_534) ??
    must(
      weights.every((weight) => weight >= 0 && weight <= largestWeight) &&
        weights.some((weight) => weight > 0),
      "the weights",
      `numbers from 0 to ${largestWeight}, not all 0`,
      weights.join(", "),
    );
};

/** Cuts a shard into blocks, span by span. */
const cut = (shard: ReadonlyArray<Span>, tokenBytes: number) => {
  const tokens = shard.reduce((sum, span) => sum + span.count, 0);
  const smallest = Math.max(1, Math.floor(smallestBlock / tokenBytes));
  const largest = Math.max(1, Math.floor(largestBlock / tokenBytes));
  const size = Math.min(Math.max(Math.ceil(tokens / blocksPerShard), smallest), largest);
  const pieces: Array<{ readonly span: Span; readonly row: number }> = [];
  let row = 0;
  for (const span of shard) {
    const parts = Math.ceil(span.count / size);
    for (let part = 0; part < parts; part++) {
      const from = Math.floor(part * span.count / parts);
      const count = Math.floor((part + 1) * span.count / parts) - from;
      pieces.push({ span: slice(span, from, count), row: row + from });
    }
    row += span.count;
  }
  return pieces;
};

/** The rectangles of a shard and a block that hold allowed pairs. */
const tilesOf = (band: Band, shard: ReadonlyArray<Span>, keys: Span) => {
  const tiles: Array<Tile> = [];
  let pairs = 0, row = 0;
  for (const queries of shard) {
    const allowed = pairsBetween(band, queries, keys);
    if (allowed > 0) {
      const full = allowed === queries.count * keys.count;
      tiles.push({ row, queries, column: 0, keys, full });
    }
    pairs += allowed;
    row += queries.count;
  }
  return { tiles, pairs };
};

/** The plan of a run, or the sentence that says why there is none. */
export const planOf = (spec: PlanSpec): Result.Result<Plan, InvalidProblem> => {
  const fault = problemFault(spec);
  if (fault !== undefined) return Result.fail(fault);
  const { problem, layout, weights, wire, gradients = false } = spec;
  const { batch, heads, kvHeads, headDim } = problem;
  const band = bandOf(problem.mask);
  const ring = weights.length;
  const shards = shardsOf(layout, problem.tokens, weights);
  const tokenElements = 2 * batch * kvHeads * headDim;
  const tokenBytes = tokenElements * elementBytes(wire);

  // By part first, then by distance: each wave of parts is a ring pass of its own. With all of a rank's own blocks
  // sent first, every rank would wait for its right neighbour to take the second one, and none ever could.
  const pieces = shards.map((shard) => cut(shard, tokenBytes));
  const waves = Math.max(...pieces.map((shard) => shard.length));
  const steps: Array<Array<StepPlan>> = shards.map(() => []);
  const homing: Array<Array<HomingPlan>> = shards.map(() => []);
  const blocks: Array<BlockPlan> = [];
  for (let wave = 0; wave < waves; wave++) {
    const inWave = new Map<number, BlockPlan & { hops: number }>();
    pieces.forEach((shard, home) => {
      const piece = shard[wave];
      if (piece === undefined) return;
      const block = {
        id: blocks.length,
        home,
        ...piece,
        bytes: piece.span.count * tokenBytes,
        gradientBytes: piece.span.count * tokenElements * 4,
        hops: 0,
      };
      blocks.push(block);
      inWave.set(home, block);
    });
    // A block's share of its home rank stays there; the others' go once around the rest of the ring, each rank adding
    // its own to what came, so that N − 1 hops bring them home.
    const underWay = new Set<BlockPlan>();
    for (let distance = 0; distance < ring; distance++) {
      shards.forEach((shard, rank) => {
        const block = inWave.get((rank - distance + ring) % ring);
        if (block === undefined) return;
        const { tiles, pairs } = tilesOf(band, shard, block.span);
        if (pairs > 0) block.hops = distance;
        const all = shard.reduce((sum, span) => sum + span.count, 0) * block.span.count;
        const state = pairs === 0 ? "skip" : pairs === all ? "full" : "partial";
        steps[rank]!.push({ block, distance, state, pairs, tiles });
        const [own, receive] = [pairs > 0, underWay.has(block)];
        if (own || receive) homing[rank]!.push({ block, distance, own, receive });
        if (own && distance > 0) underWay.add(block);
      });
    }
    for (const block of underWay) {
      homing[block.home]!.push({ block, distance: ring, own: false, receive: true });
    }
  }

  const ranks = shards.map((shard, rank): RankPlan => {
    const mine = steps[rank]!;
    const tokens = shard.reduce((sum, span) => sum + span.count, 0);
    const receives = mine
      .filter(({ block, distance }) => distance > 0 && block.hops >= distance)
      .map(({ block, distance, state }) => ({
        block,
        compute: state !== "skip",
        forward: block.hops > distance,
      }));
    const sends = mine.filter(({ block, distance }) => block.hops > distance)
      .map(({ block }) => block);
    const sum = (values: ReadonlyArray<number>) => values.reduce((a, b) => a + b, 0);
    const kvBytes = tokens * tokenBytes +
      sum(receives.map(({ block }) => block.bytes).sort((a, b) => b - a).slice(0, passingBlocks));
    const rows = batch * tokens * heads;
    const largest = Math.max(0, ...mine.map(({ block }) => block.bytes));
    // For gradients: o, dO and dq in float32 with the queries, and those again on the device with two numbers a row;
    // dk and dv of the shard, and blocks of them as `homing.ts` says.
    const backward = rows * (7 * headDim + 3) * 4 + tokens * tokenElements * 4 +
      passingGradients * Math.max(0, ...mine.map(({ block }) => block.gradientBytes));
    return {
      rank,
      ring,
      shard,
      tokens,
      steps: mine,
      receives,
      sends,
      homing: gradients ? homing[rank]! : [],
      pairs: sum(mine.map(({ pairs }) => pairs)),
      sentBytes: sum(sends.map(({ bytes }) => bytes)),
      kvBytes,
      // Queries, õ and the result in float32, m and l; K/V once more on the device, one block at a time.
      bytes: rows * (3 * headDim + 3) * 4 + kvBytes + largest + (gradients ? backward : 0),
    };
  });

  const pairs = ranks.reduce((sum, rank) => sum + rank.pairs, 0);
  return Result.succeed({
    ...spec,
    band,
    ring,
    blocks,
    ranks,
    pairs,
    flops: (gradients ? 14 : 4) * headDim * heads * batch * pairs,
  });
};

/** The refusal of a plan that asks more than `memory` bytes of a rank, before anything was moved. */
export const refusalFor = (plan: Plan, memory: number): PlanRefused | undefined => {
  const fullest = Math.max(...plan.ranks.map(({ bytes }) => bytes));
  if (fullest <= memory) return undefined;
  return new PlanRefused({
    needed: `${fullest} bytes of memory on its fullest rank`,
    found: `${Math.floor(memory)}`,
    knob: `use more ranks than ${plan.ring} (--ring) or a narrower format for K and V (--wire f16)`,
  });
};

/** Largest share of the pairs over the mean share: 1 is perfect balance, and N the worst. */
export const balanceOf = (plan: Plan): number =>
  Math.max(...plan.ranks.map(({ pairs }) => pairs)) / (plan.pairs / plan.ring);
