/** What is said of a run that failed. */
import { Effect, Result } from "effect";
import assert from "node:assert/strict";
import { FlightRecorder } from "../../runtime/flight.ts";
import { planOf } from "../../runtime/plan.ts";
import type { Beat } from "../../runtime/beat.ts";
import { overdue } from "../../runtime/beat.ts";
import { writeFlight } from "../../cli/why.ts";
import { causal } from "../support/masks.ts";
import { annulus, scratch } from "../support/cli.ts";

const plan = Result.getOrThrow(planOf({
  problem: {
    ...{ batch: 1, tokens: 64, heads: 8, kvHeads: 8, headDim: 256, scale: 1, attention: causal },
  },
  layout: "contiguous",
  weights: [1, 1, 1, 1],
  wire: "f32",
}));

type Doing = Beat["doing"][number];
const beat = (rank: number, merged: number, ...doing: ReadonlyArray<Partial<Doing>>): Beat => ({
  ...{ rank, at: 2000, merged, ranks: 1, late: 0, rssBytes: 1 },
  doing: doing.map((one) => ({
    activity: "wait",
    step: 0,
    block: 0,
    bytes: 0,
    since: 500,
    ...one,
  })),
});

Deno.test("annulus why says who waited for whom, at which block and since when", async () => {
  await using folder = await scratch();
  const recorder = await Effect.runPromise(FlightRecorder.start(plan));
  await Effect.runPromise(Effect.gen(function* () {
    yield* recorder.beat(beat(1, 0, { activity: "compute", block: 1, since: 100 }));
    yield* recorder.beat(beat(0, 0, { activity: "begin", block: -1, since: 1500 }));
    yield* recorder.beat(beat(3, 2, { block: 1, since: 400 }));
    yield* recorder.beat(beat(2, 1, { block: 1, since: 1200 }));
    yield* writeFlight(`${folder.path}/a/b`, recorder, "Rank 1 failed: it was struck by lightning");
  }));
  const { code, stdout, stderr } = await annulus(["why", `${folder.path}/a/b`]);
  assert.deepEqual([code, stderr], [0, ""]);
  assert.match(stdout, /^at \d\.\d s the run failed: Rank 1 failed: it was struck by lightning$/m);
  assert.match(stdout, /0 +0 of 1 +0\.0 s +let its device begin its part +-0\.5 s/);
  // Two seconds of its own clock were over when it was heard at the driver's zero.
  assert.match(
    stdout,
    /^rank 3 waited for block 1 from rank 2 since -1\.6 s, .*\nrank 2 waited for block 1 from rank 1 since -0\.8 s, .*\nrank 1 computed on block 1 since -1\.9 s, and was heard last at 0\.0 s$/m,
  );
  const json = JSON.parse((await annulus(["why", `${folder.path}/a/b`, "--json"])).stdout);
  assert.equal(json.failure, "Rank 1 failed: it was struck by lightning");
  assert.deepEqual(json.ranks.map(({ merged }: { merged: number }) => merged), [0, 0, 1, 2]);
  assert.equal(json.chain.length, 3);
});

Deno.test("annulus why refuses what no run left", async () => {
  await using folder = await scratch();
  const missing = await annulus(["why", folder.path]);
  assert.equal(missing.code, 1);
  assert.match(
    missing.stderr,
    /^annulus: Cannot explain ".*flight\.json": what `attend --record` writes must be there: found no such file\n$/,
  );
  for (const text of ["", "{", "{}", '{"version":2}', "[]"]) {
    await Deno.writeTextFile(`${folder.path}/flight.json`, text);
    const { code, stderr } = await annulus(["why", folder.path]);
    assert.equal(code, 1);
    assert.match(stderr, /^annulus: Cannot explain ".*": it must be what `attend --record` writes/);
  }
});

Deno.test("the flight recorder keeps the last of each rank", () => {
  const recorder = Effect.runSync(FlightRecorder.start(plan));
  const flight = Effect.runSync(Effect.gen(function* () {
    for (let i = 0; i < 5000; i++) yield* recorder.beat(beat(0, i));
    yield* recorder.beat(beat(1, 7));
    yield* recorder.beat(beat(9, 7));
    return yield* recorder.written("x");
  }));
  assert.equal(flight.events.length, 4097);
  const first = flight.events[0]!.event;
  assert.ok("beat" in first && first.beat.merged === 5000 - 4096);
});

Deno.test("a rank is stuck when its device is busy with one thing for far too long", () => {
  const busy = (since: number) => ({
    ...beat(0, 1, { activity: "compute", since }),
    at: 1_000_000,
  });
  assert.equal(overdue(busy(890_000), 100), 0, "two are queued");
  assert.equal(overdue(busy(870_000), 100), 130_000, "a minute at least for each");
  assert.equal(overdue(busy(690_000), 30_000), 310_000, "five times the longest");
  for (const activity of ["begin", "finish"] as const) {
    const edge = { ...beat(0, 1, { activity, since: 870_000 }), at: 1_000_000 };
    assert.equal(overdue(edge, 100), 130_000, activity);
  }
  assert.equal(overdue({ ...busy(690_000), ranks: 2 }, 30_000), 0, "two ranks share it");
  assert.equal(overdue(busy(1), undefined), 0, "nothing is known yet");
  assert.equal(overdue({ ...beat(0, 1, { activity: "wait" }), at: 1e9 }, 1), 0, "it waits");
});
