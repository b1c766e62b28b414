/**
 * Attention as a run computes it: several variants at once. A pair counts where all their masks let it; scores go through
 * all of them in order.
 *
 * @module
 */
import { identity, Result, Schema } from "effect";
import { VariantInvalid } from "./errors.ts";
import { allows, type Band, unbounded } from "./mask.ts";
import {
  contract,
  type Definition,
  type Overlap,
  type PairMask,
  type PairScore,
  type Range,
  type Shape,
  type Values,
  type Variant,
} from "./variant.ts";
import { wgslWords } from "./wgsl_words.ts";

/** In which a device asks variants. */
export type Language = "TypeScript" | "WGSL";

/** A variant as threads are told of it: where its file is, and its parameters. */
export interface VariantSpec {
  readonly name: string;
  readonly module: string;
  readonly params: Readonly<Record<string, unknown>>;
}

/** A variant whose parameters fit the tensors. */
export interface Resolved {
  readonly definition: Definition;
  /** The parameters and what was computed of them. */
  readonly given: Readonly<Record<string, number | ArrayLike<number>>>;
}

/** What all variants of a run say together. */
export interface Attention {
  readonly variants: ReadonlyArray<Resolved>;
  readonly specs: ReadonlyArray<VariantSpec>;
  readonly shape: Shape;
  /** What all masks say, those of bands included: slow, and what a judge asks. */
  readonly sees: PairMask;
  /** No pair outside of it counts. */
  readonly band: Band;
  /** Which pairs within the band count; absent where all do. */
  readonly mask?: PairMask;
  readonly score?: PairScore;
  /** The derivative of all scores by the first `s`; absent where that is 1. */
  readonly slope?: PairScore;
  /** The logit of a further key without a value, by query head. */
  readonly sink?: (h: number) => number;
  /** How many pairs of two ranges that the band lets count do. */
  readonly overlap: (queries: Range, keys: Range) => Overlap;
  /** Names of variants whose masks are asked. */
  readonly masked: ReadonlyArray<string>;
  /** Names of those that do not say which tiles to skip. */
  readonly untiled: ReadonlyArray<string>;
  /** Every mask has its TypeScript form, so that pairs can be counted. */
  readonly countable: boolean;
  /** A mask differs between heads or batch entries. */
  readonly perHead: boolean;
  /** The first variant that needs a form and does not have it in a language; in none, the first that needs it. */
  readonly lacking: (
    form: "mask" | "score" | "slope",
    language: Language | undefined,
  ) => string | undefined;
}

/** Values of a variant as its functions get them. */
type Given = Resolved["given"];

/** The functions of a definition whose parameters are whatever they are. */
interface Forms {
  readonly mask: (given: Given, shape: Shape) => PairMask;
  readonly score: (given: Given, shape: Shape) => PairScore;
  readonly slope: (given: Given, shape: Shape) => PairScore;
  readonly sink: (given: Given, shape: Shape) => (h: number) => number;
  readonly band: (given: Given, shape: Shape) => Band;
  readonly tile: (given: Given, shape: Shape) => (queries: Range, keys: Range) => Overlap;
}
type Form = keyof Forms;

const refused = ({ name }: Definition, needed: string, found: string) =>
  new VariantInvalid({ variant: name, needed, found });

const namePattern = /^[A-Za-z][A-Za-z0-9-]*$/;
const parameterPattern = /^[A-Za-z][A-Za-z0-9_]*$/;
/** What a WGSL form knows by these names, or nobody may name anything. */
const takenNames = new Set([
  ...wgslWords,
  ..."b h q k s numbers bool f16 f32 i32 u32 array atomic vec2 vec3 vec4".split(" "),
]);

/** What a variant's own function threw, as a refusal; anything else is thrown again. */
export const thrownBy = (names: ReadonlyArray<string>, cause: unknown): VariantInvalid => {
  if (cause instanceof VariantInvalid) return cause;
  if (names.length === 0) throw cause;
  return new VariantInvalid({
    variant: names.join(" & "),
    needed: "functions that do not throw",
    found: cause instanceof Error ? cause.message : String(cause),
  });
};

