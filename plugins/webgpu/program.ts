/**
 * The text of the attention program: `kernels/attend.wgsl`, completed for a number format, a head dimension and a kind
 * of adapter.
 *
 * @module
 */
import attend from "../../kernels/attend.wgsl" with { type: "text" };
import type { DType } from "../../runtime/dtype.ts";

/**
 * What holds K and V on the device. A GPU reads buffers best; a program that imitates one reads a storage texture
 * several times faster than a buffer, since it loads from a buffer for one invocation after the other.
 */
export type KeysIn = "texture" | "buffer";

/** What one program is made for. */
export interface Variant {
  readonly dtype: DType;
  /** A multiple of 4. */
  readonly headDim: number;
  readonly keysIn: KeysIn;
}

/** How much work an invocation and a workgroup take at once. */
export interface Blocking {
  /** Query rows of an invocation. */
  readonly rows: number;
  /** Keys whose scores an invocation holds at once. */
  readonly keys: number;
  /** Invocations of a workgroup. */
  readonly lanes: number;
}

/**
 * On a CPU a key that was read must serve several rows, but the time to compile grows faster than their number, and a
 * workgroup is best one vector of the machine. A GPU wants many invocations with few registers.
 */
export const blockingFor = ({ keysIn, headDim }: Omit<Variant, "dtype">): Blocking =>
  keysIn === "texture"
    ? { rows: Math.max(1, Math.min(Math.floor(256 / headDim), 8)), keys: 2, lanes: 8 }
    : { rows: 1, keys: 4, lanes: 64 };

/** Texels of a texture's row, at most. */
const mostAcross = 4096;

/** Heads of tokens that lie side by side in a texture; a power of two, which divides fast. */
export const headsAcross = (headDim: number): number =>
  2 ** Math.floor(Math.log2(mostAcross / (headDim / 4)));

/** Four consecutive components: a texel, or an element of a buffer. */
interface Format {
  readonly texel: GPUTextureFormat;
  readonly stored: string;
  /** What of a texel is the element. */
  readonly part: string;
  /** The components of the element x; core WGSL, without any feature. */
  readonly components: string;
}

const formats: Record<DType, Format> = {
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

/** Declares K and V, and how the program reads them. */
const access = ({ dtype, headDim, keysIn }: Variant): ReadonlyArray<string> => {
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
  ];
};

/** Repeats what lies between `//@ for $x < NAME` and its `//@ end`, for x = 0 … NAME − 1. */
const unroll = (
  lines: ReadonlyArray<string>,
  counts: Readonly<Record<string, number>>,
): Array<string> => {
  const unrolled: Array<string> = [];
  for (let i = 0; i < lines.length; i++) {
    const [, variable, name] = /^\s*\/\/@ for (\$\w) < (\w+)$/.exec(lines[i]!) ?? [];
    if (variable === undefined) {
      unrolled.push(lines[i]!);
      continue;
    }
    const from = i + 1;
    for (let depth = 1; depth > 0;) {
      const line = lines[++i]!.trim();
      if (line.startsWith("//@ for")) depth++;
      if (line === "//@ end") depth--;
    }
    const body = lines.slice(from, i);
    for (let x = 0; x < counts[name!]!; x++) {
      unrolled.push(...unroll(body.map((line) => line.replaceAll(variable, `${x}`)), counts));
    }
  }
  return unrolled;
};

/** The whole WGSL text. */
export const program = (variant: Variant): string => {
  const { rows, keys, lanes } = blockingFor(variant);
  const quads = variant.headDim / 4;
  return [
    `const ROWS = ${rows}u;`,
    `const KEYS = ${keys};`,
    `const LANES = ${lanes}u;`,
    `const QUADS = ${quads}u;`,
    ...access(variant),
    ...unroll(attend.split("\n"), { ROWS: rows, KEYS: keys, QUADS: quads }),
  ].join("\n");
};
