/** Thousands of bad days of a NATS link. */
import assert from "node:assert/strict";
import { assertSeen, campaign } from "./campaign.ts";
import { simulateLink, simulateRogue } from "./link.ts";

Deno.test("a NATS link keeps its promises, whatever becomes of its messages", async () => {
  const seen = await campaign("link", simulateLink, [0, 1900]);
  const faults = ["resent", "duplicate", "stale", "foreign", "header", "body"];
  assertSeen(seen, 100, ...faults, "server away", "member frozen");
});

Deno.test("a NATS link holds no more than it granted, whatever a peer sends", () => {
  for (let seed = 0; seed < 200; seed++) simulateRogue(seed);
});

Deno.test("the same seed gives the same simulation of a link", () => {
  for (const seed of [1, 2, 3]) assert.equal(simulateLink(seed).hash, simulateLink(seed).hash);
});
