/** Who is lost, who takes what was lost, and what is said where nobody is left. */
import { Context, Deferred, Effect, Layer, Option, Result } from "effect";
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { referenceKernel } from "../../kernels/reference.ts";
import { causal, definitions } from "../../plugins/attention.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { ask, requests } from "../../plugins/nats_cluster/control.ts";
import { attend, type AttendOptions, type AttendResult } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import { type Accumulator, Device } from "../../runtime/device.ts";
import { bytesOf } from "../../runtime/dtype.ts";
import type { Interval } from "../../runtime/timeline.ts";
import type { Definition } from "../../runtime/variant.ts";
import { version } from "../../runtime/version.ts";
import {
  attendOn,
  cluster,
  driverOn,
  nodeOn,
  type NodeOptions,
  onBus,
} from "../support/bus_cluster.ts";
import { hangingIn, hangs } from "../support/hanging.ts";
import { inProcess } from "../support/in_process.ts";
import { normals } from "../support/random.ts";

const [tokens, headDim, ring] = [40, 4, 2];
const size = tokens * headDim;
const own: Definition = {
  ...{ ...causal().definition, name: "own", hash: "a".repeat(64) },
  ...{ score: () => (score) => score, slope: () => () => 1 },
};
const { forms: _, ...formless } = referenceKernel().info;
const problem: AttendOptions & { readonly ring: number } = {
  ...{ tokens, heads: 1, headDim, ring, attention: [{ definition: own, params: {} }] },
  ...{ q: normals(1, size), k: normals(2, size), v: normals(3, size), cotangent: normals(4, size) },
};
const device = inProcess(referenceKernel());
const able: NodeOptions = { device, known: [...definitions, own] };

const undisturbed = attend(problem).pipe(
  Effect.provide(Layer.provideMerge(
    Crew.local(),
    Layer.merge(Layer.succeed(Device, device), memoryLinks()),
  )),
);

/** What became of a run that was disturbed, and that it has the bits of one that was not. */
const recoveriesOf = Effect.fnUntraced(function* (found: AttendResult) {
  const needed = yield* undisturbed;
  for (const tensor of ["o", "lse"] as const) {
    assert.ok(Buffer.from(bytesOf(found[tensor])).equals(bytesOf(needed[tensor])), tensor);
  }
  for (const tensor of ["dq", "dk", "dv"] as const) {
    const [ours, theirs] = [found, needed].map(({ gradients }) => bytesOf(gradients![tensor]));
    assert.ok(Buffer.from(ours!).equals(theirs!), tensor);
  }
  return found.recoveries.map(({ cause, moved }) => ({ cause, moved }));
});

/** Acts when rank 1 has computed for the first time. */
const atFirst = (act: () => void) => {
  let acted = false;
  return ({ rank, activity }: Interval) => {
    if (acted || rank !== 1 || activity !== "compute") return;
    acted = true;
    act();
  };
};

for (const what of hangs) {
  Deno.test(`a node whose device hangs in the ${what} loses its rank to another, and can be ended`, () =>
    onBus((bus) =>
      Effect.gen(function* () {
        yield* nodeOn(bus, "n0", able);
        yield* nodeOn(bus, "n1", { ...able, device: hangingIn(what, 1, device) });
        yield* nodeOn(bus, "n2", able);
        const [recovery, ...others] = yield* recoveriesOf(yield* attendOn(bus, problem));
        assert.deepEqual([recovery!.moved, others], [[{ rank: 1, to: "node n2 on here" }], []]);
        assert.match(recovery!.cause, /its device has been busy with one thing for 12\d s$/);
      })
    ));
}

/** Nodes that cannot take a rank, as their cards tell. */
const unfit: Readonly<Record<string, readonly [NodeOptions, needed: RegExp]>> = {
  "is of another version": [
    { ...able, card: { version: "0.0.1" } },
    /must run annulus .*: found 0\.0\.1/,
  ],
  "has no such attention": [
    { device },
    /"own" must be the same everywhere: found .*not there on node n2/,
  ],
  "has another attention of that name": [
    { device, known: [...definitions, { ...own, hash: "b".repeat(64) }] },
    /"own" must be the same everywhere: found .*bbbbbb on node n2/,
  ],
  "has too little memory": [
    { ...able, card: { device: { ...device.info, memory: 1000 } } },
    /bytes of memory on its fullest rank: found 1000;/,
  ],
  "asks for no scores": [
    { ...able, card: { device: formless } },
    /"own": it needs a device that asks for the score of pairs: found "reference"/,
  ],
  "has no gradients": [
    { ...able, card: { device: { ...device.info, gradients: false } } },
    /Cannot compute gradients on device/,
  ],
};

