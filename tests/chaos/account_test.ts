/** What faults cost, and what memory grows by, in figures that can be counted by hand. */
import assert from "node:assert/strict";
import { accountOf, type Fault, type Run, tableOf } from "./account.ts";
import { floorsOf, grown, type Holdings, slopeOf } from "./watch.ts";

const run = (began: number, ended: number, right = true): Run => ({
  began: 1000 * began,
  ended: 1000 * ended,
  right,
});
const fault = (name: string, began: number, ended: number, wentOn?: number): Fault => ({
  ...{ name, began: 1000 * began, ended: 1000 * ended },
  ...(wentOn === undefined ? {} : { wentOn: 1000 * wentOn }),
});
const [killed, frozen, between] = [
  fault("killed", 25, 27, 29),
  fault("frozen", 50, 60, 56),
  fault("killed", 52, 53),
];

Deno.test("what runs took longer for faults is not effective, and runs that failed are not", () => {
  // 20 s undisturbed, 5 s longer, undisturbed after it, 8 s longer for two faults, and in vain.
  const runs = [run(0, 20), run(20, 45), run(45, 73), run(73, 93), run(93, 100, false)];
  const { undisturbed, untouched, effective, cost } = accountOf(
    [run(-20, 0)],
    runs,
    [killed, frozen, between],
  );
  assert.equal(undisturbed, 20_000);
  assert.equal(untouched, 2);
  assert.equal(effective, 0.8);
  assert.deepEqual([...cost.values()], [5000, 4000, 4000]);
  assert.deepEqual(tableOf([killed, frozen, between], cost).slice(2), [
    "| killed | 2 | 1 | 4.0 | 4.0 | 5.0 | 5.0 |",
    "| frozen | 1 | 1 | 6.0 | 6.0 | 4.0 | 4.0 |",
  ]);
});

Deno.test("a slope is that of all processes, whatever their heights are", () => {
  const process = (from: number, height: number, slope: number) =>
    Array.from({ length: 10 }, (_, i) => ({
      steps: from + 100 * i,
      mebibytes: height + slope * i / 10,
    }));
  const same = slopeOf([process(0, 100, 3), process(5000, 20, 3)]);
  assert.ok(Math.abs(same.slope - 3) < 1e-9 && same.error < 1e-9);
  const apart = slopeOf([process(0, 100, 3), process(5000, 20, 1)]);
  assert.ok(Math.abs(apart.slope - 2) < 1e-9 && apart.error > 0.1);
});

Deno.test("floors are the lowest samples, each where it was, of whole windows", () => {
  const samples = [5, 3, 4, 7, 8, 6, 1].map((mebibytes, steps) => ({ steps, mebibytes }));
  assert.deepEqual(floorsOf(samples, 3), [samples[1], samples[5]]);
});

Deno.test("what any node has more of than all nodes had has grown", () => {
  const was: Holdings = {
    ...{ connections: [2, 2], subscriptions: [2, 2], descriptors: [31, 32], children: [0, 0] },
    subjects: 50,
  };
  assert.deepEqual(grown(was, { ...was, descriptors: [32, 30] }), []);
  assert.deepEqual(grown(was, { ...was, descriptors: [33, 30], subjects: 51 }), [
    "descriptors grew: 31, 32 before, 33, 30 after",
    "subjects grew: 50 before, 51 after",
  ]);
});
