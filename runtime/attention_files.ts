/**
 * Attention for threads: functions do not cross to a Worker, so that it loads the files of variants itself.
 *
 * @module
 */
import { Result } from "effect";
import { type Attention, resolveAttention, type VariantSpec } from "./attention.ts";
import type { Definition, Shape } from "./variant.ts";

/** An attention as it crosses. */
export interface AttentionSpec {
  readonly specs: ReadonlyArray<VariantSpec>;
  readonly shape: Shape;
}

const definitions = new Map<string, Promise<Definition>>();

/** The definition that a file exports by default; loaded once. Rejects where it exports something else. */
const definitionOf = ({ name, module }: VariantSpec): Promise<Definition> => {
  const before = definitions.get(module);
  if (before !== undefined) return before;
  const loaded = import(module).then(({ default: made }) => {
    const definition: Definition | undefined = made?.definition;
    if (definition?.name === name) return definition;
    throw new Error(`the default export of ${module} is not the attention "${name}"`);
  });
  definitions.set(module, loaded);
  return loaded;
};

/** The attention, with the functions of its files. Rejects with a sentence where that fails. */
export const loadAttention = async ({ specs, shape }: AttentionSpec): Promise<Attention> => {
  const variants = await Promise.all(
    specs.map(async (spec) => ({ definition: await definitionOf(spec), params: spec.params })),
  );
  const attention = resolveAttention(variants, shape);
  if (Result.isFailure(attention)) throw attention.failure;
  return attention.success;
};
