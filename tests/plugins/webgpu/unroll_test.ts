import assert from "node:assert/strict";
import { unroll } from "../../../plugins/webgpu/unroll.ts";

Deno.test("unroll repeats, chooses and computes", () => {
  const text = `before
//@ for $r < ROWS
  //@ if WIDE
  a$r
  //@ for $c < QUADS
  b$r_$c = x$[$c / LANES]_$[$c % LANES];
  //@ end
  //@ else
  narrow$r
  //@ end
//@ end
after`;
  assert.equal(
    unroll(text, { ROWS: 2, QUADS: 3, LANES: 2, WIDE: 1 }).replaceAll(/\n +/g, "\n"),
    `before
a0
b0_0 = x0_0;
b0_1 = x0_1;
b0_2 = x1_0;
a1
b1_0 = x0_0;
b1_1 = x0_1;
b1_2 = x1_0;
after`,
  );
  assert.equal(
    unroll(text, { ROWS: 1, QUADS: 3, LANES: 2, WIDE: 0 }).replaceAll(/\n +/g, "\n"),
    "before\nnarrow0\nafter",
  );
  assert.equal(unroll("//@ if A\nyes\n//@ end", { A: 0 }), "");
});

Deno.test("unroll refuses a block without an end and a name without a number", () => {
  assert.throws(() => unroll("//@ for $x < N\n//@ if N\n//@ end", { N: 2 }), /line 1 opens/);
  assert.throws(() => unroll("//@ if M\n//@ end", { N: 2 }), /how much M is/);
  assert.throws(() => unroll("$[3 / M]", { N: 2 }), /how much M is/);
});
