/**
 * `annulus plugin new NAME` and `annulus plugin check FILE`.
 *
 * @module
 */
import { Effect } from "effect";
import { FileInvalid } from "../runtime/errors.ts";
import { contract } from "../runtime/variant.ts";
import type { Limits } from "./confined.ts";
import { print, printJson } from "./output.ts";
import { checkConfined } from "./plugin_check_confined.ts";
import { knownPlugins } from "./plugins.ts";

/** A variant that works, to begin from. */
const template = (name: string): string =>
  `import { defineAttention, int } from "annulus/variant";

/** Query q sees the keys k ≤ q at a distance that is a multiple of step. */
export default defineAttention({
  name: "${name}",
  contract: ${contract},
  module: import.meta.url,
  params: { step: int({ least: 1 }) },
  examples: () => [{ step: 2 }, { step: 5 }],
  mask: ({ step }) => (_b, _h, q, k) => k <= q && (q - k) % step === 0,
  wgsl: { mask: "return k <= q && (q - k) % step == 0;" },
});
`;

/** Writes NAME.ts into this folder, and gives its name; never over another file. */
export const writePlugin = Effect.fn("writePlugin")(function* (name: string) {
  const file = `${name}.ts`;
  const refused = (needed: string, found: string) =>
    new FileInvalid({ attempted: "write an attention to", file, needed, found });
  if (!/^[A-Za-z][A-Za-z0-9-]*$/.test(name)) {
    return yield* refused("it needs a name of letters, digits and dashes", `"${name}"`);
  }
  yield* Effect.tryPromise({
    try: () => Deno.writeTextFile(file, template(name), { createNew: true }),
    catch: (cause) =>
      cause instanceof Deno.errors.AlreadyExists
        ? refused("it needs a name that no file has", "a file")
        : refused("it needs a folder to write to", String(cause)),
  });
  return file;
});

/** All that `plugin check` can be told. */
export interface CheckFlags extends Limits {
  readonly file: string;
  readonly device: string;
  readonly json: boolean;
}

/** Prints what was looked at and what is wrong; true where nothing is. */
export const runPluginCheck = Effect.fn("runPluginCheck")(function* (
  { file, device, json, ...limits }: CheckFlags,
) {
  yield* knownPlugins([], device);
  const { name, checks } = yield* checkConfined(file, device, limits);
  const faults = checks.filter(({ complaint }) => complaint !== undefined);
  const skips = checks.filter(({ skipped }) => skipped !== undefined);
  if (json) {
    yield* printJson({ file, name, ok: faults.length === 0, checks });
    return faults.length === 0;
  }
  for (const { name, complaint, skipped } of checks) {
    const why = complaint ?? skipped;
    const mark = complaint !== undefined ? "✗" : skipped !== undefined ? "–" : "✓";
    yield* print(why === undefined ? `${mark} ${name}` : `${mark} ${name}: ${why}`);
  }
  yield* print(
    faults.length === 0
      ? `attention "${name}" keeps its contract` +
        (skips.length === 0
          ? ""
          : `, but for ${skips.length} of ${checks.length} checks, which were skipped`)
      : `attention "${name}" does not keep its contract: ${faults.length} of ${checks.length} checks`,
  );
  return faults.length === 0;
});
