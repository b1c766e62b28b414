/**
 * The plan: a pure function of lengths, mask, layout and weights that says, before anything moves, what every rank
 * holds, computes, receives, sends on and needs in memory. Driver and ranks compute it from the same job, so that no
 * size ever has to be believed from the wire.
 *
 * @module
 */
import { Result } from "effect";
import { type DType, elementBytes } from "./dtype.ts";
import { type Attention, resolveAttention, thrownBy } from "./attention.ts";
import { InvalidProblem, PlanRefused, VariantInvalid } from "./errors.ts";
import { latentFlops, type LatentForm, type LatentShape, upSizeOf, widthOf } from "./latent.ts";
import type { Tile } from "./kernel.ts";
import { type Layout, shardsOf } from "./layout.ts";
import { solvedShards } from "./solved_layout.ts";
import { countUpTo, positionAt, slice, type Span } from "./span.ts";
import { Asking, tilesOf } from "./tiles.ts";
import type { Variant } from "./variant.ts";

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
  /** Which pairs count, and what is done to their scores: all of these at once. Full attention where there is none. */
  readonly attention: ReadonlyArray<Variant>;
  /** Keys and values travel as latents; then there are as many KV heads as query heads. */
  readonly latent?: LatentShape;
}

/** Components of each head of o. */
export const valueDimOf = ({ headDim, latent }: Problem): number => latent?.value ?? headDim;

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
  /** Who has which tokens already, where no layout says so: queries and keys of each rank. */
  readonly held?: {
    readonly queries: ReadonlyArray<ReadonlyArray<Span>>;
    readonly keys: ReadonlyArray<ReadonlyArray<Span>>;
  };
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
  /** The ranks that it visits after its home, in this order: those whose queries see any of it, and no others. */
  readonly path: ReadonlyArray<number>;
}

/** One rank's compute on one block. */
export interface StepPlan {
  readonly block: BlockPlan;
  /** Ranks from the block's home to this one, around the ring; 0 is the rank's own block. */
  readonly distance: number;
  /** None, all or some of the (query, key) pairs count. */
  readonly state: "skip" | "full" | "partial";
  /** Pairs that count, per head and batch entry. */
  readonly pairs: number;
  readonly tiles: ReadonlyArray<Tile>;
}

/** What one rank does for a block's gradients. They visit the ranks that K and V visited, in the same order. */
export interface HomingPlan {
  readonly block: BlockPlan;
  /** The rank's own share is part of them. That of the home rank stays with it until the others' shares are home. */
  readonly own: boolean;
  /** From where the shares of the ranks before come, if there are any. */
  readonly from?: number;
  /** Where they go then; nowhere when they are home. */
  readonly to?: number;
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
  /** What comes from other ranks, in this order; `to` is where it goes on. */
  readonly receives: ReadonlyArray<
    { readonly block: BlockPlan; readonly from: number; readonly to?: number }
  >;
  /** What goes to other ranks, in this order. */
  readonly sends: ReadonlyArray<{ readonly block: BlockPlan; readonly to: number }>;
  /** Blocks that there is room for beside its own. */
  readonly room: number;
  /** Gradients of blocks that there is room for while those before are being added and passed on. */
  readonly homingRoom: number;
  /** For gradients, in this order; empty where none are asked for. */
  readonly homing: ReadonlyArray<HomingPlan>;
  readonly pairs: number;
  /** How it computes with latents, where these travel: what takes fewer operations. */
  readonly latentForm?: LatentForm;
  /** And how many these are. */
  readonly latentFlops?: number;
  /** Bytes that `sends` puts on the link. */
  readonly sentBytes: number;
  /** Most bytes of K/V that the rank holds at any time. */
  readonly kvBytes: number;
  /** Most bytes that the rank holds in all: queries, accumulator, result and K/V. */
  readonly bytes: number;
}

