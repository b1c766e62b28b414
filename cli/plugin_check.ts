/**
 * `annulus plugin check FILE`: does an attention keep its contract? Its two forms are compared pair by pair, what it says
 * of tiles and bands is held against its mask, and rings of every size and layout against float64. Each complaint names
 * the first pair of indices that shows it.
 *
 * @module
 */
import { Effect, Layer, Result } from "effect";
import { definitions } from "../plugins/attention.ts";
import { loadPlugin } from "../plugins/plugin_file.ts";
import { inProcess } from "../plugins/memory.ts";
import { findAdapter } from "../plugins/webgpu/adapter.ts";
import { type Asked, evaluatePairs } from "../plugins/webgpu/evaluate.ts";
import { type Attention, namesOf, resolveAttention } from "../runtime/attention.ts";
import { FileInvalid } from "../runtime/errors.ts";
import { allows } from "../runtime/mask.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";
import type { Definition, Overlap, Range, Shape, Variant } from "../runtime/variant.ts";
import { lacksForReference } from "./judge.ts";
import { checkRings } from "./plugin_check_rings.ts";
import { isTaken } from "./plugins.ts";
import { normals, uniform } from "./random.ts";

/** One thing that was looked at. */
export interface Check {
  readonly name: string;
  /** What is wrong, if anything. */
  readonly complaint?: string;
  /** Why nobody looked. */
  readonly skipped?: string;
}

/** Ranges of all lengths are tried against each other. */
const small: Shape = { batch: 2, tokens: 23, heads: 3, kvHeads: 1, headDim: 8 };
/** Sizes that are multiples of nothing. */
const middle: Shape = { batch: 2, tokens: 71, heads: 4, kvHeads: 2, headDim: 8 };
const large: Shape = { batch: 2, tokens: 5003, heads: 4, kvHeads: 2, headDim: 8 };
/** As many heads as models have: a form may be right of the first few alone. */
const many: Shape = { batch: 5, tokens: 997, heads: 64, kvHeads: 8, headDim: 8 };

const forms = ["mask", "score", "slope"] as const;
type Form = typeof forms[number];

/** Scores that show what a form does at its edges. */
const scores = [0, 1, -1, 1e-3, -0.37, 5.5, -7.25, 30, -30, 88, -1e3, 1e4];

const sizeOf = ({ tokens, heads }: Shape): string => `${tokens} tokens, ${heads} heads`;

const pairOf = ({ b, h, q, k }: Omit<Asked, "s">): string =>
  `batch entry ${b}, head ${h}, query ${q}, key ${k}`;

/** Every pair of a shape. */
function* pairsIn({ batch, heads, tokens }: Shape): Generator<Omit<Asked, "s">> {
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      for (let q = 0; q < tokens; q++) for (let k = 0; k < tokens; k++) yield { b, h, q, k };
    }
  }
}

/** Random pairs, half of them near the diagonal, and the corners. */
const somePairs = ({ batch, heads, tokens }: Shape, count: number): Array<Omit<Asked, "s">> => {
  const random = normals(3)(4 * count);
  const index = (x: number, n: number) => Math.min(n - 1, Math.floor(Math.abs(x * 7919) % n));
  const corners = [0, tokens - 1].flatMap((q) =>
    [0, tokens - 1].map((k) => ({ b: batch - 1, h: heads - 1, q, k }))
  );
  return [
    ...corners,
    ...Array.from({ length: count }, (_, i) => {
      const [x, y, z, w] = random.subarray(4 * i, 4 * i + 4) as unknown as [
        number,
        number,
        number,
        number,
      ];
      const q = index(x, tokens);
      const near = Math.min(tokens - 1, Math.max(0, q + Math.round(4 * y)));
      return {
        b: index(z, batch),
        h: index(w, heads),
        q,
        k: i % 2 === 0 ? near : index(y, tokens),
      };
    }),
  ];
};

