/**
 * The text of an attention program: a version's WGSL, completed for a number format, a head dimension and a blocking.
 *
 * @module
 */
import attend from "../../kernels/attend.wgsl" with { type: "text" };
import task from "../../kernels/attend_task.wgsl" with { type: "text" };
import attendWide from "../../kernels/attend_wide.wgsl" with { type: "text" };
import attendTiles from "../../kernels/attend_tiles.wgsl" with { type: "text" };
import span from "../../kernels/span.wgsl" with { type: "text" };
import workgroups from "../../kernels/workgroups.wgsl" with { type: "text" };
import type { DType } from "../../runtime/dtype.ts";
import type { Blocking, Choice, KeysIn, Version } from "./ladder.ts";
import type { PairProgram } from "./pairs.ts";
import { unroll } from "./unroll.ts";

/** The variants of every program: for keys that all rows of a workgroup see, and for any. */
export const variants = ["clear", "masked"] as const;
/** And one that asks for every pair whether it counts. */
export const allVariants = [...variants, "pairwise"] as const;
export type VariantName = typeof allVariants[number];

/** What one program is made for. */
export interface Variant {
  readonly version: Version;
  readonly dtype: DType;
  /** A multiple of 4. */
  readonly headDim: number;
  readonly blocking: Blocking;
  readonly variant: VariantName;
  /** What the queries' attention says of pairs. */
  readonly pairs?: PairProgram;
}

/** One whose answers are known: it asks nobody about pairs. */
export interface PlainVariant extends Omit<Variant, "pairs"> {
  readonly variant: typeof variants[number];
}

/** Texels of a texture's row, at most. */
const mostAcross = 4096;

/** Heads of tokens that lie side by side in a texture; a power of two, which divides fast. */
export const headsAcross = (headDim: number): number =>
  2 ** Math.floor(Math.log2(mostAcross / (headDim / 4)));

/** Bytes of workgroup memory that every adapter has. */
const workgroupBytes = 16384;

/** How version `tiles` divides a workgroup and its memory; elements of memory are quads. */
const tiling = (headDim: number, { rows, keys, lanes }: Blocking) => {
  const quads = headDim / 4;
  const down = [lanes > 128 ? 16 : 8, 4, 2, 1].find((count) => lanes % count === 0)!;
  const across = lanes / down;
  const tile = across * keys;
  const own = Math.ceil(quads / across);
  // What all adapters have, and twice that, as GPUs have, for large workgroups.
  const shares = down * rows * across * 4 + down * rows * 8;
  const room = Math.floor(((lanes > 128 ? 2 : 1) * workgroupBytes - shares) / 16);
  const most = (x: number, cost: (x: number) => number) => {
    while (x > 1 && cost(x) > room) x /= 2;
    return x;
  };
  const scores = (depth: number) => (down * rows + tile) * (depth + 1);
  const depth = most(Math.min(8, 2 ** Math.ceil(Math.log2(quads))), scores);
  const fours = Math.ceil(rows / 4);
  const pitch = down * fours + 1;
  const outputs = (held: number) => tile * pitch + (held - 1) * quads + own * across;
  const held = most(Math.min(16, tile & -tile), outputs);
  return {
    ...{ down, across, tile, own, depth, fours, pitch, held, step: Math.min(8, held) },
    stage: Math.max(scores(depth), outputs(held)),
    chunk: tile * Math.max(1, Math.floor(256 / tile)),
    // Of all loops, for one tile: bringing parts of rows and keys, maxima, bringing values and using them.
    turns: 2 + 2 * across +
      Math.ceil(quads / depth) *
        (1 + Math.ceil(down * rows * depth / lanes) + Math.ceil(tile * depth / lanes)) +
      tile / held * (1 + Math.ceil(held * quads / lanes) + held / Math.min(8, held)),
  };
};

/** Keys that the program without masks takes at once, so that it visits whole groups of them. */
export const clearGroup = ({ version, headDim, blocking }: Omit<Variant, "variant">): number =>
  version.file === "attend_tiles"
    ? tiling(headDim, blocking).tile
    : version.file === "attend_wide"
    ? 1
    : blocking.keys;

/** Keys at once of which there are never as many. */
const never = 2 ** 30;

/** Query rows of a workgroup. */
export const groupRows = ({ version, blocking }: Choice, headDim: number): number => {
  if (version.file === "attend_wide") return heldRows(headDim);
  return blocking.rows *
    (version.file === "attend_tiles" ? tiling(headDim, blocking).down : blocking.lanes);
};

/** llvmpipe lets the loops of a program run for 65,535 turns in all, and then ends them without a word. */
const mostTurns = 2 ** 15;

/** Keys of a dispatch, at most: so many take fewer turns than a driver may allow, with whatever blocking. */
export const mostKeys = ({ version, blocking }: Choice, headDim: number): number => {
  if (version.file === "attend_wide") return 2 ** 13;
  if (version.file === "attend") return mostTurns;
  const { tile, turns } = tiling(headDim, blocking);
  return Math.min(mostTurns, tile * Math.max(1, Math.floor(mostTurns / turns)));
};

/** Rows that version `wide` holds in half of the workgroup memory that every adapter has. */
const heldRows = (headDim: number): number =>
  Math.max(1, Math.min(4, Math.floor(workgroupBytes / 2 / (4 * headDim))));

/** With more keys at once their flags take longer than what they save. */
const mostMaskedKeys = 2;

