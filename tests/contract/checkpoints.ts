/**
 * The contract of checkpoints: a run that goes on from them gives the bits of the run that made them, and computes what
 * is missing.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { referenceKernel } from "../../kernels/reference.ts";
import { causal, sinks, window } from "../../plugins/attention.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { attend, type AttendOptions, type AttendResult, jobFor } from "../../runtime/attend.ts";
import {
  type Checkpoint,
  type Checkpoints,
  receiveCheckpoints,
  sendCheckpoints,
} from "../../runtime/checkpoint.ts";
import { Crew } from "../../runtime/crew.ts";
import { Device } from "../../runtime/device.ts";
import { bytesOf } from "../../runtime/dtype.ts";
import { layouts } from "../../runtime/layout.ts";
import { Links } from "../../runtime/link.ts";
import { asLse } from "../../runtime/lse.ts";
import { manifestOf } from "../../runtime/manifest.ts";
import { Recorder } from "../../runtime/recorder.ts";
import { requiredOf } from "../../runtime/standing.ts";
import { maxAbs, relativeL2 } from "../support/closeness.ts";
import { inProcess } from "../support/in_process.ts";
import { Kept } from "../support/kept.ts";
import { normals } from "../support/random.ts";

const [heads, headDim] = [2, 4];
/** Lets others run before it begins with a block, as a device in a Worker does. */
const device = Layer.sync(Device, () => {
  const plain = inProcess(referenceKernel());
  return {
    ...plain,
    begin: (queries) =>
      Effect.map(plain.begin(queries), ({ absorb, finish }) => ({
        absorb: (...block) => Effect.andThen(Effect.yieldNow, absorb(...block)),
        finish,
      })),
  } satisfies Device["Service"];
});
const run = (options: AttendOptions) =>
  attend(options).pipe(
    Effect.provide(
      Crew.local().pipe(
        Layer.provideMerge(Layer.mergeAll(memoryLinks({ maxFrame: 64 + 96 }), device)),
      ),
    ),
    Effect.runPromise,
  );

const problemOf = (tokens: number, ring: number, seed = 1): AttendOptions => {
  const size = tokens * heads * headDim;
  return {
    ...{ tokens, heads, headDim, ring },
    ...{ q: normals(seed, size), k: normals(seed + 1, size), v: normals(seed + 2, size) },
  };
};

/** A store for a problem, of whose shards only a run knows the sizes. */
const storeFor = (
  { plan }: Pick<AttendResult, "plan">,
  every: number,
  before: Iterable<Checkpoint> = [],
) =>
  new Kept(every, (rank) => {
    const rows = plan.ranks[rank]!.tokens * heads;
    return { o: rows * headDim * 4, lse: rows * 4 };
  }, before);

const sameBits = (found: AttendResult, needed: AttendResult) => {
  for (const tensor of ["o", "lse"] as const) {
    assert.ok(Buffer.from(bytesOf(found[tensor])).equals(bytesOf(needed[tensor])), tensor);
  }
};

/** Blocks that all ranks computed on. */
const computed = ({ timeline }: AttendResult) =>
  timeline.filter(({ activity }) => activity === "compute").length;

const variants: Readonly<Record<string, AttendOptions["attention"]>> = {
  "full": [],
  "causal": [causal()],
  "window": [causal(), window({ size: 7 })],
  "causal with a sink": [causal(), sinks({ logits: [0.5, -1] })],
};

const anyCheckpoints = () =>
  fc.assert(
    fc.asyncProperty(
      fc.record({
        tokens: fc.integer({ min: 1, max: 60 }),
        ring: fc.integer({ min: 1, max: 5 }),
        layout: fc.constantFrom(...layouts),
        attention: fc.constantFrom(...Object.values(variants)),
        every: fc.integer({ min: 1, max: 4 }),
        choice: fc.infiniteStream(fc.nat()),
      }),
      async ({ tokens, ring, layout, attention, every, choice }) => {
        const problem = { ...problemOf(tokens, ring), layout, attention: attention! };
        const plain = await run(problem);
        const store = storeFor(plain, every);
        const whole = await run({ ...problem, checkpoints: store });
        assert.ok(relativeL2(whole.o, plain.o) <= 1e-6);
        assert.ok(maxAbs(whole.lse, plain.lse) <= 1e-6);

        // Each rank goes on from any of its checkpoints, or from none.
        const picked = plain.plan.ranks.flatMap(({ rank }) => {
          const mine = store.all.filter((one) => one.rank === rank);
          return mine[choice.next().value! % (mine.length + 1)] ?? [];
        });
        const again = storeFor(plain, every, picked);
        const resumed = await run({ ...problem, checkpoints: again });
        sameBits(resumed, whole);
        const spared = picked.reduce((sum, { merged }) => sum + merged, 0);
        const all = plain.plan.ranks.reduce((sum, mine) => sum + requiredOf(mine).length, 0);
        assert.equal(computed(resumed), all - spared);
      },
    ),
    { numRuns: 60 },
  );

