/**
 * A script that is the file of the variant with which it attends.
 *
 * @module
 */
import { Effect } from "effect";
import { reference } from "../../plugins/reference.ts";
import { inProcess } from "../../plugins/memory.ts";
import { attend } from "../../runtime/attend.ts";
import { defineAttention } from "../../runtime/variant.ts";

const mine = defineAttention({
  name: "mine",
  contract: 1,
  module: import.meta.url,
  mask: () => (_b, _h, q, k) => k <= q,
});
export default mine;

const x = new Float32Array(24);
await attend({ tokens: 6, heads: 1, headDim: 4, q: x, k: x, v: x, attention: [mine()] }).pipe(
  Effect.provide(inProcess(reference)),
  Effect.runPromise,
);