/** The same, and their cards do not tell. */
const liars: Readonly<Record<string, readonly [NodeOptions, found: RegExp]>> = {
  "has no such attention": [
    { device, card: { plugins: [{ name: "own", hash: own.hash! }] } },
    /Cannot give a rank to node n2 on here: it has no attention "own"/,
  ],
  "has too little memory": [
    {
      ...able,
      device: { ...device, info: { ...device.info, memory: 1000 } },
      card: { device: device.info },
    },
    /bytes of memory on its fullest rank: found 1000;/,
  ],
};

for (const [what, [options]] of Object.entries(unfit)) {
  Deno.test(`a node that ${what} is not asked to take a rank`, () =>
    onBus((bus) =>
      Effect.gen(function* () {
        yield* nodeOn(bus, "n0", able);
        const victim = yield* nodeOn(bus, "n1", able);
        yield* nodeOn(bus, "n2", options);
        yield* nodeOn(bus, "n3", able);
        const lost = atFirst(() => void (victim.dead = true));
        const recoveries = yield* recoveriesOf(yield* attendOn(bus, problem, lost));
        assert.deepEqual(recoveries.map(({ moved }) => moved), [
          [{ rank: 1, to: "node n3 on here" }],
        ]);
      })
    ));
}

for (const [what, [options, found]] of Object.entries(liars)) {
  Deno.test(`a node that ${what}, and does not say so, makes way for the next`, () =>
    onBus((bus) =>
      Effect.gen(function* () {
        yield* nodeOn(bus, "n0", able);
        const victim = yield* nodeOn(bus, "n1", able);
        // More of them than epochs without anything new that a run has patience for.
        for (const id of ["n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9"]) {
          yield* nodeOn(bus, id, options);
        }
        const lost = atFirst(() => void (victim.dead = true));
        const recoveries = yield* recoveriesOf(yield* attendOn(bus, problem, lost));
        assert.equal(recoveries.length, 9);
        assert.match(recoveries[1]!.cause, found);
        assert.deepEqual(recoveries.at(-1)!.moved, [{ rank: 1, to: "node n0 on here" }]);
      })
    ));
}

Deno.test("a run for which only unfit nodes are left says what began it, and what each of them lacks", () =>
  onBus((bus) =>
    Effect.gen(function* () {
      const [first, second] = [yield* nodeOn(bus, "n0", able), yield* nodeOn(bus, "n1", able)];
      const said = [...Object.values(unfit), ...Object.values(liars)];
      for (const [i, [options]] of said.entries()) {
        yield* nodeOn(bus, `s${i}`, options);
      }
      const lost = atFirst(() => [first, second].forEach((node) => void (node.dead = true)));
      const { message } = yield* Effect.flip(attendOn(bus, problem, lost));
      for (const [, sentence] of said) {
        assert.match(message, new RegExp(sentence.source.replace(/n2/g, "s\\d")));
      }
      assert.match(
        message,
        /no other node is there to take it \(.*\); it began with: .*it is not there any more$/,
      );
    })
  ));

Deno.test("what a rank fails with after it began is no want of its node, and final", () =>
  onBus((bus) =>
    Effect.gen(function* () {
      const odd: Definition = {
        ...{ ...own, name: "odd" },
        score: () => (score, _b, _h, q) => q === tokens - 1 ? NaN : score,
      };
      // Asks for no score, and has none of its last row.
      const begin: typeof device.begin = ({ attention: _, ...queries }) =>
        Effect.map(device.begin(queries), ({ absorb, finish }) => ({
          absorb: (...block) => Effect.delay(absorb(...block), "1 second"),
          finish: Effect.tap(finish, ({ lse }) => Effect.sync(() => lse.fill(NaN, -1))),
        }));
      const knowing = { device: { ...device, begin }, known: [...definitions, odd] };
      yield* nodeOn(bus, "n0", { ...knowing, device });
      const victim = yield* nodeOn(bus, "n1", knowing);
      for (const id of ["n2", "n3"]) yield* nodeOn(bus, id, knowing);
      const { cotangent: _, ...forward } = problem;
      const error = yield* Effect.flip(attendOn(
        bus,
        { ...forward, attention: [{ definition: odd, params: {} }], layout: "contiguous" },
        atFirst(() => void (victim.dead = true)),
      ));
      assert.ok(error._tag === "RankFailed" && error.tag === "VariantInvalid", error.message);
      assert.match(error.message, /^Rank 1 \(node n2 on here\) .*found NaN .*; it began with: /);
    })
  ));

Deno.test("a node whose device hangs can be ended when its run is over", () =>
  onBus((bus) =>
    Effect.gen(function* () {
      yield* nodeOn(bus, "n0", { ...able, device: hangingIn("first block", 1, device) });
      const { message } = yield* Effect.flip(attendOn(bus, { ...problem, ring: 1 }));
      assert.match(message, /no other node is there to take it, after: .* busy with one thing for/);
    })
  ));

