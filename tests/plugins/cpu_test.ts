import { namesOf } from "../../runtime/attention.ts";
import { Effect } from "effect";
import assert from "node:assert/strict";
import { fromFileUrl } from "../../cli/paths.ts";
import { denseAttention } from "../../kernels/oracle.ts";
import { cpu, cpuWith } from "../../plugins/cpu.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { Lifeline } from "../../plugins/cpu/lifeline.ts";
import { openCpu } from "../../plugins/cpu/open.ts";
import { Device } from "../../runtime/device.ts";
import { encode } from "../../runtime/dtype.ts";
import type { AttentionKernel, KeyValues, Queries, Tile } from "../../runtime/kernel.ts";
import { findLibrary } from "../../runtime/library.ts";
import type { Problem } from "../../runtime/plan.ts";
import { contiguous } from "../../runtime/span.ts";
import { inputsOf, problem, testDevice, whole } from "../contract/device.ts";
import { testGradients } from "../contract/gradients.ts";
import { relativeL2, sameNumbers } from "../support/closeness.ts";
import { attend, checkAgainstFloat32, shared } from "../support/cut.ts";
import { checkGradients, gradientsOf } from "../support/cut_backward.ts";
import { normals } from "../support/random.ts";
import { bandOf, causal, full, judged, window } from "../support/masks.ts";

const library = findLibrary(libraryName);
const missing = `there is no ${libraryName}`;
const bound = { o: 2e-6, lse: 1e-5 };
const ignored = library === undefined ? { ignore: missing } : {};

testDevice(cpu, { bound, ...ignored });
testGradients(cpu, ignored);

/** A test that needs the library. */
const withLibrary = (name: string, test: Effect.Effect<void, unknown>): void =>
  Deno.test({
    name: library === undefined ? `${name} (not here: ${missing})` : name,
    ignore: library === undefined,
    fn: () => Effect.runPromise(test),
  });

// --- What the device is -------------------------------------------------------------------------

const infoOf = (plugin: typeof cpu) =>
  Device.use(({ info }) => Effect.succeed(info)).pipe(Effect.provide(plugin.layer));

withLibrary(
  "the device says which library computes, for which processor, on how many threads",
  Effect.gen(function* () {
    const info = yield* infoOf(cpuWith({ threads: 3 }));
    assert.equal(info.name, "cpu");
    assert.match(info.backend, /^OpenBLAS \d+\.\d+\.\d+ for \w+, 3 threads$/);
    assert.equal(info.software, true);
    assert.equal(yield* cpu.score, 50);
  }),
);

Deno.test("without the library the device says what to install", () =>
  Effect.gen(function* () {
    const elsewhere = cpuWith({ library: "/nonexistent/libopenblas.so.0" });
    assert.equal(yield* elsewhere.score, 0);
    const error = yield* Effect.flip(infoOf(elsewhere));
    assert.equal(error._tag, "DeviceUnavailable");
    assert.match(
      error.message,
      /^Cannot use device "cpu": it needs libopenblas.so.0 \(Debian: libopenblas0-pthread\): found .*nonexistent/,
    );
  }).pipe(Effect.runPromise));

// --- More than one tile -------------------------------------------------------------------------

/** Rows and keys of several tiles each, and no multiple of any. */
const long: Problem = problem({ tokens: 1301, heads: 2, kvHeads: 1, headDim: 20 });

for (const [size, factor] of [["small", 1], ["large", 8]] as const) {
  for (
    const mask of [full, causal, window(700)]
  ) {
    withLibrary(
      `a block of many tiles with ${size} scores, ${namesOf(mask)}`,
      checkAgainstFloat32(
        whole({ ...long, attention: mask }, { lengths: [1299, 2], inputs: inputsOf(long, factor) }),
      ).pipe(Effect.provide(cpu.layer)),
    );
  }
}

withLibrary(
  "heads whose vectors are more than a thread widens or measures at once",
  Effect.forEach(["f32", "f16"] as const, (dtype) => {
    const shape = problem({ batch: 2, tokens: 130, heads: 12, kvHeads: 12 });
    const round = (x: Float32Array) => Float32Array.from(Float16Array.from(x));
    const { q, k, v } = inputsOf(shape);
    // One head alone has large scores, and must not be taken for another.
    const large = k.map((x, i) => Math.floor(i / shape.headDim) % 12 === 7 ? 30 * x : x);
    const inputs = { q: round(q), k: round(large), v: round(v) };
    return checkAgainstFloat32(whole(shape, { dtype, inputs }));
  }, { discard: true }).pipe(Effect.provide(cpu.layer)),
);

withLibrary(
  "gradients of a block of many tiles",
  Effect.forEach(
    [full, causal] as const,
    (mask) => checkGradients(whole({ ...long, attention: mask }, { lengths: [1300, 1] })),
    { discard: true },
  ).pipe(Effect.provide(cpu.layer)),
);