/** Decodes one variant's parameters, and computes what it wants of them. */
const resolveOne = (
  { definition, params }: Variant,
  shape: Shape,
): Result.Result<Resolved, VariantInvalid> =>
  Result.gen(function* () {
    const { precompute, refuse } = definition;
    const kinds = definition.params ?? {};
    if (!namePattern.test(definition.name)) {
      return yield* Result.fail(
        refused(definition, "a name of letters, digits and dashes", `"${definition.name}"`),
      );
    }
    if (definition.contract !== contract) {
      const needed = `version ${contract} of the contract`;
      return yield* Result.fail(refused(definition, needed, `version ${definition.contract}`));
    }
    const odd = [...Object.keys(kinds), ...Object.keys(precompute?.params ?? {})]
      .find((key) => !parameterPattern.test(key) || takenNames.has(key));
    if (odd !== undefined) {
      const needed = "parameters whose names WGSL forms can have beside b, h, q, k and s";
      return yield* Result.fail(refused(definition, needed, `"${odd}"`));
    }
    const unknown = Object.keys(params).find((key) => !(key in kinds));
    if (unknown !== undefined) {
      const known = Object.keys(kinds).join(", ") || "none";
      return yield* Result.fail(refused(definition, `parameters of ${known}`, `"${unknown}"`));
    }
    const values: Record<string, number | ArrayLike<number>> = {};
    const defaults: Readonly<Record<string, unknown>> = definition.defaults?.(shape) ?? {};
    for (const [key, { schema, table }] of Object.entries(kinds)) {
      const value = params[key] ?? defaults[key];
      const plain = ArrayBuffer.isView(value)
        ? Array.from(value as unknown as ArrayLike<number>)
        : value;
      const decoded = Schema.decodeUnknownResult(schema)(plain);
      if (Result.isFailure(decoded)) {
        const found = value === undefined ? "nothing" : JSON.stringify(value).slice(0, 40);
        const why = decoded.failure.message.replaceAll(/\s*\n\s*/g, " ");
        return yield* Result.fail(
          refused(definition, `its parameter "${key}"`, `${found} (${why})`),
        );
      }
      values[key] = decoded.success as number | ArrayLike<number>;
      if (table && (decoded.success as ArrayLike<number>).length === 0) {
        const needed = `its parameter "${key}" to be a table of at least one number`;
        return yield* Result.fail(refused(definition, needed, "none"));
      }
    }
    const fault = refuse?.(values as Values<Record<never, never>>, shape);
    if (fault !== undefined) {
      const [needed = "", ...found] = fault.split(": found ");
      return yield* Result.fail(refused(definition, needed, found.join(": found ")));
    }
    const computed = precompute?.from(values as Values<Record<never, never>>, shape) ?? {};
    return { definition, given: { ...values, ...computed as Given } };
  });

/** May a band reach so far? Behind the query as well, but not so far that positions leave the range of WGSL's integers. */
const isReach = (tokens: unknown): boolean =>
  tokens === Infinity || Number.isInteger(tokens) && (tokens as number) >= -unbounded;

/** The larger of what two ranges of pairs may be, where both must hold. */
const both = (a: Overlap, b: Overlap): Overlap =>
  a === "none" || b === "none" ? "none" : a === "all" && b === "all" ? "all" : "some";

const composed = (scores: ReadonlyArray<PairScore>): PairScore | undefined => {
  if (scores.length <= 1) return scores[0];
  return (s, b, h, q, k) => scores.reduce((score, of) => of(score, b, h, q, k), s);
};

/** The derivative of composed scores, by the chain rule. */
const slopeOf = (
  scores: ReadonlyArray<PairScore>,
  slopes: ReadonlyArray<PairScore>,
): PairScore | undefined => {
  if (slopes.length <= 1) return slopes[0];
  return (s, b, h, q, k) => {
    let product = 1;
    scores.forEach((score, i) => {
      product *= slopes[i]!(s, b, h, q, k);
      s = score(s, b, h, q, k);
    });
    return product;
  };
};

/** What variants say together about tensors of a shape; full attention where there is none. */
export const resolveAttention = (
  variants: ReadonlyArray<Variant>,
  shape: Shape,
): Result.Result<Attention, VariantInvalid> =>
  Result.flatMap(
    Result.try({
      try: () => resolveAll(variants, shape),
      catch: (cause) => thrownBy([], cause),
    }),
    identity,
  );

