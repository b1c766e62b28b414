import { Effect } from "effect";
import assert from "node:assert/strict";
import { causal } from "../../plugins/attention.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { attend, type AttendOptions } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";

const x = new Float32Array(96);
const [shape, keys] = [{ tokens: 6, heads: 2, headDim: 8, q: x }, { k: x, v: x }];
const latents = { rank: 4, rope: 4, value: 4, values: new Float32Array(48), up: x.subarray(0, 64) };

for (
  const [what, options, sentence] of [
    [
      "names for variants",
      { ...shape, ...keys, attention: ["causal"] },
      /the attention must be a list of variants, .*: found something else at index 0/,
    ],
    [
      "makers for variants",
      { ...shape, ...keys, attention: [causal(), causal] },
      /the attention must be .*: found a function that makes one at index 1/,
    ],
    [
      "a variant for a list",
      { ...shape, ...keys, attention: causal() },
      /the attention must be .*: found object/,
    ],
    ["neither keys nor latents", shape, /k must be a Float32Array: found none/],
    ["keys without values", { ...shape, k: x }, /v must be a Float32Array: found none/],
    [
      "keys beside latents",
      { ...shape, ...keys, latents },
      /k and v must be absent beside latents: found both/,
    ],
    [
      "arrays of another kind",
      { ...shape, ...keys, q: [...x] },
      /q must be a Float32Array: found object/,
    ],
  ] as const
) {
  Deno.test(`attend() refuses ${what} with a sentence`, () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(attend(options as unknown as AttendOptions));
      assert.equal(error._tag, "InvalidProblem");
      assert.match(error.message, sentence);
    }).pipe(
      Effect.provideService(Crew, Crew.of({ run: () => Effect.die("it ran") } as never)),
      Effect.provide(memoryLinks()),
      Effect.runPromise,
    ));
}