/** Every pair of a short sequence, and some of a longer one. */
const pairsOf = (shape: Shape): Iterable<Omit<Asked, "s">> =>
  shape.tokens > 100 ? somePairs(shape, 20_000) : pairsIn(shape);

/** The attention of one variant alone, with its mask asked whatever its band says. */
const aloneOf = ({ definition, params }: Variant, shape: Shape) =>
  resolveAttention([{ definition: { ...definition, bandSaysAll: false }, params }], shape);

/** With those forms alone that TypeScript has; throws where a variant cannot be resolved, which was looked at before. */
const alone = (variant: Variant, shape: Shape) => {
  const attention = Result.getOrThrow(aloneOf(variant, shape));
  const { mask, score, slope } = variant.definition;
  return {
    ...{ ...attention, attention },
    mask: mask && attention.mask,
    score: score && attention.score,
    slope: slope && attention.slope,
  };
};

/** What the two forms say of pairs, compared; the first pair on which they differ. */
const disagreement = async (variant: Variant, shape: Shape): Promise<string | undefined> => {
  const { attention, mask, score, slope } = alone(variant, shape);
  const asked = Array.from(
    pairsOf(shape),
    (pair, i) => ({ ...pair, s: scores[i % scores.length]! }),
  );
  const answers = await evaluatePairs(attention, asked);
  if (answers === undefined) return undefined;
  for (const [i, { b, h, q, k, s }] of asked.entries()) {
    const where = pairOf({ b, h, q, k });
    if (answers.mask !== undefined && mask !== undefined) {
      const [own, wgsl] = [mask(b, h, q, k), answers.mask[i]];
      if (own !== wgsl) return `its masks differ at ${where}: TypeScript ${own}, WGSL ${wgsl}`;
    }
    for (const [form, of] of [["score", score], ["slope", slope]] as const) {
      const wgsl = answers[form]?.[i];
      if (of === undefined || wgsl === undefined) continue;
      const own = of(s, b, h, q, k);
      const apart = Object.is(own, wgsl) ? 0 : Math.abs(own - wgsl);
      if (apart <= 2e-5 * Math.max(1, Math.abs(own), Math.abs(s))) continue;
      return `its ${form}s differ at ${where} for a score of ${s}: TypeScript ${own}, WGSL ${wgsl}`;
    }
  }
};

/** A score that is no number or hides a pair, or a slope that is not the derivative. */
const oddScore = (variant: Variant, shape: Shape): string | undefined => {
  const { mask, score, slope } = alone(variant, shape);
  if (score === undefined) return;
  for (const [i, { b, h, q, k }] of [...pairsOf(shape)].entries()) {
    const s = scores[i % scores.length]!;
    const made: unknown = score(s, b, h, q, k);
    if (typeof made !== "number" || Number.isNaN(made)) {
      const what = typeof made === "number" ? "NaN" : `a ${typeof made}`;
      return `its score is ${what} at ${pairOf({ b, h, q, k })} for a score of ${s}`;
    }
    if (made === -Infinity && mask?.(b, h, q, k) !== false) {
      return `its score is -Infinity at ${
        pairOf({ b, h, q, k })
      } for a score of ${s}: a pair that ` +
        "does not count belongs in the mask";
    }
    if (slope === undefined || made === -Infinity) continue;
    const step = 1e-4 * Math.max(1, Math.abs(s));
    const rise = score(s + step, b, h, q, k) - score(s - step, b, h, q, k);
    const [measured, said] = [rise / (2 * step), slope(s, b, h, q, k)];
    if (Math.abs(measured - said) <= 1e-4 * Math.max(1, Math.abs(measured))) continue;
    return `its slope is ${said} at ${pairOf({ b, h, q, k })} for a score of ${s}, and its score ` +
      `rises by ${measured}`;
  }
};