const resolveAll = (
  variants: ReadonlyArray<Variant>,
  { batch, tokens, heads, kvHeads, headDim }: Shape,
): Result.Result<Attention, VariantInvalid> =>
  Result.gen(function* () {
    const shape = { batch, tokens, heads, kvHeads, headDim }; // which crosses to threads, and nothing else
    const resolved: Array<Resolved> = [];
    for (const variant of variants) {
      const { name } = variant.definition;
      const one = Result.try({
        try: () => resolveOne(variant, shape),
        catch: (cause) => thrownBy([name], cause),
      });
      resolved.push(yield* Result.flatMap(one, identity));
    }

    /** One form of some variants, with their parameters; where a variant lacks it, `otherwise`. */
    const formsOf = <K extends Form>(
      form: K,
      of: ReadonlyArray<Resolved>,
      otherwise: (name: string, i: number) => ReturnType<Forms[K]>,
    ): ReadonlyArray<ReturnType<Forms[K]>> =>
      of.map(({ definition, given }, i) => {
        const make = (definition as unknown as Partial<Forms>)[form];
        try {
          return (make?.(given, shape) ?? otherwise(definition.name, i)) as ReturnType<Forms[K]>;
        } catch (cause) {
          throw thrownBy([definition.name], cause);
        }
      });
    const lost = (name: string) => (): never => {
      throw new Error(`attention "${name}" has no TypeScript form`);
    };

    const wide: Band = { back: unbounded, ahead: unbounded };
    const bands = formsOf("band", resolved, () => wide);
    const odd = bands.findIndex(({ back, ahead }) => ![back, ahead].every(isReach));
    if (odd >= 0) {
      const { back, ahead } = bands[odd]!;
      const needed = "a band of whole numbers, or Infinity where it has no end";
      const found = `back ${back} and ahead ${ahead}`;
      return yield* Result.fail(refused(resolved[odd]!.definition, needed, found));
    }
    const band = bands.reduce((a, b) => ({
      back: Math.min(a.back, b.back),
      ahead: Math.min(a.ahead, b.ahead),
    }), wide);

    const masked = resolved.filter(({ definition: { bandSaysAll, mask, wgsl } }) =>
      bandSaysAll !== true && (mask !== undefined || wgsl?.mask !== undefined)
    );
    const masks = formsOf("mask", masked, lost);
    // Where a variant has no mask, its band is all that it says.
    const every = formsOf(
      "mask",
      resolved,
      (_name, i) => (_b, _h, q, k) => allows(bands[i]!, q, k),
    );
    const tiles = formsOf("tile", masked, () => () => "some");
    const mask: PairMask | undefined = masks.length <= 1
      ? masks[0]
      : (...pair) => masks.every((of) => of(...pair));

    const scored = resolved.filter(({ definition: { score, wgsl } }) =>
      score !== undefined || wgsl?.score !== undefined
    );
    const scores = formsOf("score", scored, lost);
    const score = composed(scores);
    const slope = slopeOf(scores, formsOf("slope", scored, lost));

    const sunk = resolved.filter(({ definition }) => definition.sink !== undefined);
    const sinks = formsOf("sink", sunk, lost);
    const sink = sinks.length === 0
      ? undefined
      : (h: number) => sinks.map((of) => of(h)).reduce(logSumExp);
    const lacking: Attention["lacking"] = (form, language) =>
      (form === "mask" ? masked : scored).find(({ definition }) =>
        language === undefined ||
        (language === "WGSL" ? definition.wgsl?.[form] : definition[form]) === undefined
      )?.definition.name;

    return {
      variants: resolved,
      specs: variants.map(({ definition: { name, module }, params }) => ({ name, module, params })),
      shape,
      sees: (...pair) => every.every((of) => of(...pair)),
      band,
      ...(mask === undefined ? {} : { mask }),
      ...(score === undefined ? {} : { score }),
      ...(slope === undefined ? {} : { slope }),
      ...(sink === undefined ? {} : { sink }),
      overlap: (queries, keys) =>
        tiles.reduce<Overlap>((so, of) => both(so, of(queries, keys)), "all"),
      masked: masked.map(({ definition: { name } }) => name),
      untiled: masked.filter(({ definition }) => definition.tile === undefined)
        .map(({ definition: { name } }) => name),
      countable: lacking("mask", "TypeScript") === undefined,
      perHead: masked.some(({ definition }) => definition.perHead === true),
      lacking,
    };
  });

/** Variants in words: "causal & window(size: 4096)"; tables by their length. */
export const namesOf = (variants: ReadonlyArray<Variant>): string =>
  variants.map(({ definition: { name }, params }) => {
    const given = Object.entries(params).map(([key, value]) => {
      const length = typeof value === "object"
        ? (value as ArrayLike<unknown> | null)?.length
        : undefined;
      return `${key}: ${length === undefined ? value : `${length} numbers`}`;
    });
    return given.length === 0 ? name : `${name}(${given.join(", ")})`;
  }).join(" & ") || "bidirectional";

/** The failure of scores that became no number, with the names of the variants that may have made them so. */
export const noNumber = (
  { variants }: Attention,
  [b, h, q, k]: readonly [b: number, h: number, q: number, k: number],
): Error => {
  const names = variants
    .filter(({ definition: { score, wgsl } }) => score !== undefined || wgsl?.score !== undefined)
    .map(({ definition: { name } }) => `"${name}"`).join(" and ");
  return new Error(
    `attention ${names} made a score of NaN, of batch entry ${b}, head ${h}, query ${q}, key ${k}`,
  );
};

const logSumExp = (a: number, b: number): number =>
  Math.max(a, b) + Math.log1p(Math.exp(-Math.abs(a - b)));
