/**
 * The text of the attention program: `kernels/attend.wgsl`, completed for a number format and a kind of adapter.
 *
 * @module
 */
import attend from "../../kernels/attend.wgsl" with { type: "text" };
import type { DType } from "../../runtime/dtype.ts";

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
 * A software adapter loads slowly and compiles slowly, so that it wants a large square of scores, though not larger;
 * a GPU wants many invocations with few registers.
 */
export const blockingFor = (software: boolean): Blocking =>
  software ? { rows: 8, keys: 8, lanes: 16 } : { rows: 2, keys: 16, lanes: 64 };

/** How four consecutive components lie in memory, and how they are read; core WGSL, without any feature. */
const formats: Record<DType, string> = {
  f32: "alias Stored = vec4f;\nfn load(x: vec4f) -> vec4f { return x; }",
  f16: "alias Stored = vec2u;\n" +
    "fn load(x: vec2u) -> vec4f { return vec4f(unpack2x16float(x.x), unpack2x16float(x.y)); }",
  bf16: "alias Stored = vec2u;\nfn load(x: vec2u) -> vec4f {\n" +
    "  return bitcast<vec4f>(vec4u(x.x << 16u, x.x & 0xffff0000u, x.y << 16u, x.y & 0xffff0000u));\n}",
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

/** The whole WGSL text for K/V of this format. */
export const program = (dtype: DType, { rows, keys, lanes }: Blocking): string =>
  [
    `const ROWS = ${rows}u;`,
    `const KEYS = ${keys};`,
    `const LANES = ${lanes}u;`,
    formats[dtype],
    ...unroll(attend.split("\n"), { ROWS: rows, KEYS: keys }),
  ].join("\n");