/** A mask that differs between heads or batch entries, where it does not say so. */
const oddHead = (variant: Variant, shape: Shape): string | undefined => {
  const { mask, perHead } = alone(variant, shape);
  if (mask === undefined || perHead) return;
  for (const pair of pairsOf(shape)) {
    if (mask(pair.b, pair.h, pair.q, pair.k) === mask(0, 0, pair.q, pair.k)) continue;
    const where = pairOf(pair);
    return `its mask differs between heads or batch entries at ${where}, and it does not say perHead`;
  }
};

const tileLie = (said: Overlap, queries: Range, keys: Range, pair: Omit<Asked, "s">): string =>
  `its tile says "${said}" of queries ${queries.first} … ${queries.last} and keys ` +
  `${keys.first} … ${keys.last}, and ${pairOf(pair)} ` +
  (said === "none" ? "counts" : "does not count");

/** What a variant says of bands and tiles, against its mask, for every pair of ranges. */
const lie = (variant: Variant, shape: Shape): string | undefined => {
  const { definition } = variant;
  const { mask, band, overlap } = alone(variant, shape);
  if (mask === undefined) return;
  const { tokens, heads, batch } = shape;
  for (const pair of pairsIn(shape)) {
    const { b, h, q, k } = pair;
    const counts = mask(b, h, q, k), within = allows(band, q, k);
    if (counts && !within) return `its mask lets ${pairOf(pair)} count, and its band does not`;
    if (definition.bandSaysAll === true && within && !counts) {
      return `its band says all, and its mask does not let ${pairOf(pair)} count`;
    }
  }
  const first = (q0: number, q1: number, k0: number, k1: number, wanted: boolean) => {
    for (let b = 0; b < batch; b++) {
      for (let h = 0; h < heads; h++) {
        for (let q = q0; q <= q1; q++) {
          for (let k = k0; k <= k1; k++) if (mask(b, h, q, k) === wanted) return { b, h, q, k };
        }
      }
    }
  };
  // How many pairs before (q, k) count, over all heads and batch entries.
  const before = Array.from({ length: tokens + 1 }, () => new Float64Array(tokens + 1));
  for (let q = 0; q < tokens; q++) {
    for (let k = 0; k < tokens; k++) {
      let here = 0;
      for (let b = 0; b < batch; b++) {
        for (let h = 0; h < heads; h++) here += Number(mask(b, h, q, k));
      }
      before[q + 1]![k + 1] = here + before[q]![k + 1]! + before[q + 1]![k]! - before[q]![k]!;
    }
  }
  for (let q0 = 0; q0 < tokens; q0++) {
    for (let q1 = q0; q1 < tokens; q1++) {
      for (let k0 = 0; k0 < tokens; k0++) {
        for (let k1 = k0; k1 < tokens; k1++) {
          const said = overlap({ first: q0, last: q1 }, { first: k0, last: k1 });
          if (said === "some") continue;
          const counted = before[q1 + 1]![k1 + 1]! - before[q0]![k1 + 1]! -
            before[q1 + 1]![k0]! + before[q0]![k0]!;
          const all = (q1 - q0 + 1) * (k1 - k0 + 1) * heads * batch;
          if (said === "none" ? counted === 0 : counted === all) continue;
          const pair = first(q0, q1, k0, k1, said === "none")!;
          return tileLie(said, { first: q0, last: q1 }, { first: k0, last: k1 }, pair);
        }
      }
    }
  }
};

/** As `lie`, for ranges in which nobody could ask for every pair: some pairs of each are asked for. */
const lieOfLong = (variant: Variant, shape: Shape): string | undefined => {
  const { mask, overlap } = alone(variant, shape);
  if (mask === undefined) return;
  const { tokens } = shape;
  const random = uniform(11);
  const below = (n: number) => Math.floor(random() * n);
  /** Of any length, short ones as often as long ones. */
  const range = () => {
    const length = Math.ceil(tokens ** random());
    const first = below(tokens - length + 1);
    return { first, last: first + length - 1 };
  };
  for (let i = 0; i < 4000; i++) {
    const [queries, keys] = [range(), range()];
    const said = overlap(queries, keys);
    if (said === "some") continue;
    for (let j = 0; j < 100; j++) {
      const pair = {
        b: below(shape.batch),
        h: below(shape.heads),
        q: queries.first + below(queries.last - queries.first + 1),
        k: keys.first + below(keys.last - keys.first + 1),
      };
      if (mask(pair.b, pair.h, pair.q, pair.k) === (said === "all")) continue;
      return tileLie(said, queries, keys, pair);
    }
  }
};

