/** What is said while a prompt is read. */
import assert from "node:assert/strict";
import { progressInWords } from "../../cli/hear.ts";

Deno.test("the time left is told once there is something to judge by, also after a lost session", () => {
  const after = (read: number) => progressInWords({ read, of: 1000 }, 200, 2);
  assert.equal(after(400), "400 of 1000 tokens read, 6 s left");
  assert.equal(after(1000), "1000 of 1000 tokens read, 0 s left");
  // Where the text begins anew, less is there than at first.
  for (const read of [0, 100, 200]) assert.equal(after(read), undefined);
});
