/**
 * What `annulus plugin check` does with a file that may be anybody's: it is loaded and looked at in a process that can do
 * no harm. A file that asks for more is refused, and so is one that does not keep to its limits.
 *
 * @module
 */
import { resolve } from "node:path";
import { Effect, Result, Schema } from "effect";
import { cpu } from "../plugins/cpu.ts";
import { libraryName } from "../plugins/cpu/blas.ts";
import { FileInvalid } from "../runtime/errors.ts";
import { findLibrary } from "../runtime/library.ts";
import { chooseDevice } from "../runtime/plugin.ts";
import { type Ending, type Grants, type Limits, runConfined } from "./confined.ts";
import { devices } from "./devices.ts";
import { note } from "./output.ts";
import { fromFileUrl } from "./paths.ts";
import type { Check } from "./plugin_check.ts";
import { Verdict } from "./plugin_check_process.ts";

const project = new URL("..", import.meta.url);

/** What the check itself needs beside the file. Whoever may call native code can do whatever the user can. */
const grantsOf = (file: string, device: string): Grants => {
  const code = ["deno.json", "runtime", "kernels", "plugins"].map((name) =>
    fromFileUrl(new URL(name, project))
  );
  const library = device === cpu.name ? findLibrary(libraryName) : undefined;
  const grants = { read: [...code, resolve(file)], sys: ["systemMemoryInfo"] };
  if (library === undefined) return grants;
  return {
    ...{ ...grants, read: [...grants.read, library] },
    ffi: [library],
    env: ["LD_LIBRARY_PATH", "OPENBLAS_NUM_THREADS"],
  };
};

/** What is needed, and what was found instead of a verdict. */
const failureOf = (
  ending: Exclude<Ending, { readonly kind: "said" }>,
  { seconds, memory }: Limits,
): readonly [needed: string, found: string] => {
  switch (ending.kind) {
    case "asked":
      return ["it must do without permissions", `that it asked for ${ending.what}`];
    case "late":
      return [`it must finish within ${seconds} s, which --seconds changes`, "that it did not"];
    case "large":
      return [`it must do with ${memory} MiB, which --memory changes`, "that it needed more"];
    case "ended":
      return ["its checks must come to their end", `that it ended before, with ${ending.how}`];
  }
};

/** Looks at everything that can be looked at without permissions. */
export const checkConfined = Effect.fn("checkConfined")(function* (
  file: string,
  device: string,
  limits: Limits,
) {
  const refused = (needed: string, found: string) =>
    new FileInvalid({ attempted: "check", file, needed, found });
  if (resolve(file).includes(",")) {
    return yield* refused("its path needs to be without commas, at which Deno ends it", "one");
  }
  const wanted = device === "auto"
    ? devices.filter((one) => one !== cpu)
    : [yield* chooseDevice(devices, device)];
  const { ending, printed } = yield* runConfined(
    new URL("./plugin_check_process.ts", import.meta.url),
    [file, ...wanted.map(({ name }) => name)],
    grantsOf(file, device),
    limits,
  ).pipe(
    Effect.mapError((found) => refused("it needs a process of its own, which `sh` starts", found)),
  );
  for (const line of printed) yield* note(`${file}: ${line}`);
  if (ending.kind !== "said") return yield* refused(...failureOf(ending, limits));
  const verdict = Schema.decodeUnknownResult(Verdict)(ending.text);
  if (Result.isFailure(verdict)) {
    return yield* refused("its checks must come to a verdict", "something else");
  }
  if ("refused" in verdict.success) return yield* verdict.success.refused;
  const { name, checks } = verdict.success;
  if (device !== "auto" || checks.some(({ complaint }) => complaint !== undefined)) {
    return { name, checks };
  }
  const unasked: ReadonlyArray<Check> = (yield* cpu.score) === 0 ? [] : [{
    name: `rings on ${cpu.name}`,
    skipped: `it would be given native code: --device ${cpu.name}, for a file that you have read`,
  }];
  return { name, checks: [...checks, ...unasked] };
});
