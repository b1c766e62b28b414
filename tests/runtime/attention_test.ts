import { Result } from "effect";
import assert from "node:assert/strict";
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