/** A parameter that makes no difference to anything, whatever its examples. */
const ignored = (definition: Definition, shape: Shape): string | undefined => {
  const examples = definition.examples?.(shape) ?? [];
  for (const key of Object.keys(definition.params ?? {})) {
    let differs = false, tried = false, shown = "";
    for (const one of examples) {
      for (const other of examples) {
        const [from, to] = [one, other].map((example) => (example as Record<string, unknown>)[key]);
        if (JSON.stringify(from) === JSON.stringify(to) || differs) continue;
        const [a, b] = [
          aloneOf({ definition, params: one }, shape),
          aloneOf({
            definition,
            params: { ...one, [key]: to },
          }, shape),
        ];
        if (Result.isFailure(a) || Result.isFailure(b)) continue;
        tried = true;
        const says = ({ sees, score, sink }: Attention, { b, h, q, k }: Omit<Asked, "s">) =>
          JSON.stringify([sees(b, h, q, k), score?.(0.7, b, h, q, k), sink?.(h)]);
        for (const pair of pairsIn(shape)) {
          if (says(a.success, pair) === says(b.success, pair)) continue;
          differs = true;
          break;
        }
        const last = { b: 0, h: 0, q: shape.tokens - 1, k: 0 };
        shown = `${
          pairOf(last)
        } is the same for ${key} of ${from} and of ${to}, and so is every other`;
      }
    }
    if (tried && !differs) return `its parameter "${key}" is ignored: ${shown}`;
    if (!tried) {
      return `its examples have one value for "${key}" alone: nobody can tell whether it is ignored`;
    }
  }
};

/** Parameters that no WGSL form names, though there is one. */
const unbound = ({ wgsl, params, precompute }: Definition): string | undefined => {
  const text = Object.values(wgsl ?? {}).join("\n");
  if (text === "") return;
  const named = (key: string) => new RegExp(`\\b${key}\\b`).test(text);
  const computed = Object.keys(precompute?.params ?? {});
  const unused = computed.find((key) => !named(key));
  if (unused !== undefined) return `none of its WGSL forms reads "${unused}", which it computes`;
  const missing = Object.keys(params ?? {}).find((key) => !named(key));
  if (missing === undefined || computed.length > 0) return;
  return `none of its WGSL forms reads its parameter "${missing}"`;
};