/** A whole run. */
export interface Plan extends PlanSpec {
  readonly attention: Attention;
  readonly ring: number;
  readonly blocks: ReadonlyArray<BlockPlan>;
  readonly ranks: ReadonlyArray<RankPlan>;
  /** (query, key) pairs that count, per head and batch entry; the mean, where these differ. */
  readonly pairs: number;
  /** Every pair was counted. Else there are at most so many: asking a mask for each would take too long. */
  readonly counted: boolean;
  /**
   * Floating-point operations: 4 · headDim for each pair, head and batch entry, and 10 · headDim more for gradients; with
   * latents what `latentFlops` says.
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
/** Nor are the keys and values that are made of a block of latents. */
const largestExpanded = 64 * 1024 * 1024;
/** Blocks that a rank holds beside its own, at least: arriving, queued on the device, in use. See `ring.ts`. */
const passingBlocks = 3;
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
  const quads = (what: string, value: number, least: number, most: number) =>
    must(
      value >= least && value <= most && value % 4 === 0,
      what,
      `a multiple of 4 from ${least} to ${most}`,
      String(value),
    );
  const { batch, tokens, heads, kvHeads, headDim, scale, latent } = problem;
  const latentFault = () =>
    latent === undefined ? undefined : quads("the rank of the latents", latent.rank, 4, 4096) ??
      quads("the rope components", latent.rope, 0, headDim - 4) ??
      quads("the components of a value", latent.value, 4, headDim) ??
      must(kvHeads === heads, "the number of KV heads", "that of the query heads", `${kvHeads}`) ??
      must(
        spec.gradients !== true,
        "attention with latents",
        "without gradients",
        "a cotangent",
      );
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
    quads("the head dim", headDim, 4, 256) ??
    latentFault() ??
    must(Number.isFinite(scale), "the score scale", "a finite number", String(scale)) ??
    whole("the ring size", weights.length, 65_534) ??
    must(
      weights.every((weight) => weight >= 0 && weight <= largestWeight) &&
        weights.some((weight) => weight > 0),
      "the weights",
      `numbers from 0 to ${largestWeight}, not all 0`,
      weights.join(", "),
    );
};

/**
 * Stretches of keys that a rank needs of another's span, at most: each is a block of its own, which costs a message. Where
 * there are more, the shortest gaps between them go along.
 */
const mostStretches = 16;

/** Stretches [from, to) in ascending order, those that touch as one. */
const joinedStretches = (
  stretches: ReadonlyArray<readonly [number, number]>,
): ReadonlyArray<readonly [number, number]> => {
  const joined: Array<[number, number]> = [];
  for (const [from, to] of stretches.toSorted(([a], [b]) => a - b)) {
    const last = joined.at(-1);
    if (last !== undefined && from <= last[1]) last[1] = Math.max(last[1], to);
    else joined.push([from, to]);
  }
  while (joined.length > mostStretches) {
    const gaps = joined.slice(1).map(([from], i) => from - joined[i]![1]);
    const at = gaps.indexOf(Math.min(...gaps));
    joined.splice(at, 2, [joined[at]![0], joined[at + 1]![1]]);
  }
  return joined;
};

/**
 * Where in a span other ranks begin or cease to need its keys: blocks end there, so that no rank gets more than it needs.
 * Where tokens are scattered every rank needs some of each stretch, and there are no such places; where a variant does not
 * say what it skips, nobody knows them.
 */
const edgesOf = (
  attention: Attention,
  span: Span,
  others: ReadonlyArray<ReadonlyArray<Span>>,
  asking: Asking,
): ReadonlyArray<number> => {
  if (span.run < span.stride && span.count > span.run || attention.untiled.length > 0) return [];
  const edges = new Set<number>();
  for (const queries of others.flat()) {
    const { tiles } = tilesOf(attention, asking, [queries], span);
    if (tiles.length === 0) continue;
    const { back, ahead } = attention.band;
    const last = positionAt(queries, queries.count - 1);
    const [low, high] = [
      countUpTo(span, positionAt(queries, 0) - back - 1),
      countUpTo(span, last + ahead),
    ];
    const needed = joinedStretches(
      tiles.map(({ column, keys }) => [Math.max(column, low), Math.min(column + keys.count, high)]),
    );
    for (const edge of needed.flat()) edges.add(edge);
  }
  return [...edges].filter((edge) => edge > 0 && edge < span.count).sort((a, b) => a - b);
};

/** Cuts a shard into blocks of at most `largest` tokens, span by span. */
const cut = (
  shard: ReadonlyArray<Span>,
  tokenBytes: number,
  largest: number,
  edges: (span: Span) => ReadonlyArray<number>,
) => {
  const tokens = tokensOf(shard);
  const smallest = Math.max(1, Math.floor(smallestBlock / tokenBytes));
  const size = Math.min(Math.max(Math.ceil(tokens / blocksPerShard), smallest), largest);
  const pieces: Array<{ readonly span: Span; readonly row: number }> = [];
  let row = 0;
  for (const span of shard) {
    let begin = 0;
    for (const end of [...edges(span), span.count]) {
      const parts = Math.ceil((end - begin) / size);
      for (let part = 0; part < parts; part++) {
        const from = begin + Math.floor(part * (end - begin) / parts);
        const to = begin + Math.floor((part + 1) * (end - begin) / parts);
        pieces.push({ span: slice(span, from, to - from), row: row + from });
      }
      begin = end;
    }
    row += span.count;
  }
  return pieces;
};

const tokensOf = (shard: ReadonlyArray<Span>): number =>
  shard.reduce((sum, span) => sum + span.count, 0);

