/**
 * `annulus bench --kernel`: which version of the WebGPU kernel, and which sizes, are the fastest on this machine. The
 * best is kept, for every device of this user on the same adapter.
 *
 * @module
 */
import { Cause, Context, Effect, Exit, Layer } from "effect";
import { webgpuWith } from "../plugins/webgpu.ts";
import { unusableWidth } from "../plugins/webgpu/environment.ts";
import { findAdapter, isSoftware } from "../plugins/webgpu/adapter.ts";
import { candidates, type Choice } from "../plugins/webgpu/ladder.ts";
import { vectorOf } from "../plugins/webgpu/open.ts";
import { keepTuning, keptIn, tuningPath } from "../plugins/webgpu/tuning.ts";
import { attendZeros } from "../runtime/calibrate.ts";
import { Device } from "../runtime/device.ts";
import type { DType } from "../runtime/dtype.ts";
import { DeviceUnavailable, FileInvalid } from "../runtime/errors.ts";
import { note, print, printJson, table } from "./output.ts";

/** All that `bench` can be told. */
export interface BenchFlags {
  readonly headDim: number;
  readonly dtype: DType;
  readonly tokens: number;
  readonly json: boolean;
}

const heads = 8;
const rounds = 5;
/** Machines drift by more than what is between such figures. */
const closeEnough = 0.95;
/** Without a mask, and with a causal one. */
const masks = [false, true];

/** How fast a choice is; GFLOP/s are medians. */
interface Row {
  readonly kernel: string;
  readonly rows: number;
  readonly keys: number;
  readonly lanes: number;
  /** Seconds of the first passes, which compile unless the driver remembers. */
  readonly first: number;
  readonly full: number;
  readonly causal: number;
}

const median = (values: ReadonlyArray<number>): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]!;

