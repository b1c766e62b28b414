/**
 * Plugins from files of their users: a file exports an attention or a device by default. An attention is known by the hash
 * of what its file holds, so that nodes can tell whether they mean the same by a name.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { Effect, Layer } from "effect";
import { FileInvalid, VariantInvalid } from "../runtime/errors.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";
import { contract, type Definition } from "../runtime/variant.ts";
import { importsOf } from "./plugin_imports.ts";

/** What a file exports. */
export type LoadedPlugin =
  | { readonly kind: "attention"; readonly definition: Definition }
  | { readonly kind: "device"; readonly device: DevicePlugin };

/** A default export, before anybody looked at it. */
type Exported = Partial<DevicePlugin> & { readonly definition?: Definition };

const isDevice = (exported: Exported): exported is DevicePlugin =>
  typeof exported.name === "string" && Effect.isEffect(exported.score) &&
  Layer.isLayer(exported.layer);

const runtime = new URL("../runtime/", import.meta.url).href;

/** Part of annulus, whose version nodes compare; other files near a plugin may be anybody's. */
const isOurs = (specifier: string, module: string): boolean =>
  specifier === "annulus/variant" ||
  /^[./]/.test(specifier) && new URL(specifier, module).href.startsWith(runtime);

/** Loads what a file exports by default. Its code runs in this process: load what you trust. */
export const loadPlugin = Effect.fn("loadPlugin")(function* (path: string) {
  const refused = (found: string) =>
    new FileInvalid({
      attempted: "load a plugin from",
      file: path,
      needed: "it needs a default export that defineAttention made, or that is a device",
      found,
    });
  const reason = (cause: unknown) =>
    refused(cause instanceof Error ? cause.message : String(cause));
  const module = pathToFileURL(resolve(path)).href;
  const content = yield* Effect.tryPromise({ try: () => Deno.readFile(path), catch: reason });
  const { default: exported }: { default?: Exported } = yield* Effect
    .tryPromise({ try: () => import(module), catch: reason });
  if (typeof exported !== "object" && typeof exported !== "function" || exported === null) {
    return yield* refused("something else");
  }
  if (isDevice(exported)) {
    return { kind: "device", device: exported } satisfies LoadedPlugin as LoadedPlugin;
  }
  const { definition } = exported;
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
  // The hash is of this file alone.
  const imported = importsOf(new TextDecoder().decode(content)).find((specifier) =>
    !isOurs(specifier, module)
  );
  if (imported !== undefined) {
    return yield* new VariantInvalid({
      variant: definition.name,
      needed: "to be one file, which imports nothing but annulus/variant",
      found: imported === "import()" ? imported : `an import of "${imported}"`,
    });
  }
  const hash = createHash("sha256").update(content).digest("hex");
  return { kind: "attention", definition: { ...definition, hash } } as LoadedPlugin;
});
