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

Deno.test("resolveAttention() refuses a band that is no whole number of tokens", () => {
  const odd = [{ ahead: 0 }, { back: NaN, ahead: 0 }, { back: 2.5, ahead: 0 }, {
    back: 0,
    ahead: -Infinity,
  }];
  for (const band of odd) {
    assert.match(
      refusal([mine({ band: () => band as never })], shape),
      /attention "mine": it needs a band of whole numbers, .*: found back \S+ and ahead \S+$/,
    );
  }
  const endless = mine({ band: () => ({ back: Infinity, ahead: 0 }) });
  assert.ok(Result.isSuccess(resolveAttention([endless], shape)));
});

Deno.test("a variant with a band and no mask is judged by its band", () => {
  const near = mine({ band: () => ({ back: 3, ahead: 0 }) });
  const { sees, mask } = Result.getOrThrow(
    resolveAttention([near, alibi({ slopes: [1, 1] })], shape),
  );
  assert.equal(mask, undefined);
  assert.deepEqual([1, 2, 5, 6].map((k) => sees(0, 0, 5, k)), [false, true, true, false]);
});

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
