/** Hundreds of bad days of whole runs. */
import assert from "node:assert/strict";
import { assertSeen, campaign } from "./campaign.ts";
import { simulateRun } from "./run.ts";

Deno.test("a run has the bits of an undisturbed one, whatever becomes of nodes, server and messages", async () => {
  const seen = await campaign("run", simulateRun, [0, 100]);
  assertSeen(
    seen,
    20,
    "node died",
    "node cut off",
    "server away",
    "recovery",
    "duplicate",
  );
});

Deno.test("the same seed gives the same simulation of a run", async () => {
  for (const seed of [0, 1, 2]) {
    assert.equal((await simulateRun(seed)).hash, (await simulateRun(seed)).hash);
  }
});
