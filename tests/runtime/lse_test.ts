import assert from "node:assert/strict";
import { lseOf } from "../../runtime/lse.ts";

Deno.test("lseOf() is −∞ for a row that saw nothing, whatever its running maximum", () => {
  for (const m of [-Infinity, -3.4e38, 0, 5]) assert.equal(lseOf(m, 0), -Infinity);
});

Deno.test("lseOf() is natural and absolute: m + ln l", () => {
  assert.equal(lseOf(2, Math.E), 3);
  assert.equal(lseOf(-3.4e38, 7), -3.4e38);
});