/** Four consecutive components: a texel, or an element of a buffer. */
export interface Format {
  readonly texel: GPUTextureFormat;
  readonly stored: string;
  /** What of a texel is the element. */
  readonly part: string;
  /** The components of the element x; core WGSL, without any feature. */
  readonly components: string;
}

/** How each number format is stored and widened. */
export const formats: Record<DType, Format> = {
  f32: { texel: "rgba32float", stored: "vec4f", part: "", components: "x" },
  f16: {
    texel: "rg32uint",
    stored: "vec2u",
    part: ".xy",
    components: "vec4f(unpack2x16float(x.x), unpack2x16float(x.y))",
  },
  bf16: {
    texel: "rg32uint",
    stored: "vec2u",
    part: ".xy",
    components:
      "bitcast<vec4f>(vec4u(x.x << 16u, x.x & 0xffff0000u, x.y << 16u, x.y & 0xffff0000u))",
  },
};

/** The texture format in which K and V of a number format are stored, four components a texel. */
export const texelFormat = (dtype: DType): GPUTextureFormat => formats[dtype].texel;

/** Declares K and V at bindings 2 and 3, and how a program reads them. */
export const keyAccess = (dtype: DType, headDim: number, keysIn: KeysIn): string => {
  const { texel, stored, part, components } = formats[dtype];
  const across = `${headsAcross(headDim)}u`;
  const [place, placeOf, variable, read] = keysIn === "texture"
    ? [
      "vec2u",
      `vec2u(head % ${across} * QUADS, head / ${across})`,
      (name: string) => `var ${name}: texture_storage_2d<${texel}, read>;`,
      (name: string) => `textureLoad(${name}, place + vec2u(c, 0u))${part}`,
    ]
    : [
      "u32",
      "head * QUADS",
      (name: string) => `var<storage, read> ${name}: array<${stored}>;`,
      (name: string) => `${name}[place + c]`,
    ];
  return [
    `alias Place = ${place};`,
    `fn placeOf(head: u32) -> Place { return ${placeOf}; }`,
    `fn load(x: ${stored}) -> vec4f { return ${components}; }`,
    `@group(0) @binding(2) ${variable("keys")}`,
    `@group(0) @binding(3) ${variable("values")}`,
    `fn key(place: Place, c: u32) -> vec4f { return load(${read("keys")}); }`,
    `fn value(place: Place, c: u32) -> vec4f { return load(${read("values")}); }`,
  ].join("\n");
};

const texts = { attend, attend_tiles: attendTiles, attend_wide: attendWide };

/** The whole WGSL text, but for the directive that adapters with subgroups may ask for. */
export const program = (made: Variant): string => {
  const { version, dtype, headDim, blocking } = made;
  const pairwise = made.variant === "pairwise";
  const masked = made.variant === "masked" || pairwise;
  const scored = made.pairs?.scored === true;
  const { rows: ROWS, lanes: LANES } = blocking;
  const QUADS = headDim / 4;
  const tiled = version.file === "attend_tiles";
  const tiles = tiling(headDim, blocking);
  const KEYS0 = blocking.keys;
  const KEYS1 = Math.min(KEYS0, mostMaskedKeys);
  // Where each pair is asked about there are no clear keys, and the others are visited first.
  const others = (visit: 0 | 1) => pairwise || visit === 1;
  const numbers = {
    ...{ ROWS, KEYS0: pairwise ? KEYS1 : KEYS0, KEYS1, LANES, QUADS },
    PARTS: Math.ceil(QUADS / LANES),
    // The clear keys, then the others.
    VISITS: masked && !pairwise ? 2 : 1,
    MASKED: Number(masked),
    MASKED0: Number(others(0)),
    MASKED1: 1,
    PAIRWISE: Number(pairwise),
    SCORED: Number(scored),
    PLACED: Number(pairwise || scored),
    BROADCAST: Number(version.subgroups),
    HELD: heldRows(headDim),
    ...(tiled
      ? {
        KEYS: blocking.keys,
        OWN: tiles.own,
        FOURS: tiles.fours,
        FOUR: 4,
        DEPTH: tiles.depth,
        STEP: tiles.step,
      }
      : {}),
  };
  return [
    `const ROWS = ${ROWS}u;`,
    `const KEYS0 = ${numbers.KEYS0};`,
    `const KEYS1 = ${KEYS1};`,
    `const OTHERS0 = ${others(0)};`,
    `const OTHERS1 = ${others(1)};`,
    `const LANES = ${LANES}u;`,
    `const HALF = ${Math.ceil(LANES / 2)}u;`,
    `const QUADS = ${QUADS}u;`,
    `const CLEAR = ${pairwise || version.file === "attend_wide" ? never : clearGroup(made)};`,
    `const CHUNK = ${tiled ? tiles.chunk : 256};`,
    ...(tiled
      ? [
        `const DOWN = ${tiles.down}u;`,
        `const ACROSS = ${tiles.across}u;`,
        `const TILE = ${tiles.tile};`,
        `const DEPTH = ${tiles.depth}u;`,
        `const LINE = ${tiles.depth + 1}u;`,
        `const FOURS = ${tiles.fours}u;`,
        `const PITCH = ${tiles.pitch}u;`,
        `const HELD = ${tiles.held};`,
        `const STEP = ${tiles.step}u;`,
        `const STAGE = ${tiles.stage};`,
      ]
      : [`const HELD = ${numbers.HELD}u;`]),
    keyAccess(dtype, headDim, version.keysIn),
    span,
    workgroups,
    made.pairs?.text ?? "",
    unroll(task, numbers),
    unroll(texts[version.file], numbers),
  ].join("\n");
};
