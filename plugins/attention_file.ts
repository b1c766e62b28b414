/**
 * Attention variants from files of their users. A file is known by the hash of what it holds, so that nodes can tell
 * whether they mean the same by a name.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { Effect } from "effect";
import { FileInvalid, VariantInvalid } from "../runtime/errors.ts";
import { contract, type Definition } from "../runtime/variant.ts";

/** Loads the definition that a file exports by default. Its code runs in this process: load what you trust. */
export const loadAttention = Effect.fn("loadAttention")(function* (path: string) {
  const refused = (found: string) =>
    new FileInvalid({
      attempted: "load an attention from",
      file: path,
      needed: "it needs a default export made by defineAttention",
      found,
    });
  const module = pathToFileURL(resolve(path)).href;
  const content = yield* Effect.tryPromise({
    try: () => Deno.readFile(path),
    catch: (cause) => refused(cause instanceof Error ? cause.message : String(cause)),
  });
  const exported: unknown = yield* Effect.tryPromise({
    try: () => import(module),
    catch: (cause) => refused(cause instanceof Error ? cause.message : String(cause)),
  });
  const definition = (exported as { default?: { definition?: Definition } }).default?.definition;
  if (typeof definition?.name !== "string") return yield* refused("something else");
  if (definition.contract !== contract) {
    return yield* new VariantInvalid({
      variant: definition.name,
      needed: `version ${contract} of the contract`,
      found: `version ${definition.contract}`,
    });
  }
  if (definition.module !== module) {
    return yield* refused(`its module: ${definition.module}, where import.meta.url belongs`);
  }
  return { ...definition, hash: createHash("sha256").update(content).digest("hex") } as Definition;
});
