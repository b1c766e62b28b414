import { Effect } from "effect";
import assert from "node:assert/strict";
import { cpu } from "../../plugins/cpu.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { inProcess } from "../../plugins/memory.ts";
import { reference } from "../../plugins/reference.ts";
import { attend } from "../../runtime/attend.ts";
import { findLibrary } from "../../runtime/library.ts";
import { normals } from "../support/random.ts";
import near, { all, wide } from "../support/two_variants.ts";

const [tokens, heads, headDim] = [30, 2, 4];
const [q, k, v] = [1, 2, 3].map((seed) => normals(seed, tokens * heads * headDim));
const input = { tokens, heads, headDim, q: q!, k: k!, v: v!, ring: 2 };

for (const device of findLibrary(libraryName) === undefined ? [reference] : [reference, cpu]) {
  Deno.test(`threads of ${device.name} refuse a variant that is not its file's default export`, () =>
    Effect.gen(function* () {
      yield* attend({ ...input, attention: [near()] });
      for (const other of [wide, all]) {
        const { message } = yield* Effect.flip(attend({ ...input, attention: [other()] }));
        assert.match(
          message,
          /Cannot use attention "near": it needs to be the default export of a file of its own/,
        );
      }
    }).pipe(Effect.provide(inProcess(device)), Effect.runPromise));
}

Deno.test("a script that is the file of its variant fails at once", async () => {
  await assert.rejects(
    import("../support/own_script.ts"),
    /the script that calls attend must be another file than that of a variant/,
  );
});
