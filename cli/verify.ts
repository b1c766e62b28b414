/**
 * `annulus verify`: the ring against the float64 reference, over ring sizes, layouts, masks and formats.
 *
 * @module
 */
import { Context, Effect, Layer, Result } from "effect";
import { StreamingOracle } from "../kernels/oracle.ts";
import { causal, window } from "../plugins/attention.ts";
import { inProcess } from "../plugins/memory.ts";
import { attend } from "../runtime/attend.ts";
import { namesOf, resolveAttention } from "../runtime/attention.ts";
import { Device } from "../runtime/device.ts";
import { decode, type DType, encode } from "../runtime/dtype.ts";
import { NotExact } from "../runtime/errors.ts";
import { type Layout, layouts } from "../runtime/layout.ts";
import type { Variant } from "../runtime/variant.ts";
import { chooseDevice } from "../runtime/plugin.ts";
import { boundsFor } from "./judge.ts";
import { knownPlugins } from "./plugins.ts";
import { normals } from "./random.ts";
import { draw, note, print, printJson, table } from "./output.ts";

/** All that `verify` can be told. */
export interface VerifyFlags {
  readonly device: string;
  /** Sequence length of every case. */
  readonly tokens: number;
  readonly json: boolean;
}

/** Sizes that are multiples of nothing; two query heads share a KV head. */
const heads = 4, kvHeads = 2, headDim = 64;
const mostRanks = 16;
type Mask = ReadonlyArray<Variant>;
type Floats = Float32Array;

interface Case {
  readonly ring: number;
  readonly layout: Layout;
  readonly attention: Mask;
  readonly wire: DType;
}

interface Row extends Case {
  readonly o: number;
  readonly lse: number;
}

/** Float64 attention over values as they travel: K and V rounded to the wire's format. */
const referenceFor = (
  inputs: { readonly tokens: number; readonly q: Floats; readonly k: Floats; readonly v: Floats },
  attention: Mask,
  wire: DType,
) => {
  const { tokens, q, k, v } = inputs;
  const positions = Array.from({ length: tokens }, (_, i) => i);
  const oracle = new StreamingOracle({
    heads,
    kvHeads,
    headDim,
    scale: 1 / Math.sqrt(headDim),
    rules: Result.getOrThrow(
      resolveAttention(attention, { ...inputs, batch: 1, heads, kvHeads, headDim }),
    ),
    entry: 0,
    positions,
    q,
  });
  oracle.absorb(0, decode(wire, encode(wire, k)), decode(wire, encode(wire, v)));
  return oracle.finish();
};

const errorsOf = (
  result: { readonly o: Float32Array; readonly lse: Float32Array },
  wanted: { readonly o: Float64Array; readonly lse: Float64Array },
) => {
  let apart = 0, norm = 0, lse = 0;
  wanted.o.forEach((x, i) => {
    apart += (result.o[i]! - x) ** 2;
    norm += x ** 2;
  });
  wanted.lse.forEach((x, i) => lse = Math.max(lse, Math.abs(result.lse[i]! - x)));
  return { o: Math.sqrt(apart / norm), lse };
};

const cases = (tokens: number): ReadonlyArray<Case> => [
  ...Array.from({ length: mostRanks }, (_, i) => i + 1)
    .map((ring) => ({ ring, layout: "zigzag", attention: [causal()], wire: "f32" }) as const),
  ...layouts.flatMap((layout) =>
    [[causal()], [], [window({ size: Math.ceil(tokens / 5) })]]
      .map((attention) => ({ ring: 5, layout, attention, wire: "f32" }) as const)
  ),
  ...(["f16", "bf16"] as const)
    .map((wire) => ({ ring: 5, layout: "zigzag", attention: [causal()], wire }) as const),
];

/** Prints the table; fails where an error is out of bounds or grows with the ring. */
export const runVerify = Effect.fn("runVerify")(function* (flags: VerifyFlags) {
  const { devices } = yield* knownPlugins([], flags.device);
  const plugin = yield* chooseDevice(devices, flags.device);
  const services = yield* Layer.build(inProcess(plugin));
  const { info } = Context.get(services, Device);
  const software = info.software ? " (software)" : "";
  if (!flags.json) {
    yield* note(
      `${flags.tokens} tokens, ${heads} heads, ${kvHeads} KV heads, head dim ${headDim}, standard normal, on ` +
        `${info.name}${software}, ${info.backend}`,
    );
  }
  const random = normals(1);
  const inputs = {
    tokens: flags.tokens,
    heads,
    kvHeads,
    headDim,
    q: random(flags.tokens * heads * headDim),
    k: random(flags.tokens * kvHeads * headDim),
    v: random(flags.tokens * kvHeads * headDim),
  };
  const references = new Map<string, ReturnType<typeof referenceFor>>();
  const rows: Array<Row> = [];
  const all = cases(flags.tokens);
  const watched = !flags.json && Deno.stderr.isTerminal();
  for (const [i, one] of all.entries()) {
    if (watched) yield* draw(`\x1b[2K\r${i} of ${all.length} cases`);
    const key = JSON.stringify([namesOf(one.attention), one.wire]);
    const wanted = references.get(key) ?? referenceFor(inputs, one.attention, one.wire);
    references.set(key, wanted);
    const result = yield* Effect.provideContext(attend({ ...inputs, ...one }), services);
    rows.push({ ...one, ...errorsOf(result, wanted) });
  }
  if (watched) yield* draw("\x1b[2K\r");
  const flat = rows.slice(0, mostRanks).map(({ o }) => o);
  const growth = Math.max(...flat) / Math.min(...flat);
  if (flags.json) {
    yield* printJson({
      device: info,
      tokens: flags.tokens,
      cases: rows.map((row) => ({ ...row, attention: namesOf(row.attention) })),
      growth,
    });
  } else {
    yield* print(table([
      ["N", "layout", "attention", "wire", "error of o", "error of lse"],
      ...rows.map(({ ring, layout, attention, wire, o, lse }) => [
        String(ring),
        layout,
        namesOf(attention),
        wire,
        o.toExponential(2),
        lse.toExponential(2),
      ]),
    ]));
    yield* print(`largest over smallest error of o for N = 1…${mostRanks}: ${growth.toFixed(2)}`);
  }
  const bounds = boundsFor(0, undefined);
  for (const { ring, layout, attention, wire, o, lse } of rows) {
    if (o <= bounds.o && lse <= bounds.lse) continue;
    return yield* new NotExact({
      what: `N = ${ring}, ${layout}, ${namesOf(attention)}, ${wire}`,
      needed: `${bounds.o} in o and ${bounds.lse} in lse`,
      found: `${o.toExponential(1)} and ${lse.toExponential(1)}`,
    });
  }
  if (!(growth <= 1.5)) {
    return yield* new NotExact({
      what: "rings of every size",
      needed: "1.5 times the smallest",
      found: `${growth.toFixed(2)} times`,
    });
  }
}, Effect.scoped);