/** Measures all candidates, in turns, prints them, and keeps the best. */
export const runBench = Effect.fn("runBench")(function* (flags: BenchFlags) {
  const { headDim, dtype, tokens } = flags;
  const adapter = yield* Effect.promise(findAdapter);
  if (adapter === undefined) {
    return yield* new DeviceUnavailable({
      device: "webgpu",
      ...unusableWidth() ??
        { needed: "an adapter whose kernels can be measured", found: "no adapter" },
    });
  }
  const setting = {
    headDim,
    vector: vectorOf(adapter.info),
    workgroupBytes: adapter.limits.maxComputeWorkgroupStorageSize,
  };
  const pass = (device: Device["Service"], causal: boolean, length = tokens) =>
    attendZeros({ tokens: length, heads, headDim, dtype, causal }).pipe(
      Effect.provideService(Device, device),
    );

  const open: Array<
    { choice: Choice; device: Device["Service"]; first: number; busy: Array<Array<number>> }
  > = [];
  for (const choice of candidates(isSoftware(adapter.info), setting)) {
    const { version: { name }, blocking } = choice;
    const { rows, keys, lanes } = blocking;
    if (!flags.json) yield* note(`${name}: ${rows} rows, ${keys} keys, ${lanes} lanes`);
    const tried = yield* Effect.exit(Effect.gen(function* () {
      const plugin = webgpuWith({ kernel: name, blocking });
      const device = Context.get(yield* Layer.build(plugin.layer), Device);
      const began = performance.now();
      for (const causal of masks) yield* pass(device, causal, 128);
      return { device, first: (performance.now() - began) / 1000 };
    }));
    if (Exit.isSuccess(tried)) open.push({ choice, ...tried.value, busy: masks.map(() => []) });
    else yield* note(`  it does not work here: ${Cause.squash(tried.cause)}`);
  }
  // Round by round, so that a machine that slows down does so for all.
  for (let round = 0; round < rounds; round++) {
    for (const { device, busy } of open) {
      for (const [i, causal] of masks.entries()) busy[i]!.push(yield* pass(device, causal));
    }
  }

  const flops = 4 * heads * tokens ** 2 * headDim;
  const measured = open.map(({ choice, first, busy: [full, causal] }) => ({
    choice,
    row: {
      kernel: choice.version.name,
      ...choice.blocking,
      first,
      full: flops / median(full!) / 1e6,
      causal: flops / 2 / median(causal!) / 1e6,
    } satisfies Row,
  })).sort((a, b) => both(b.row) - both(a.row));
  if (measured.length === 0) {
    return yield* new DeviceUnavailable({
      device: "webgpu",
      needed: "a kernel that works on its adapter",
      found: "none",
    });
  }
  // Of those that are about as fast, the one that compiles fastest: the smallest program.
  const fast = measured.filter(({ row }) => both(row) >= closeEnough * both(measured[0]!.row));
  const work = ({ row: { rows, keys } }: typeof fast[number]) => rows * keys;
  const best = fast.reduce((least, each) => work(each) < work(least) ? each : least);
  const path = tuningPath();
  // What was measured is shown also where it cannot be kept.
  const keeping = path === undefined ? Effect.void : Effect.try({
    try: () => keepTuning(path, adapter.info, { dtype, headDim }, best.choice),
    catch: (cause) =>
      new FileInvalid({
        attempted: "keep what was measured in",
        file: path,
        needed: "it needs a file that can be written",
        found: cause instanceof Error ? cause.message : String(cause),
      }),
  });
  const kept = yield* Effect.exit(keeping);
  if (flags.json) {
    yield* printJson({
      adapter: adapter.info.description,
      ...{ headDim, dtype, tokens, heads },
      kernels: measured.map(({ row }) => row),
      best: best.row,
      ...(Exit.isSuccess(kept) ? { kept: path } : {}),
    });
    return yield* kept;
  }
  yield* print(
    `${adapter.info.description}: ${dtype}, head dim ${headDim}, ${heads} heads, ${tokens} tokens; ` +
      `GFLOP/s, medians of ${rounds}\n`,
  );
  yield* print(table([
    ["", "kernel", "rows", "keys", "lanes", "full", "causal", "first pass"],
    ...measured.map(({ row }) => [
      row === best.row ? "→" : "",
      row.kernel,
      ...[row.rows, row.keys, row.lanes].map(String),
      ...[row.full, row.causal].map((x) => x.toFixed(1)),
      `${row.first.toFixed(1)} s`,
    ]),
  ]));
  yield* kept;
  yield* print(path === undefined ? "\nnothing says where to keep the best" : `\nkept in ${path}`);
}, Effect.scoped);

/** Prints what was kept before. */
export const showKept = Effect.fn("showKept")(function* (json: boolean) {
  const path = tuningPath();
  const kept = yield* Effect.try({
    try: () => {
      try {
        return path === undefined ? [] : keptIn(path);
      } catch (cause) {
        if (cause instanceof Deno.errors.NotFound) return [];
        throw cause;
      }
    },
    catch: (cause) =>
      new FileInvalid({
        attempted: "show what was measured in",
        file: path!,
        needed: "it needs what annulus bench --kernel wrote",
        found: cause instanceof Error ? cause.message : String(cause),
      }),
  });
  if (json) return yield* printJson({ path, kept });
  if (kept.length === 0) {
    return yield* print(
      path === undefined ? "nothing says where to keep the best" : `nothing is kept in ${path}`,
    );
  }
  yield* print(table([
    ["annulus", "format and head dim", "kernel", "rows", "keys", "lanes", "adapter"],
    ...kept.map(({ annulus, task, kernel, rows, keys, lanes, adapter }) => [
      annulus,
      task,
      kernel,
      ...[rows, keys, lanes].map(String),
      adapter,
    ]),
  ]));
  yield* print(`\nkept in ${path}`);
});

/** One figure of both masks: work over time. */
const both = ({ full, causal }: Row): number => 1.5 / (1 / full + 0.5 / causal);