/** Looks at everything; what depends on parameters with each of the examples. */
export const checkAttention = Effect.fn("checkAttention")(function* (
  path: string,
  devices: ReadonlyArray<DevicePlugin>,
) {
  const loaded = yield* loadPlugin(path);
  if (loaded.kind === "device") {
    return yield* new FileInvalid({
      attempted: "check",
      file: path,
      needed: "it needs an attention",
      found: `the device "${loaded.device.name}", for which there is testDevice()`,
    });
  }
  const { definition } = loaded;
  const checks: Array<Check> = [];
  const look = (name: string, complaint: string | undefined) =>
    void checks.push({ name, ...(complaint === undefined ? {} : { complaint }) });
  const guarded = (
    name: string,
    work: () => string | undefined | Promise<string | undefined>,
    skipped?: string,
  ) =>
    Effect.promise(async () => {
      if (skipped !== undefined) return void checks.push({ name, skipped });
      try {
        look(name, await work());
      } catch (cause) {
        look(name, cause instanceof Error ? cause.message : String(cause));
      }
    });

  const { params = {}, name } = definition;
  const variants: Array<Variant> = [];
  yield* guarded("parameters", () => {
    const examples = definition.examples?.(middle) ?? [];
    if (Object.keys(params).length > 0 && examples.length === 0) {
      return "it has parameters, and no examples to try";
    }
    for (const shape of [small, middle, large, many]) {
      for (const one of Object.keys(params).length === 0 ? [{}] : definition.examples!(shape)) {
        const resolved = aloneOf({ definition, params: one }, shape);
        if (Result.isFailure(resolved)) return `its example fails: ${resolved.failure.message}`;
      }
    }
    for (const one of Object.keys(params).length === 0 ? [{}] : examples) {
      variants.push({ definition, params: one });
    }
  });
  if (checks.some(({ complaint }) => complaint !== undefined)) return { name, checks };
  const others = definitions.filter(({ module }) => module !== definition.module);
  const taken = isTaken(name, others);
  look("name", taken ? `it needs a name that no other has: found "${name}"` : undefined);
  yield* guarded("bindings", () => unbound(definition));
  /** Why nobody can ask for a form. */
  const missing = (form: Form) =>
    lacksForReference(definition, form) ? `it has no ${form} in TypeScript` : undefined;
  yield* guarded(
    "parameters matter",
    () => ignored(definition, small),
    missing("mask") ?? missing("score"),
  );
  /** The examples of another shape. */
  const of = (shape: Shape): ReadonlyArray<Variant> =>
    Object.keys(params).length === 0
      ? variants
      : definition.examples!(shape).map((params) => ({ definition, params }));
  const { wgsl = {} } = definition;
  for (const form of forms) {
    const [own, other] = [definition[form], wgsl[form]];
    if ((own === undefined) === (other === undefined)) continue;
    const skipped = `it has no ${form} in ${own === undefined ? "TypeScript" : "WGSL"}`;
    checks.push({ name: `forms agree: ${form}`, skipped });
  }
  const compiled = forms.filter((form) => wgsl[form] !== undefined);
  const compared = compiled.some((form) => definition[form] !== undefined);
  const adapter = compiled.length > 0 ? yield* Effect.promise(findAdapter) : undefined;
  const unasked = adapter === undefined ? "there is no WebGPU adapter" : undefined;
  for (const shape of [middle, large, many]) {
    for (const variant of of(shape)) {
      const what = `${namesOf([variant])}, ${sizeOf(shape)}`;
      if (compiled.length > 0) {
        const agree = `${compared ? "forms agree" : "WGSL compiles"}: ${what}`;
        yield* guarded(agree, () => disagreement(variant, shape), unasked);
      }
      yield* guarded(`scores: ${what}`, () => oddScore(variant, shape), missing("score"));
    }
  }
  for (const shape of [small, many]) {
    for (const variant of of(shape)) {
      const what = `${namesOf([variant])}, ${sizeOf(shape)}`;
      yield* guarded(`heads: ${what}`, () => oddHead(variant, shape), missing("mask"));
    }
  }
  for (const variant of of(small)) {
    yield* guarded(
      `bands and tiles: ${namesOf([variant])}`,
      () => lie(variant, small),
      missing("mask"),
    );
  }
  for (const variant of of(large)) {
    const what = `${namesOf([variant])}, ${sizeOf(large)}`;
    yield* guarded(`tiles: ${what}`, () => lieOfLong(variant, large), missing("mask"));
  }
  if (checks.some(({ complaint }) => complaint !== undefined)) return { name, checks };
  for (const plugin of devices) {
    if ((yield* plugin.score) === 0) continue;
    yield* Effect.scoped(Effect.gen(function* () {
      const services = yield* Layer.build(inProcess(plugin));
      for (const variant of of(middle)) {
        const found = yield* checkRings(variant, middle).pipe(Effect.provideContext(services));
        checks.push(...found);
      }
    }));
  }
  return { name, checks };
});
