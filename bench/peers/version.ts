/**
 * Versions of packages that do not tell their own.
 *
 * @module
 */
import config from "./deno.json" with { type: "json" };

/** The version that this folder asks for. */
export const versionOf = (name: keyof typeof config.imports): string =>
  config.imports[name].split("@").at(-1)!;
