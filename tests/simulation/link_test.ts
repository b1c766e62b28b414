/** Thousands of bad days of a NATS link. */
import assert from "node:assert/strict";
import { simulateLink, simulateRogue } from "./link.ts";

const seeds = 2000;

Deno.test(`a NATS link keeps its promises in ${seeds} simulations`, () => {
  const seen = new Map<string, number>();
  for (let seed = 0; seed < seeds; seed++) {
    try {
      for (const [what, times] of simulateLink(seed).seen) {
        seen.set(what, (seen.get(what) ?? 0) + times);
      }
    } catch (error) {
      const command = `deno run tests/simulation/replay.ts link ${seed}`;
      throw new Error(`seed ${seed} fails; again with: ${command}`, { cause: error });
    }
  }
  console.log(Object.fromEntries(seen));
  for (
    const what of [
      "resent",
      "duplicate",
      "stale",
      "foreign",
      "header",
      "body",
      "server away",
      "member frozen",
    ]
  ) {
    assert.ok((seen.get(what) ?? 0) >= 100, `${what} happened ${seen.get(what) ?? 0} times`);
  }
});

Deno.test("a NATS link holds no more than it granted, whatever a peer sends", () => {
  for (let seed = 0; seed < 200; seed++) simulateRogue(seed);
});

Deno.test("the same seed gives the same simulation of a link", () => {
  for (const seed of [1, 2, 3]) assert.equal(simulateLink(seed).hash, simulateLink(seed).hash);
});
