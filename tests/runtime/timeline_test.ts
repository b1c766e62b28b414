import assert from "node:assert/strict";
import {
  activities,
  type Activity,
  chromeTrace,
  hiddenFraction,
  type Interval,
} from "../../runtime/timeline.ts";

const interval = (
  rank: number,
  activity: Activity,
  begin: number,
  end: number,
  more: Partial<Interval> = {},
): Interval => ({ rank, activity, begin, end, step: 1, block: 0, bytes: 8, ...more });

Deno.test("hiddenFraction() is 1 where nobody waits, and where nothing moves", () => {
  assert.equal(hiddenFraction([]), 1);
  assert.equal(hiddenFraction([interval(0, "compute", 0, 50), interval(0, "wait", 50, 60)]), 1);
  assert.equal(
    hiddenFraction([
      interval(0, "compute", 0, 50),
      interval(0, "receive", 10, 40),
      interval(0, "wait", 50, 60),
    ]),
    1,
  );
});

Deno.test("hiddenFraction() is 0 where every moment of a transfer is waited for", () => {
  const timeline = [interval(0, "receive", 10, 40), interval(0, "wait", 0, 50)];
  assert.equal(hiddenFraction(timeline), 0);
});

Deno.test("hiddenFraction() counts the part of the transfers that is waited for", () => {
  const timeline = [
    interval(0, "receive", 0, 40),
    interval(0, "wait", 30, 45),
    interval(0, "receive", 50, 60),
    interval(0, "wait", 52, 54),
    interval(0, "wait", 58, 70),
  ];
  assert.equal(hiddenFraction(timeline), 1 - (10 + 2 + 2) / 50);
});

Deno.test("hiddenFraction() holds a rank's waits against its own transfers only", () => {
  const timeline = [interval(0, "receive", 0, 40), interval(1, "wait", 0, 40)];
  assert.equal(hiddenFraction(timeline), 1);
  const both = [...timeline, interval(1, "receive", 0, 40)];
  assert.equal(hiddenFraction(both), 0.5);
});

interface Trace {
  readonly displayTimeUnit: string;
  readonly traceEvents: ReadonlyArray<Record<string, unknown>>;
}

Deno.test("chromeTrace() names a process per rank and a thread per activity", () => {
  const trace = chromeTrace([
    interval(1, "compute", 0, 5),
    interval(0, "load", 0, 1, { block: -1 }),
    interval(1, "receive", 0, 5),
  ]) as Trace;
  assert.equal(trace.displayTimeUnit, "ms");
  const names = (kind: string) => trace.traceEvents.filter(({ name }) => name === kind);
  assert.deepEqual(names("process_name").map(({ ph, pid, args }) => ({ ph, pid, args })), [
    { ph: "M", pid: 0, args: { name: "rank 0" } },
    { ph: "M", pid: 1, args: { name: "rank 1" } },
  ]);
  const threads = names("thread_name").filter(({ pid }) => pid === 0);
  assert.deepEqual(
    threads.map(({ tid, args }) => [tid, (args as { name: string }).name]),
    activities.map((activity, tid) => [tid, activity]),
  );
});

Deno.test("chromeTrace() gives intervals in microseconds, none too short to be seen", () => {
  const { traceEvents } = chromeTrace([
    interval(3, "forward", 1.5, 4.25, { step: 2, block: 7, bytes: 64 }),
    interval(3, "home", 9, 9, { step: 0, block: -1 }),
  ]) as Trace;
  assert.deepEqual(traceEvents.filter(({ ph }) => ph === "X"), [
    {
      name: "forward block 7",
      cat: "forward",
      ph: "X",
      pid: 3,
      tid: 4,
      ts: 1500,
      dur: 2750,
      args: { step: 2, block: 7, bytes: 64 },
    },
    {
      name: "home",
      cat: "home",
      ph: "X",
      pid: 3,
      tid: 6,
      ts: 9000,
      dur: 1,
      args: { step: 0, block: -1, bytes: 8 },
    },
  ]);
});

Deno.test("chromeTrace() is JSON", () => {
  const trace = chromeTrace([interval(0, "compute", 0, 5)]);
  assert.deepEqual(JSON.parse(JSON.stringify(trace)), trace);
});
