/** The ring bench in small: its rows and figures, and that a wrong result is found out. */
import assert from "node:assert/strict";
import { Effect, Layer } from "effect";
import { measureRings, type RingOptions } from "../../bench/ring.ts";
import { ringFaults, ringMarkdown } from "../../bench/ring_report.ts";
import { reference } from "../../plugins/reference.ts";
import { Device } from "../../runtime/device.ts";
import type { DevicePlugin } from "../../runtime/plugin.ts";

const options: RingOptions = {
  shape: { heads: 2, tokens: 75, headDim: 8, causal: true },
  rings: [1, 3],
  shares: [0.5],
  rounds: 2,
  progress: () => Effect.void,
  exclusively: (work) => work,
};

Deno.test("a table has the bare kernel, and for each ring its calls, free links and slow ones", async () => {
  const table = await Effect.runPromise(measureRings(reference, options));
  assert.deepEqual(table.rows.map(({ name }) => name), [
    "bare kernel",
    "calls of a ring of 1",
    "ring of 1",
    "calls of a ring of 3",
    "ring of 3",
    "ring of 3, link at 50 %",
  ]);
  assert.deepEqual(ringFaults([table]), []);
  for (const { name, samples, verdict } of table.rows) {
    assert.equal(samples.length, 2);
    assert.ok(samples.every(({ seconds, kernel, calls }) => seconds * kernel * calls > 0));
    assert.equal(verdict === undefined, name.startsWith("calls"));
    const slow = name.includes("link");
    assert.ok(samples.every(({ hiddenByTime }) => (hiddenByTime === undefined) !== slow));
  }
  // 4 · headDim operations for each pair of every head.
  assert.equal(table.flops, 4 * 8 * 2 * 75 * 76 / 2);
  assert.match(ringMarkdown(table), /ring of 3, link at 50 %/);
});

Deno.test("a device that computes wrongly makes the bench fail", async () => {
  const wrong: DevicePlugin = {
    ...reference,
    layer: Layer.effect(
      Device,
      Effect.map(Device, (device) => ({
        ...device,
        begin: (queries) => device.begin({ ...queries, scale: queries.scale * 1.001 }),
      })),
    ).pipe(Layer.provide(reference.layer)),
  };
  const table = await Effect.runPromise(measureRings(wrong, options));
  assert.match(ringFaults([table]).join(), /ring of 3, link at 50 % is wrong/);
  assert.match(ringMarkdown(table), /WRONG/);
});
