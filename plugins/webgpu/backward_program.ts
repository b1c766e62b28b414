/**
 * The texts of the passes of the backward pass: their WGSL, completed for a number format, a head dimension and a
 * kind of adapter.
 *
 * @module
 */
import keysPass from "../../kernels/attend_backward_keys.wgsl" with { type: "text" };
import queriesPass from "../../kernels/attend_backward_queries.wgsl" with { type: "text" };
import task from "../../kernels/attend_backward_task.wgsl" with { type: "text" };
import span from "../../kernels/span.wgsl" with { type: "text" };
import workgroups from "../../kernels/workgroups.wgsl" with { type: "text" };
import type { DType } from "../../runtime/dtype.ts";
import type { KeysIn } from "./ladder.ts";
import { formats, headsAcross } from "./program.ts";
import type { PairProgram } from "./pairs.ts";
import { unroll } from "./unroll.ts";

export type Pass = "keys" | "queries";

/** What the programs of a device depend on. */
export interface BackwardAdapter {
  readonly keysIn: KeysIn;
  /** Invocations of a workgroup. */
  readonly lanes: number;
  /** A workgroup is one subgroup, which can be relied on. */
  readonly subgroups: boolean;
  /** The pass of keys computes dq as well; only with subgroups. */
  readonly once: boolean;
}

/** The passes that a tile goes through, in that order. */
export const passesOf = ({ once }: Pick<BackwardAdapter, "once">): ReadonlyArray<Pass> =>
  once ? ["keys"] : ["keys", "queries"];

/** In words. */
export const nameOf = ({ keysIn, subgroups, once }: BackwardAdapter): string =>
  `the backward pass with ${keysIn}s${subgroups ? " and subgroups" : ""}${once ? ", at once" : ""}`;

/** What one program is made for. */
export interface BackwardVariant extends BackwardAdapter {
  readonly pass: Pass;
  /** Of K and V. */
  readonly dtype: DType;
  /** A multiple of 4. */
  readonly headDim: number;
  /** It asks for every pair whether it counts. */
  readonly pairwise?: boolean;
  /** What the queries' attention says of pairs; of no concern to the pass of queries. */
  readonly pairs?: PairProgram;
}

/** Rows whose dS is one element of `scores`. */
export const fourRows = 4;

/** Keys, or rows in the pass of queries, of an invocation. */
export const rowsOf = (
  { pass, keysIn, headDim }: Pick<BackwardVariant, "pass" | "keysIn" | "headDim">,
): number => {
  if (pass === "queries") return fourRows;
  return keysIn === "buffer" ? 1 : Math.max(1, Math.min(Math.floor(256 / headDim), 4));
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

/** The whole WGSL text, but for the directive that adapters with subgroups may ask for. */
export const backwardProgram = (variant: BackwardVariant): string => {
  const { pass, headDim, lanes, subgroups, once, pairwise = false, pairs } = variant;
  const scored = pairs?.scored === true;
  const rows = rowsOf(variant);
  const quads = headDim / 4;
  return [
    `const ROWS = ${rows}u;`,
    `const FOUR = ${fourRows};`,
    `const LANES = ${lanes}u;`,
    `const QUADS = ${quads}u;`,
    ...access(variant),
    span,
    workgroups,
    pairs?.text ?? "",
    task,
    unroll(pass === "keys" ? keysPass : queriesPass, {
      ROWS: rows,
      QUADS: quads,
      PARTS: Math.ceil(quads / lanes),
      FOUR: fourRows,
      FOURS: rows / fourRows,
      LANES: lanes,
      BROADCAST: Number(subgroups),
      ONCE: Number(once),
      RAGGED: Number(quads % lanes > 0),
      PAIRWISE: Number(pairwise),
      SCORED: Number(scored),
      PLACED: Number(pairwise || scored),
    }),
  ].join("\n");
};
