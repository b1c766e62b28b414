import { Result } from "effect";
import assert from "node:assert/strict";
import { alibi } from "../../plugins/attention.ts";
import { resolveAttention } from "../../runtime/attention.ts";
import { type Definition, int } from "../../runtime/variant.ts";

const shape = { batch: 1, tokens: 20, heads: 2, kvHeads: 2, headDim: 4 };

/** A variant of these parts. */
const mine = (parts: Partial<Definition>) => ({
  definition: { name: "mine", contract: 1, module: import.meta.url, ...parts },
  params: {},
});

const refusal = (...of: Parameters<typeof resolveAttention>) => {
  const attention = resolveAttention(...of);
  assert.ok(Result.isFailure(attention));
  return attention.failure.message;
};

Deno.test("resolveAttention() refuses parameters named as WGSL names something else", () => {
  for (const name of ["target", "loop", "f32", "q"]) {
    assert.match(
      refusal([mine({ params: { [name]: int() } })], shape),
      RegExp(`parameters whose names WGSL forms can have .*: found "${name}"`),
    );
  }
});

Deno.test("resolveAttention() refuses tables beyond the range of float32, as it does numbers", () => {
  assert.match(refusal([alibi({ slopes: [1e300, 1] })], shape), /its parameter "slopes": found/);
});
