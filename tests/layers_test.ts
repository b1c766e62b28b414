/** Arrows go one way: `mod.ts` and `cli/` → `plugins/` → `kernels/` → `runtime/`. */
import assert from "node:assert/strict";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

/** What a file may import, by its folder; plugins know nothing of each other. */
const mayImport: Record<string, RegExp> = {
  "runtime": /^(runtime\/|deno\.json$)/,
  "kernels": /^(kernels|runtime)\//,
  "plugins": /^(runtime|kernels)\//,
  "cli": /^(cli|plugins|kernels|runtime)\/|^deno\.json$/,
};
/** But for what a plugin is made of: a decoder is attention and a folder of tensors; what is kept, sealed files. */
const madeOf: Record<string, RegExp> = {
  "models": /^plugins\/(attention|safetensors|sealed)\.ts$/,
  "checkpoint": /^plugins\/sealed\.ts$/,
};
/** Packages that a folder must not know. */
const mayNotKnow: Record<string, RegExp> = {
  "runtime": /@nats-io|webgpu|^node:(fs|net|child_process)/,
  "kernels": /@nats-io|^effect/,
};

const sources = function* (folder: string): Generator<string> {
  for (const entry of Deno.readDirSync(join(root, folder))) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory) yield* sources(path);
    else if (path.endsWith(".ts")) yield path;
  }
};

/** Specifiers of a module's static imports and re-exports, and of the modules that its workers load. */
const importsOf = (text: string): ReadonlyArray<string> =>
  [
    ...text.matchAll(/^(?:import|export)\b[^;"]*?\bfrom\s+"([^"]+)"/gm),
    ...text.matchAll(/^import\s+"([^"]+)"/gm),
    ...text.matchAll(/new URL\("([^"]+\.(?:ts|wgsl))", import\.meta\.url\)/g),
  ].map((match) => match[1]!);

/** The part of plugins/ that belongs together: `plugins/webgpu.ts`, `plugins/webgpu_worker.ts`, `plugins/webgpu/`. */
const family = (path: string): string => /^plugins\/([a-z0-9]+)/.exec(path)![1]!;

for (const [folder, allowed] of Object.entries(mayImport)) {
  Deno.test(`${folder}/ imports only what its layer may`, () => {
    let seen = 0;
    for (const path of sources(folder)) {
      const text = Deno.readTextFileSync(join(root, path));
      for (const specifier of importsOf(text)) {
        seen++;
        if (!specifier.startsWith(".")) {
          assert.doesNotMatch(specifier, mayNotKnow[folder] ?? /^$/, `${path} knows ${specifier}`);
          continue;
        }
        const target = relative(root, join(root, dirname(path), specifier));
        const sibling = folder === "plugins" && target.startsWith("plugins/") &&
          family(target) === family(path);
        const part = folder === "plugins" && madeOf[family(path)]?.test(target);
        assert.ok(allowed.test(target) || sibling || part, `${path} imports ${target}`);
      }
    }
    assert.ok(seen > 0, "no import was found, so nothing was checked");
  });
}

Deno.test("the ring loop has no transport or device word in it", () => {
  const text = Deno.readTextFileSync(join(root, "runtime/ring.ts"));
  assert.doesNotMatch(text, /nats|webgpu|gpu|worker|websocket|socket|subject/i);
});

Deno.test("every error is in one file", () => {
  for (const folder of Object.keys(mayImport)) {
    for (const path of sources(folder)) {
      if (path === "runtime/errors.ts") continue;
      const text = Deno.readTextFileSync(join(root, path));
      assert.doesNotMatch(text, /Schema\.TaggedError</, `${path} defines an error`);
    }
  }
});