/** The plan of a run, or the sentence that says why there is none. */
export const planOf = (spec: PlanSpec): Result.Result<Plan, InvalidProblem | VariantInvalid> => {
  const fault = problemFault(spec);
  if (fault !== undefined) return Result.fail(fault);
  return Result.flatMap(
    resolveAttention(spec.problem.attention, spec.problem),
    (attention) =>
      Result.try({
        try: () => planWith(spec, attention),
        catch: (cause) => thrownBy(attention.masked, cause),
      }),
  );
};

/** What a rank does, as it is found out. */
interface Draft {
  readonly steps: Array<StepPlan>;
  readonly receives: Array<RankPlan["receives"][number]>;
  readonly sends: Array<RankPlan["sends"][number]>;
  readonly homing: Array<HomingPlan>;
  /** How many blocks it receives at each place of the order, and the gradients of how many. */
  readonly places: Array<number>;
  readonly homingPlaces: Array<number>;
}

/** What one stop and the next may bring, of a block and of its other end: three places that follow each other. */
const threePlaces = (places: ReadonlyArray<number>): number =>
  Math.max(0, ...places.map((count, i) => count + (places[i + 1] ?? 0) + (places[i + 2] ?? 0)));

const planWith = (spec: PlanSpec, attention: Attention): Plan => {
  const { problem, layout, weights, wire, gradients = false } = spec;
  const { batch, heads, kvHeads, headDim, latent } = problem;
  const [asking, looking] = [new Asking(), new Asking(false)];
  const ring = weights.length;
  const shards = spec.held?.queries ??
    (layout === "solved"
      ? solvedShards(attention, problem.tokens, weights)
      : shardsOf(layout, problem.tokens, weights));
  const keys = spec.held?.keys ?? shards;
  const expandedElements = 2 * batch * kvHeads * headDim;
  const tokenElements = latent === undefined ? expandedElements : batch * widthOf(latent);
  const tokenBytes = tokenElements * elementBytes(wire);
  const largestTokens = Math.max(
    1,
    Math.floor(
      Math.min(
        largestBlock / tokenBytes,
        latent === undefined ? Infinity : largestExpanded / (4 * expandedElements),
      ),
    ),
  );

  // By part first, then by stop: each wave of parts is a pass of its own. With all of a rank's own blocks sent first,
  // every rank would wait for its right neighbour to take the second one, and none ever could. A wave has the i-th part of
  // a shard and the i-th from its end: what one of them leaves to do less, the other one makes up for. Everything that
  // moves has a place in one order, of wave, stop, end and block, which all ranks keep: what comes first can always move,
  // since its sender has nothing to do before, and its receiver has room for all that is there before it goes on.
  const pieces = keys.map((shard, home) =>
    cut(
      shard,
      tokenBytes,
      largestTokens,
      (span) => edgesOf(attention, span, shards.filter((_, rank) => rank !== home), looking),
    )
  );
  const waves = Math.ceil(Math.max(...pieces.map((shard) => shard.length)) / 2);
  const drafts = shards.map((): Draft => ({
    steps: [],
    receives: [],
    sends: [],
    homing: [],
    places: [],
    homingPlaces: [],
  }));
  const blocks: Array<BlockPlan> = [];
  for (let wave = 0; wave < waves; wave++) {
    const ends: ReadonlyArray<
      Array<{ readonly block: BlockPlan; readonly steps: ReadonlyArray<StepPlan> }>
    > = [[], []];
    const ofWave = pieces.flatMap((shard, home) => {
      const mirror = shard.length - 1 - wave;
      const both = mirror > wave ? [wave, mirror] : mirror === wave ? [wave] : [];
      return both.map((i, end) => ({ piece: shard[i]!, home, end }));
    });
    for (const { piece, home, end } of ofWave) {
      const path: Array<number> = [];
      const block = {
        id: blocks.length,
        home,
        ...piece,
        bytes: piece.span.count * tokenBytes,
        gradientBytes: piece.span.count * tokenElements * 4,
        path,
      };
      blocks.push(block);
      const steps = shards.map((_, distance): StepPlan => {
        const rank = (home + distance) % ring;
        const { tiles, pairs } = tilesOf(attention, asking, shards[rank]!, block.span);
        if (pairs > 0 && distance > 0) path.push(rank);
        const all = tokensOf(shards[rank]!) * block.span.count;
        const state = pairs === 0 ? "skip" : pairs === all ? "full" : "partial";
        return { block, distance, state, pairs, tiles };
      });
      ends[end]!.push({ block, steps });
    }
    // A block sets out when it would have come by around the ring. Else those of all ranks would come to the first one that
    // needs them at once, and it would have to have room for them.
    const late = ({ home, path }: BlockPlan) =>
      path.length === 0 ? 0 : (path[0]! - home + ring) % ring - 1;
    const inWave = ends.flat();
    const stops = Math.max(0, ...inWave.map(({ block }) => late(block) + block.path.length));
    for (let place = 0; place <= 2 * stops + 3; place++) {
      const stop = Math.floor(place / 2);
      for (const { places, homingPlaces } of drafts) {
        places.push(0);
        homingPlaces.push(0);
      }
      for (const { block, steps } of ends[place % 2]!) {
        const { home, path } = block;
        const own = drafts[home]!;
        const at = stop - late(block);
        if (stop === 0) {
          own.steps.push(steps[0]!);
          if (steps[0]!.pairs > 0) own.homing.push({ block, own: true });
        }
        if (at === 0 && path.length > 0) own.sends.push({ block, to: path[0]! });
        if (at <= 0) continue;
        const [from, rank, to] = [at - 2, at - 1, at].map((i) => i === -1 ? home : path[i]);
        const shares = at > 1 && from !== undefined ? { from } : {};
        if (rank !== undefined) {
          const draft = drafts[rank]!;
          const onward = to === undefined ? {} : { to };
          draft.steps.push(steps[(rank - home + ring) % ring]!);
          draft.receives.push({ block, from: from!, ...onward });
          draft.places[draft.places.length - 1]!++;
          if (to !== undefined) draft.sends.push({ block, to });
          if (at > 1) draft.homingPlaces[draft.homingPlaces.length - 1]!++;
          draft.homing.push({ block, own: true, ...shares, to: to ?? home });
        } else if (at > 1 && from !== undefined) {
          own.homing.push({ block, own: false, from });
          own.homingPlaces[own.homingPlaces.length - 1]!++;
        }
      }
    }
    for (const { block, steps } of inWave) {
      for (const step of steps) {
        if (step.pairs > 0 || step.distance === 0) continue;
        drafts[(block.home + step.distance) % ring]!.steps.push(step);
      }
    }
  }

  const ranks = shards.map((shard, rank): RankPlan => {
    const { steps, receives, sends, homing, places, homingPlaces } = drafts[rank]!;
    const tokens = tokensOf(shard);
    const sum = (values: ReadonlyArray<number>) => values.reduce((a, b) => a + b, 0);
    const room = Math.max(passingBlocks, threePlaces(places));
    const homingRoom = Math.max(1, threePlaces(homingPlaces));
    const kvBytes = tokensOf(keys[rank]!) * tokenBytes +
      sum(receives.map(({ block }) => block.bytes).sort((a, b) => b - a).slice(0, room));
    const rows = batch * tokens * heads;
    const largest = Math.max(0, ...steps.map(({ block }) => block.bytes));
    const pairs = sum(steps.map(({ pairs }) => pairs));
    const forms = latent === undefined ? undefined : latentFlops(latent, problem, {
      queries: tokens,
      keys: sum(steps.filter(({ pairs }) => pairs > 0).map(({ block }) => block.span.count)),
      pairs,
    });
    // What makes keys and values of latents, here and on the device, and those of three blocks.
    const made = latent === undefined ? 0 : 8 * upSizeOf(latent, problem) +
      12 * expandedElements * Math.max(0, ...steps.map(({ block }) => block.span.count));
    // For gradients: o, dO and dq in float32 with the queries, and those again on the device with two numbers a row;
    // dk and dv of the shard, and blocks of them as `homing.ts` says.
    const backward = rows * (7 * headDim + 3) * 4 + tokens * tokenElements * 4 +
      (passingGradients + homingRoom) *
        Math.max(0, ...steps.map(({ block }) => block.gradientBytes));
    return {
      rank,
      ring,
      shard,
      tokens,
      steps,
      receives,
      sends,
      room,
      homingRoom,
      homing: gradients ? homing : [],
      pairs,
      ...(forms === undefined ? {} : {
        latentForm: forms.absorb < forms.expand ? "absorb" : "expand",
        latentFlops: batch * Math.min(forms.absorb, forms.expand),
      }),
      sentBytes: sum(sends.map(({ block }) => block.bytes)),
      kvBytes,
      // Queries, õ and the result in float32, m and l; K/V once more on the device, one block at a time.
      bytes: rows * (3 * headDim + 3) * 4 + kvBytes + largest + made + (gradients ? backward : 0),
    };
  });

  const pairs = ranks.reduce((sum, rank) => sum + rank.pairs, 0);
  return {
    ...spec,
    attention,
    ring,
    blocks,
    ranks,
    pairs,
    counted: !asking.exhausted,
    flops: latent === undefined
      ? (gradients ? 14 : 4) * headDim * heads * batch * pairs
      : ranks.reduce((sum, { latentFlops = 0 }) => sum + latentFlops, 0),
  };
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
  plan.pairs === 0
    ? 1
    : Math.max(...plan.ranks.map(({ pairs }) => pairs)) / (plan.pairs / plan.ring);
