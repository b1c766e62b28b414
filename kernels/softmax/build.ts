/**
 * `deno task wasm`: compiles `softmax.as` to the two modules beside it. The compiler is a development dependency; what
 * it makes is committed, and a test compares.
 *
 * @module
 */
import asc from "assemblyscript/asc";

/** What one of the modules needs of the engine. */
export const variants = {
  "relaxed.wasm": ["simd", "relaxed-simd"],
  "simd.wasm": ["simd"],
} as const;

/** Compiles one of the modules. */
export const build = async (module: keyof typeof variants): Promise<Uint8Array> => {
  const source = await Deno.readTextFile(new URL("./softmax.as", import.meta.url));
  let binary: Uint8Array | undefined;
  const { error, stderr } = await asc.main(
    [
      "softmax.ts", // the compiler takes no other extension
      "--outFile=softmax.wasm",
      "--optimizeLevel=3",
      "--runtime=stub",
      "--initialMemory=16", // pages of 64 KiB
      "--noAssert",
      ...variants[module].map((feature) => `--enable=${feature}`),
    ],
    {
      readFile: (name) => name === "softmax.ts" ? source : null,
      writeFile: (_name, contents) => void (binary = contents as Uint8Array),
      listFiles: () => [],
    },
  );
  if (error !== null || binary === undefined) {
    throw new Error(`Cannot compile: ${error}\n${stderr}`);
  }
  return binary;
};

/** Compiles both, and puts them beside the source. */
export const buildAll = async (): Promise<void> => {
  for (const module of Object.keys(variants) as Array<keyof typeof variants>) {
    await Deno.writeFile(new URL(`./${module}`, import.meta.url), await build(module));
  }
};

if (import.meta.main) await buildAll();