const marksOfARank = async () => {
  const plain = await run(problemOf(60, 4));
  const store = storeFor(plain, 2);
  await run({ ...problemOf(60, 4), checkpoints: store });
  const [mine] = plain.plan.ranks;
  const required = requiredOf(mine!).length;
  const marks = store.all.filter(({ rank }) => rank === 0)
    .map(({ merged, final }) => [merged, final] as const);
  assert.equal(required, 4);
  assert.deepEqual(marks, [[2, false], [4, true]]);
};

const gradients = async () => {
  const problem = {
    ...problemOf(41, 3),
    attention: [causal()],
    cotangent: normals(9, 41 * heads * headDim),
  };
  const plain = await run(problem);
  const store = storeFor(plain, 1);
  const whole = await run({ ...problem, checkpoints: store });
  assert.ok(store.all.every(({ final }) => !final));
  assert.ok(store.all.length > 0);
  const resumed = await run({
    ...problem,
    checkpoints: storeFor(plain, 1, plain.plan.ranks.flatMap(({ rank }) => store.of(rank) ?? [])),
  });
  sameBits(resumed, whole);
  for (const tensor of ["dq", "dk", "dv"] as const) {
    assert.ok(relativeL2(resumed.gradients![tensor], plain.gradients![tensor]) <= 1e-6);
    assert.deepEqual(resumed.gradients![tensor], whole.gradients![tensor]);
  }
};

/** What a driver keeps of what a rank says that it has merged. */
const marksThatCount = () =>
  Effect.gen(function* () {
    const links = yield* Links;
    const { plan } = yield* Effect.promise(() => run(problemOf(60, 4)));
    const [mine] = plan.ranks;
    const job = yield* jobFor(plan.problem, { q: "f32", kv: "f32" }, { ring: 4 });
    const manifest = manifestOf(job);
    const ends = { run: job.run, lane: "checkpoints" } as const;
    const [near, far] = yield* Effect.all([
      links.open({ ...ends, self: 0, peer: "driver" }),
      links.open({ ...ends, self: "driver", peer: 0 }),
    ], { concurrency: "unbounded" });
    const store = storeFor({ plan }, 1);
    let received = 0;
    const counting: Checkpoints = {
      ...{ every: 1, of: store.of },
      keep: (mark) => {
        received++;
        return store.keep(mark);
      },
    };
    yield* Effect.forkScoped(receiveCheckpoints(far, manifest, mine!, counting));
    const recorder = yield* Recorder.start(0, () => Effect.void);
    const send = yield* sendCheckpoints(near, manifest, mine!, recorder);
    const rows = mine!.tokens * heads;
    const attended = {
      o: new Float32Array(rows * headDim),
      lse: asLse(new Float32Array(rows)),
    };
    // There are four blocks: of all of them there is no checkpoint, nor of more than that.
    const said = [2, 1, 2, 4, 5, 0, 3];
    for (const merged of [...said, 0]) yield* send(attended, merged);
    // When the last one begins, those before are done with.
    yield* Effect.repeat(Effect.yieldNow, { until: () => received > said.length });
    assert.deepEqual(store.all.map(({ merged }) => merged), [2, 3]);
  }).pipe(Effect.scoped, Effect.provide(memoryLinks({ maxFrame: 64 * 1024 })), Effect.runPromise);

const it = (name: string, run: () => Promise<void>) => ({
  name,
  run: Effect.tryPromise({ try: run, catch: (cause) => cause }),
});

/** What is promised of runs that keep what ranks have gathered. */
export const checkpointCases = [
  it("from whatever checkpoints a run goes on, its result has the same bits", anyCheckpoints),
  it("a rank is kept after as many blocks as was asked for, and when it is done", marksOfARank),
  it(
    "a checkpoint is later than the one before, and of some blocks but not of all",
    marksThatCount,
  ),
  it("the second pass of a gradient begins again, with the bits of the first one", gradients),
];