withLibrary(
  "tiny values keep their digits, however small the scores",
  Effect.gen(function* () {
    const shape = problem({ tokens: 40, heads: 1, kvHeads: 1, headDim: 8, scale: 1 });
    // Scores of about −29, which would leave e⁻²⁹ · 1e-36 of a value.
    const side = Math.sqrt(29 / 8);
    const [q, k] = [side, -side].map((x) => new Float32Array(40 * 8).fill(x));
    const v = normals(3, 40 * 8).map((x) => 1e-36 * x);
    const { o } = yield* attend(whole(shape, { inputs: { q: q!, k: k!, v } }));
    const error = relativeL2(o, denseAttention(judged(shape), q!, k!, v).o);
    assert.ok(error <= 2e-6, `o is ${error} away`);
  }).pipe(Effect.provide(cpu.layer)),
);

withLibrary(
  "gradients of rows that are farther apart than a thread has keys at once",
  Effect.gen(function* () {
    const tokens = 1501;
    const shape = problem({
      ...{
        tokens,
        heads: 2,
        kvHeads: 1,
        headDim: 8,
        attention: window(20),
      },
    });
    const queries = [{ start: 5, run: 1, stride: 700, first: 0, count: 3 }];
    yield* checkGradients(whole(shape, { queries }));
  }).pipe(Effect.provide(cpu.layer)),
);

// --- Threads ------------------------------------------------------------------------------------

withLibrary(
  "a number of threads that is none is refused",
  Effect.gen(function* () {
    for (const threads of [0, -1, 1.5, NaN]) {
      const error = yield* Effect.flip(Effect.provide(Device, cpuWith({ threads }).layer));
      assert.match(
        error.message,
        /needs at least one thread, a whole number: found (0|-1|1.5|NaN)/,
      );
    }
  }),
);

withLibrary(
  "any number of threads gives the same bits, every time",
  Effect.gen(function* () {
    const cut = whole({ ...long, tokens: 1041 }, { lengths: [1040, 1] });
    const results: Array<ReadonlyArray<ArrayLike<number>>> = [];
    for (const threads of [1, 2, 3, 3]) {
      const device = cpuWith({ threads }).layer;
      const { o, lse } = yield* Effect.provide(attend(cut), device);
      const { dq, dk, dv } = yield* Effect.provide(gradientsOf(cut), device);
      results.push([o, lse, dq, dk, dv]);
    }
    for (const result of results) {
      result.forEach((x, i) => assert.ok(sameNumbers(x, results[0]![i]!), `array ${i} differs`));
    }
  }),
);

const queries: Queries = {
  batch: 1,
  heads: 8,
  kvHeads: 8,
  headDim: 64,
  scale: 0.125,
  tokens: 1024,
  dtype: "f32",
  bytes: shared(encode("f32", normals(1, 1024 * 8 * 64))),
};
const block: KeyValues = {
  tokens: 1024,
  dtype: "f32",
  bytes: shared(encode("f32", normals(2, 2 * 1024 * 8 * 64))),
};
const tile: Tile = {
  row: 0,
  queries: contiguous(0, 1024),
  column: 0,
  keys: contiguous(0, 1024),
  full: true,
};
const everything = bandOf(full);

/** Opens the kernel on this thread, which then is the device's own. */
const onThisThread = (
  name: string,
  use: (kernel: AttentionKernel & { readonly close: () => void }) => Promise<void>,
): void =>
  withLibrary(
    name,
    Effect.scoped(
      Effect.flatMap(
        Effect.acquireRelease(
          Effect.promise(() => openCpu({ threads: 2 })),
          (kernel) => Effect.sync(() => kernel.close()),
        ),
        (kernel) => Effect.promise(() => use(kernel)),
      ),
    ),
  );

onThisThread("the device's own thread is free while the others compute", async (kernel) => {
  const accumulation = await kernel.begin(queries);
  let done = false;
  const absorbing = Promise.resolve(accumulation.absorb(block, [tile], everything))
    .then(() => void (done = true));
  await new Promise((resume) => setTimeout(resume)); // comes at once only where this thread is free
  assert.equal(done, false);
  await absorbing;
});

onThisThread("nothing waits for threads that were ended", async (kernel) => {
  const accumulation = await kernel.begin(queries);
  const absorbing = accumulation.absorb(block, [tile], everything);
  kernel.close();
  await assert.rejects(async () => await absorbing, /the threads were ended/);
  await assert.rejects(async () => await accumulation.finish(), /the threads were ended/);
});

withLibrary(
  "a device that ends in the middle of a block stops its threads, and waits for that",
  Effect.promise(async () => {
    const lifeline = new Lifeline();
    const kernel = await openCpu({ threads: 2, lifeline: lifeline.words });
    const accumulation = await kernel.begin(queries);
    const refused = assert.rejects(
      async () => await accumulation.absorb(block, [tile], everything),
      /the device was closed/,
    );
    await new Promise((resume) => setTimeout(resume)); // one turn, in which the block is handed to the threads
    await lifeline.end();
    await refused;
    kernel.close();
  }),
);

withLibrary(
  "a process may end as soon as it gave up its device",
  Effect.promise(async () => {
    const program = fromFileUrl(new URL("../support/cpu_interrupted.ts", import.meta.url));
    for (let i = 0; i < 4; i++) {
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", program],
        stdout: "piped",
        stderr: "piped",
      }).output();
      const [said, complained] = [stdout, stderr].map((text) => new TextDecoder().decode(text));
      assert.deepEqual([code, said, complained], [0, "gave up\n", ""]);
    }
  }),
);