Deno.test("a node that is letting go of a run takes a rank of it anew", () =>
  onBus((bus) =>
    Effect.gen(function* () {
      const letting = yield* Deferred.make<void>();
      let run = "";
      yield* nodeOn(bus, "n0", {
        ...able,
        tell: (state) => Effect.sync(() => void (run ||= "run" in state ? state.run : "")),
        device: {
          ...device,
          begin: (queries) =>
            Effect.andThen(
              Effect.addFinalizer(() =>
                Effect.andThen(Deferred.succeed(letting, undefined), Effect.sleep("100 millis"))
              ),
              // It hears that the driver is gone before it has done anything, and would free its memory for that.
              Effect.map(device.begin(queries), (accumulator): Accumulator => ({
                ...accumulator,
                absorb: (block, tiles, band) =>
                  Effect.delay(accumulator.absorb(block, tiles, band), "10 seconds"),
              })),
            ),
        },
      });
      const leave = ({ activity }: Interval) => {
        if (activity === "begin") bus.members.at(-1)!.dead = true;
      };
      yield* Effect.forkScoped(Effect.ignore(attendOn(bus, { ...problem, ring: 1 }, leave)));
      yield* Deferred.await(letting);
      const offer = requests.encode({
        ...{ ask: "offer", version, rank: 0, members: ["any"] },
        job: {
          ...{ run, epoch: 1, layout: "contiguous", weights: [1], dtype: "f32", wire: "f32" },
          ...{ gradients: false, chunkBytes: 1024 },
          problem: {
            ...{ batch: 1, tokens, heads: 1, kvHeads: 1, headDim, scale: 1, attention: [] },
          },
        },
      });
      const answer = yield* ask(bus.member().control, cluster, { id: "n0" }, offer, 10);
      assert.deepEqual(answer, Option.some(Result.succeed({ accepted: true })));
    })
  ));

Deno.test("a node whose answer to the roll call takes long is found before a run is given up", () =>
  onBus((bus) =>
    Effect.gen(function* () {
      const nodes = [yield* nodeOn(bus, "n0", able), yield* nodeOn(bus, "n1", able)];
      yield* nodeOn(bus, "n2", { ...able, slow: 1500 });
      const lost = atFirst(() => nodes.forEach((node) => void (node.dead = true)));
      const recoveries = yield* recoveriesOf(yield* attendOn(bus, problem, lost));
      assert.deepEqual(recoveries.at(-1)!.moved, [
        { rank: 0, to: "node n2 on here" },
        { rank: 1, to: "node n2 on here" },
      ]);
    })
  ));

Deno.test("nodes that come back to a server later than the driver are not lost", () =>
  onBus((bus) =>
    Effect.gen(function* () {
      const nodes = [yield* nodeOn(bus, "n0", able), yield* nodeOn(bus, "n1", able)];
      const lost = atFirst(() => {
        bus.stop();
        bus.after(1000, () => bus.start((member) => nodes.includes(member) ? 4000 : 0));
      });
      assert.deepEqual(yield* recoveriesOf(yield* attendOn(bus, problem, lost)), []);
    })
  ));

Deno.test("a server that is away while a run recovers makes nobody late", () =>
  onBus((bus) =>
    Effect.gen(function* () {
      yield* nodeOn(bus, "n0", able);
      const victim = yield* nodeOn(bus, "n1", able);
      yield* nodeOn(bus, "n2", able);
      const publish = bus.publish.bind(bus);
      let away = false;
      bus.publish = (subject, bytes, reply) => {
        publish(subject, bytes, reply);
        if (away || !new TextDecoder().decode(bytes).includes('"regroup"')) return;
        away = true;
        bus.stop();
        bus.after(20_000, () => bus.start());
      };
      const lost = atFirst(() => void (victim.dead = true));
      const [recovery, ...others] = yield* recoveriesOf(yield* attendOn(bus, problem, lost));
      assert.deepEqual([recovery!.moved, others], [[{ rank: 1, to: "node n2 on here" }], []]);
    })
  ));

for (const hears of [true, false]) {
  Deno.test(
    `a node that is cut off when a run is over ${
      hears ? "hears of it" : "finds out"
    }, and takes the next one`,
    () =>
      onBus((bus) =>
        Effect.gen(function* () {
          yield* nodeOn(bus, "n0", able);
          const services = yield* driverOn(bus, 1);
          const crew = Context.get(services, Crew);
          const cutOff = Crew.of({
            ...crew,
            run: (job, rank, observer) =>
              crew.run(job, rank, {
                ...observer,
                finished: (summary) =>
                  Effect.suspend(() => {
                    const { weather } = bus;
                    bus.weather = { ...weather, loss: 1 };
                    bus.after(4000, () => void (bus.weather = weather));
                    return observer.finished(summary);
                  }),
              }),
            ...(hears ? {} : { ended: () => Effect.void }),
          });
          const run = attend({ ...problem, ring: 1 });
          yield* Effect.provide(run, Context.add(services, Crew, cutOff));
          const { recoveries } = yield* Effect.provide(run, services);
          assert.deepEqual(recoveries, []);
        })
      ),
  );
}
