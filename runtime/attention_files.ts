/**
 * Attention for threads, which load the files of variants themselves.
 *
 * @module
 */
import { Effect, Result } from "effect";
import { type Attention, resolveAttention, type VariantSpec } from "./attention.ts";
import { type AttentionSpec, saidOf } from "./attention_spec.ts";
import { InvalidProblem, VariantInvalid } from "./errors.ts";
import type { Definition } from "./variant.ts";

/** This is a thread that computes, since it was told to load files of variants. */
let loads = false;

/**
 * Fails in a thread that computes: a script that is the file of a variant is loaded there again, and would start threads
 * that load it again, and so on.
 */
export const outsideOfThreads: Effect.Effect<void, InvalidProblem> = Effect.suspend(() =>
  loads
    ? Effect.fail(
      new InvalidProblem({
        what: "the script that calls attend",
        needed: "another file than that of a variant, which every thread loads",
        found: "a call in such a thread; put the variant in a file of its own",
      }),
    )
    : Effect.void
);

const stranger = ({ name, module }: VariantSpec): VariantInvalid =>
  new VariantInvalid({
    variant: name,
    needed: "to be the default export of a file of its own, which threads load",
    found: `another default export in ${module}, or functions there that know other values`,
  });

/** The definition that a file exports by default. */
const definitionOf = async (spec: VariantSpec): Promise<Definition> => {
  loads = true;
  const { default: made } = await import(spec.module);
  const definition: Definition | undefined = made?.definition;
  if (definition?.name !== spec.name) throw stranger(spec);
  return definition;
};

/** The attention, with the functions of its files. Rejects with a sentence where that fails. */
export const loadAttention = async (
  { specs, shape, said }: AttentionSpec,
): Promise<Attention> => {
  const variants = await Promise.all(
    specs.map(async (spec) => ({ definition: await definitionOf(spec), params: spec.params })),
  );
  const attention = resolveAttention(variants, shape);
  if (Result.isFailure(attention)) throw attention.failure;
  attention.success.variants.forEach((variant, i) => {
    const { text, answers } = saidOf(variant, shape);
    const same = text === said[i]!.text && answers.length === said[i]!.answers.length &&
      answers.every((answer, at) => Object.is(answer, said[i]!.answers[at]));
    if (!same) throw stranger(specs[i]!);
  });
  return attention.success;
};
