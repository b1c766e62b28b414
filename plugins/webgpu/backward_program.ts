/**
 * The texts of the passes of the backward pass: their WGSL, completed for a number format, a head dimension and a
 * kind of adapter.
 *
 * @module
 */
import keysPass from "../../kernels/attend_backward_keys.wgsl" with { type: "text" };
import keysTiles from "../../kernels/attend_backward_keys_tiles.wgsl" with { type: "text" };
import oncePass from "../../kernels/attend_backward_once.wgsl" with { type: "text" };
import queriesPass from "../../kernels/attend_backward_queries.wgsl" with { type: "text" };
import queriesTiles from "../../kernels/attend_backward_queries_tiles.wgsl" with { type: "text" };
import task from "../../kernels/attend_backward_task.wgsl" with { type: "text" };
import span from "../../kernels/span.wgsl" with { type: "text" };
import workgroups from "../../kernels/workgroups.wgsl" with { type: "text" };
import type { DType } from "../../runtime/dtype.ts";
import type { KeysIn } from "./ladder.ts";
import { formats, headsAcross } from "./program.ts";
import type { PairProgram } from "./pairs.ts";
import { unroll } from "./unroll.ts";

export type Pass = "keys" | "queries";

/**
 * How it is computed: `lanes`, in two passes whose invocations have keys or rows of their own; `once`, in one such pass,
 * which needs workgroups that are one subgroup each; `tiles`, in two passes as matrix products in workgroup memory, which
 * suits GPUs.
 */
export type Form = "lanes" | "once" | "tiles";

/** What the programs of a device depend on. */
export interface BackwardAdapter {
  readonly keysIn: KeysIn;
  /** Invocations of a workgroup, unless it computes in tiles, which have their own. */
  readonly lanes: number;
  readonly form: Form;
}

/** The passes that a tile goes through, in that order. */
export const passesOf = ({ form }: Pick<BackwardAdapter, "form">): ReadonlyArray<Pass> =>
  form === "once" ? ["keys"] : ["keys", "queries"];

const formNames: Readonly<Record<Form, string>> = {
  lanes: "",
  once: " and subgroups",
  tiles: ", in tiles",
};

/** In words. */
export const nameOf = ({ keysIn, form }: BackwardAdapter): string =>
  `the backward pass with ${keysIn}s${formNames[form]}`;

/** What one program is made for. */
export interface BackwardVariant extends BackwardAdapter {
  readonly pass: Pass;
  /** Of K and V. */
  readonly dtype: DType;
  /** A multiple of 4. */
  readonly headDim: number;
  /** Bytes of workgroup memory that the device has. */
  readonly workgroupBytes: number;
  /** It asks for every pair whether it counts. */
  readonly pairwise?: boolean;
  /** What the queries' attention says of pairs; of no concern to the pass of queries. */
  readonly pairs?: PairProgram;
}

/** Rows whose dS is one element of `scores`. */
export const fourRows = 4;

/** Keys, or rows in the pass of queries, of an invocation that has them for itself. */
const rowsOf = (
  { pass, keysIn, headDim, form }: Pick<BackwardVariant, "pass" | "keysIn" | "headDim" | "form">,
): number => {
  if (pass === "queries") return fourRows;
  if (keysIn === "buffer") return 1;
  const most = form === "once" ? 8 : 4;
  return Math.max(1, Math.min(Math.floor(64 * most / headDim), most));
};

/** What tiles need to know of a pass. */
type Tiled = Pick<BackwardVariant, "pass" | "headDim" | "workgroupBytes">;

/** Keys of a workgroup of tiles: invocations that have other ones, and how many each has. */
const keysOfTiles = ({ workgroupBytes }: Pick<Tiled, "workgroupBytes">) => ({
  down: workgroupBytes >= 32768 ? 16 : 8,
  mine: 4,
});

/** Rows of a workgroup of tiles in the pass of queries, likewise. */
const rowsOfTiles = { down: 8, mine: 8 };

/**
 * How a workgroup of tiles is divided: it has `down` by `across` invocations, each with `mine` keys, or rows in the pass of
 * queries; of the other ones it takes `tile` at a time. All of it is at most 16 KiB where an adapter has no more, and
 * 32 KiB else, up to head dimensions of 256 and 512; beyond them there is no such program.
 */
const tilingOf = (variant: Tiled) => {
  const quads = variant.headDim / 4;
  const ofKeys = variant.pass === "keys";
  const { down, mine } = ofKeys ? keysOfTiles(variant) : rowsOfTiles;
  const across = 16;
  const own = Math.ceil(quads / across);
  const room = (variant.workgroupBytes >= 32768 ? 2048 : 1024) - 32; // the rest is for what each row or key sees
  const keys = keysOfTiles(variant);
  const tile = ofKeys ? 64 : keys.down * keys.mine;
  const pitch = down * mine / 4 + 1;
  const ofHeld = (held: number) =>
    (ofKeys ? tile * pitch : down * mine * (held / 4 + 1)) + (held - 1) * quads + own * across;
  let held = ofKeys ? 16 : 32;
  while (held > 4 && ofHeld(held) > room) held /= 2;
  const depth = Math.min(8, 2 ** Math.ceil(Math.log2(quads)));
  return {
    ...{ down, mine, across, own, tile, depth, pitch, held, step: Math.min(4, held / 4) },
    lanes: down * across,
    stage: Math.max(ofKeys ? (down * mine + tile) * (depth + 1) : 0, ofHeld(held)),
  };
};

/** Keys, or rows in the pass of queries, of a workgroup. */
export const groupOf = (
  variant: Tiled & Pick<BackwardVariant, "keysIn" | "lanes" | "form">,
): number => {
  if (variant.form !== "tiles") return variant.lanes * rowsOf(variant);
  const { down, mine } = tilingOf(variant);
  return down * mine;
};

/** Declares the tensors that a pass reads, and how it does. */
const access = ({ pass, dtype, headDim, keysIn }: BackwardVariant): ReadonlyArray<string> => {
  const { f32, [dtype]: format } = formats;
  const textures = keysIn === "texture";
  const declare = (binding: number, name: string, { texel, stored }: typeof format) =>
    `@group(0) @binding(${binding}) var` +
    (textures
      ? ` ${name}: texture_storage_2d<${texel}, read>;`
      : `<storage, read> ${name}: array<${stored}>;`);
  const element = (name: string, { part }: typeof format) =>
    textures ? `textureLoad(${name}, place + vec2u(c, 0u))${part}` : `${name}[place + c]`;
  const across = headsAcross(headDim);
  const outcomesAcross = headsAcross(4);
  return [
    `alias Place = ${textures ? "vec2u" : "u32"};`,
    "fn placeOf(head: u32) -> Place { return " +
    (textures ? `vec2u(head % ${across}u * QUADS, head / ${across}u)` : "head * QUADS") + "; }",
    `fn load(x: ${format.stored}) -> vec4f { return ${format.components}; }`,
    declare(3, "blocks", format),
    `fn blockAt(place: Place, c: u32) -> vec4f { return load(${element("blocks", format)}); }`,
    ...(pass === "queries" ? [] : [
      declare(1, "outcomes", f32),
      "fn outcomeAt(row: u32) -> vec4f { return " +
      (textures
        ? `textureLoad(outcomes, vec2u(row % ${outcomesAcross}u, row / ${outcomesAcross}u))`
        : "outcomes[row]") +
      "; }",
      declare(2, "rows", f32),
      `fn rowAt(place: Place, c: u32) -> vec4f { return ${element("rows", f32)}; }`,
    ]),
  ];
};

/** Keys whose products are one sum, of tiles in the pass of queries. */
const chunk = 1024;

/** What follows the shared text where invocations have keys or rows of their own. */
const ownPass = ({ pass, form }: Pick<BackwardVariant, "pass" | "form">): string => {
  if (pass === "queries") return queriesPass;
  return form === "once" ? oncePass : keysPass;
};

/** The whole WGSL text, but for the directive that adapters with subgroups may ask for. */
export const backwardProgram = (variant: BackwardVariant): string => {
  const { pass, headDim, form, pairwise = false, pairs } = variant;
  const scored = pairs?.scored === true;
  const quads = headDim / 4;
  const asks = {
    PAIRWISE: Number(pairwise),
    SCORED: Number(scored),
    PLACED: Number(pairwise || scored),
    FOUR: fourRows,
  };
  const shared = [
    `const FOUR = ${fourRows};`,
    `const QUADS = ${quads}u;`,
    ...access(variant),
    span,
    workgroups,
    pairs?.text ?? "",
    task,
  ];
  if (form === "tiles") {
    const { down, across, mine, own, tile, depth, pitch, held, step, ...sizes } = tilingOf(variant);
    const ofKeys = pass === "keys";
    const keys = keysOfTiles(variant);
    return [
      `const LANES = ${sizes.lanes}u;`,
      `const DOWN = ${down}u;`,
      `const ACROSS = ${across}u;`,
      `const KEYS = ${keys.mine};`,
      ...(ofKeys ? [] : [
        `const KEYS_DOWN = ${keys.down};`,
        `const ROWS = ${mine};`,
        `const QUARTER = ${held / 4}u;`,
      ]),
      `const TILE = ${tile};`,
      `const DEPTH = ${depth}u;`,
      `const LINE = ${ofKeys ? depth + 1 : held / 4 + 1}u;`,
      `const FOURS = ${mine / 4}u;`,
      `const PITCH = ${pitch}u;`,
      `const HELD = ${held};`,
      `const STEP = ${step}u;`,
      `const CHUNK = ${chunk};`,
      `const STAGE = ${sizes.stage};`,
      ...shared,
      unroll(ofKeys ? keysTiles : queriesTiles, {
        ...asks,
        ...{ OWN: own, KEYS: mine, ROWS: ofKeys ? tile / across : mine, FOURS: mine / 4, TWO: 2 },
        ...{ DEPTH: depth, STEP: step },
      }),
    ].join("\n");
  }
  const { lanes } = variant;
  const rows = rowsOf(variant);
  return [
    `const LANES = ${lanes}u;`,
    ...(form === "once"
      ? [`const HALF = ${lanes / 2}u;`, `const KEYS = ${rows}u;`]
      : [`const ROWS = ${rows}u;`]),
    ...shared,
    unroll(ownPass(variant), {
      ...asks,
      ROWS: rows,
      KEYS: rows,
      QUADS: quads,
      PARTS: Math.ceil(quads / lanes),
      FOURS: rows / fourRows,
      LANES: lanes,
      RAGGED: Number(quads % lanes > 0),
    }),
  ].join("\n");
};
