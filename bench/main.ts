/**
 * `deno task bench`: kernels against ceilings and peers, then rings against the bare kernel; with a verb, one of the
 * two, attention variants, or the comparison of two result files. It ends with 1 when a result was wrong.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import { Data, Effect, Option } from "effect";
import { Argument, Command, Flag } from "effect/cli";
import { misuse, runCommandLine } from "../cli/command_line.ts";
import { devices } from "../cli/devices.ts";
import { note, print } from "../cli/output.ts";
import { runMain } from "../cli/platform.ts";
import { ladder } from "../plugins/webgpu/ladder.ts";
import { prepareDriver } from "../plugins/webgpu/environment.ts";
import { compare } from "./compare.ts";
import { contendersWith } from "./contenders.ts";
import type { Job } from "./job.ts";
import { faultsOf, kernelMarkdown, runMarkdown } from "./kernel_report.ts";
import { measure } from "./kernels.ts";
import { linkFaults, linkMarkdown, measureLink } from "./link.ts";
import { exclusivelyWith } from "./lock.ts";
import { thisMachine } from "./machine.ts";
import { page, readResults, type Results, write } from "./results.ts";
import { measureRings } from "./ring.ts";
import { measureVariants, variantFaults, variantMarkdown } from "./variants.ts";
import { ringFaults, ringMarkdown } from "./ring_report.ts";

/** A result is wrong, or a contender that had begun did not end. */
class BenchFailed extends Data.TaggedError("BenchFailed")<{ readonly message: string }> {}

const listOf = (text: string): ReadonlyArray<string> =>
  text.split(",").map((part) => part.trim()).filter((part) => part !== "");
const optional = <A>(flag: Flag.Flag<A>) =>
  flag.pipe(Flag.optional, Flag.map((value) => Option.getOrUndefined(value)));
const whole = (flag: Flag.Flag<number>) =>
  Flag.filter(flag, (value) => value >= 1, () => "a number of at least 1");
/** Numbers with commas between them, within these bounds; whole ones unless told. */
const numbers = (name: string, least: number, most: number, standard: string, any = false) =>
  Flag.String(name).pipe(
    Flag.map((text) => listOf(text).map(Number)),
    Flag.filter(
      (values) =>
        values.length > 0 &&
        values.every((value) =>
          value >= least && value <= most && (any || Number.isInteger(value))
        ),
      () => `${any ? "" : "whole "}numbers from ${least} to ${most} with commas between`,
    ),
    Flag.withDefault(listOf(standard).map(Number)),
  );

const common = {
  rounds: Flag.Int("rounds").pipe(
    whole,
    Flag.withDefault(5),
    Flag.withDescription("How often everything is measured"),
  ),
  quick: Flag.Boolean("quick").pipe(
    Flag.withDefault(false),
    Flag.withDescription("Small shapes, to see that the bench works; its figures mean nothing"),
  ),
  lock: optional(
    Flag.String("lock").pipe(
      Flag.withDescription("A file to lock while something is measured, as `flock` does"),
    ),
  ),
  out: Flag.String("out").pipe(
    Flag.withDefault(fileURLToPath(new URL("./results", import.meta.url))),
    Flag.withDescription("The folder for the results"),
  ),
};

/** Names of devices, and those of them that can run here. */
const deviceList = (standard: string) =>
  Flag.String("devices").pipe(
    Flag.withDefault(standard),
    Flag.filter(
      (text) =>
        listOf(text).length > 0 &&
        listOf(text).every((name) => devices.some((device) => device.name === name)),
      () => `${devices.map(({ name }) => name).join(", ")}, with commas between`,
    ),
  );
const presentOf = Effect.fnUntraced(function* (names: string) {
  const named = devices.filter(({ name }) => listOf(names).includes(name));
  const scores = yield* Effect.forEach(named, ({ score }) => score);
  const present = named.filter((_, i) => scores[i]! > 0);
  if (present.length > 0) return present;
  return yield* new BenchFailed({ message: `none of the devices ${names} can run here` });
});

/** How everything is measured. */
const however = (rounds: number, lock: string | undefined) => ({
  rounds,
  progress: note,
  exclusively: exclusivelyWith(lock),
});

/** Makes the folder for the results, before minutes of measuring. */
const reserve = (folder: string) =>
  Effect.tryPromise({
    try: () => Deno.mkdir(folder, { recursive: true }),
    catch: (cause) =>
      new BenchFailed({
        message: `cannot write results to "${folder}": ${(cause as Error).message}`,
      }),
  });

/** Prints and writes the results, and fails where one was wrong. */
const publish = Effect.fnUntraced(function* (
  folder: string,
  heading: string,
  reading: string,
  results: Results,
  tables: ReadonlyArray<string>,
  faults: ReadonlyArray<string>,
) {
  // Whoever repeats the run has other folders.
  const own = (i: number) => /^--(out|lock)\b/.test(Deno.args[i] ?? "");
  const args = Deno.args.filter((arg, i) => !own(i) && !(own(i - 1) && !arg.startsWith("--")));
  const command = ["deno task bench", ...args].join(" ");
  const markdown = page(heading, command, results.machine, reading, tables);
  yield* print(markdown);
  yield* write(folder, results, markdown);
  if (faults.length > 0) return yield* new BenchFailed({ message: faults.join("; ") });
});

const shapePattern = /^(\d+)x(\d+)x(\d+)$/;
const isShape = (text: string): boolean => {
  const [heads = 0, tokens = 0, headDim = 0] = shapePattern.exec(text)?.slice(1).map(Number) ?? [];
  return heads > 0 && tokens > 0 && headDim > 0 && headDim <= 256 && headDim % 4 === 0;
};
const kernelReading =
  "Medians with [least..most] over the rounds, of whole calls from inputs in memory to results in " +
  "memory; contenders take turns in each round, and wake up by a call that does not count. " +
  "Ratios are medians of the ratios of single rounds, " +
  "to the fastest ceiling (by GFLOP/s) and to the fastest peer (by time) of the same field. The " +
  "error is the relative L2 distance to float64. GFLOP/s count the operations that the result " +
  "needs: 4 · headDim for each pair of query and key that counts, 14 · headDim with gradients.";

const kernels = Command.make(
  "kernels",
  {
    ...common,
    shapes: Flag.String("shapes").pipe(
      Flag.filter(
        (text) => listOf(text).length > 0 && listOf(text).every(isShape),
        () =>
          "heads x tokens x head dim (a multiple of 4 up to 256), with commas between: " +
          "8x2048x64,4x4096x128",
      ),
      Flag.withDefault("8x2048x64"),
      Flag.withDescription("Heads x tokens x head dim, with commas between"),
    ),
    only: Flag.String("only").pipe(
      Flag.withDefault(""),
      Flag.withDescription("Contenders whose name has one of these parts; ceilings stay"),
    ),
    versions: numbers("versions", 1, ladder.length, "3").pipe(
      Flag.withDescription("Versions of the WebGPU kernel to measure besides the chosen one"),
    ),
    jobs: Flag.Literals("jobs", ["all", "attention", "gradients"]).pipe(Flag.withDefault("all")),
    masks: Flag.Literals("masks", ["both", "full", "causal"]).pipe(Flag.withDefault("both")),
  },
  Effect.fn(function* (given) {
    const shapes = given.quick ? ["2x96x32"] : listOf(given.shapes);
    const kinds = (["attention", "gradients"] as const).filter((kind) =>
      given.jobs === "all" || given.jobs === kind
    );
    const masks = [false, true].filter((causal) =>
      given.masks === "both" || (given.masks === "causal") === causal
    );
    const jobs = shapes.flatMap((shape) => {
      const [heads, tokens, headDim] = shapePattern.exec(shape)!.slice(1).map(Number);
      return kinds.flatMap((kind) =>
        masks.map((causal): Job => ({
          kind,
          heads: heads!,
          tokens: tokens!,
          headDim: headDim!,
          causal,
        }))
      );
    });
    const parts = listOf(given.only);
    const contenders = contendersWith(given.versions).filter(({ name, role }) =>
      role === "ceiling" || parts.length === 0 || parts.some((part) => name.includes(part))
    );
    if (contenders.every(({ role }) => role === "ceiling")) {
      return yield* misuse(`--only needs parts of contenders' names: found "${given.only}"`);
    }
    yield* reserve(given.out);
    const options = { ...however(given.rounds, given.lock), matmul: given.quick ? 256 : 1024 };
    const machine = thisMachine();
    const tables = yield* Effect.forEach(jobs, (job) => measure(job, contenders, options));
    yield* publish(
      given.out,
      "Kernels",
      kernelReading,
      { bench: "kernels", machine, tables },
      [...tables.map(kernelMarkdown), runMarkdown(tables)],
      faultsOf(tables),
    );
  }),
).pipe(Command.withDescription("Kernels against ceilings and peers"));

const ringReading =
  "Medians with [least..most] over the rounds. The bare kernel gets the whole sequence in one " +
  "block; the calls of a ring are what its ranks ask of the device, block by block, without the " +
  "ring. All ranks share one device in one process. Links at 50 % and 90 % are as slow as makes " +
  "the K and V of one rank travel for that share of the time of the calls of one step. " +
  "Hidden by timeline: the " +
  "share of the time in which blocks were arriving during which no rank stood still for want of " +
  "one. Hidden by time: 1 − (time − time with a free link) / time on the link. The error is the " +
  "relative L2 distance to float64.";

const ring = Command.make(
  "ring",
  {
    ...common,
    tokens: optional(
      Flag.Int("tokens").pipe(whole, Flag.withDescription("8192; 1024 on the reference device")),
    ),
    heads: Flag.Int("heads").pipe(whole, Flag.withDefault(8), Flag.withDescription("Query heads")),
    rings: numbers("rings", 1, 64, "1,2,4").pipe(Flag.withDescription("Ring sizes")),
    shares: numbers("shares", 0.01, 10, "0.5,0.9", true).pipe(
      Flag.withDescription(
        "How long a block would travel, as shares of the compute time of a step",
      ),
    ),
    devices: deviceList(devices.map(({ name }) => name).join(",")),
  },
  Effect.fn(function* (given) {
    const machine = thisMachine();
    const present = yield* presentOf(given.devices);
    yield* reserve(given.out);
    const tables = yield* Effect.forEach(present, (plugin) => {
      const standard = plugin.name === "reference" ? 1024 : 8192;
      const tokens = given.quick ? 96 : given.tokens ?? standard;
      const shape = { heads: given.quick ? 2 : given.heads, tokens, headDim: 64, causal: true };
      const { rings, shares } = given;
      return measureRings(plugin, { ...however(given.rounds, given.lock), rings, shares, shape });
    });
    yield* publish(
      given.out,
      "Rings",
      ringReading,
      { bench: "ring", machine, tables },
      tables.map(ringMarkdown),
      ringFaults(tables),
    );
  }),
).pipe(Command.withDescription("Rings against the bare kernel, with free and with slow links"));

const variantReading =
  "Medians with [least..most] over the rounds, of whole runs over a ring in one process. Ratios are to " +
  "causal attention: time to that of the same round, pairs to those that it counts. The layout is the " +
  "one that `auto` takes. A window of w over contiguous shards moves w − 1 tokens to each rank but the " +
  "first. The error is the relative L2 distance of o to float64, of 32 rows.";

const variants = Command.make(
  "variants",
  {
    ...common,
    tokens: Flag.Int("tokens").pipe(whole, Flag.withDefault(32_768)),
    ring: Flag.Int("ring").pipe(whole, Flag.withDefault(8), Flag.withDescription("Ranks")),
    devices: deviceList("webgpu,cpu"),
  },
  Effect.fn(function* (given) {
    const machine = thisMachine();
    const present = yield* presentOf(given.devices);
    yield* reserve(given.out);
    const tokens = given.quick ? 520 : given.tokens;
    const tables = yield* Effect.forEach(
      present,
      (plugin) =>
        measureVariants(plugin, { ...however(given.rounds, given.lock), tokens, ring: given.ring }),
    );
    yield* publish(
      given.out,
      "Attention variants",
      variantReading,
      { bench: "variants", machine, tables },
      tables.map(variantMarkdown),
      variantFaults(tables),
    );
  }),
).pipe(Command.withDescription("Attention variants against plain causal attention"));

const linkReading =
  "Medians with [least..most] over the rounds. Every frame is compared. Bare publish and subscribe moves the " +
  "same frames, as many at once, over the same server. Lost, doubled, overtaken and damaged are messages of " +
  "both ends, the link's own among them. A stall is the time between two frames at the receiver.";

const link = Command.make(
  "link",
  {
    ...common,
    mebibytes: Flag.Int("mebibytes").pipe(whole, Flag.withDefault(1024)),
  },
  Effect.fn(function* (given) {
    const machine = thisMachine();
    yield* reserve(given.out);
    const [mebibytes, away, frozen] = given.quick ? [16, 0.1, 0.2] : [given.mebibytes, 1, 6];
    const table = yield* measureLink({
      ...however(given.rounds, given.lock),
      ...{ mebibytes, away, frozen },
    });
    yield* publish(
      given.out,
      "Links",
      linkReading,
      { bench: "link", machine, tables: [table] },
      [linkMarkdown(table)],
      linkFaults(table),
    );
  }),
).pipe(
  Command.withDescription("A NATS link against bare publish and subscribe, and in bad weather"),
);

const comparison = Command.make(
  "compare",
  { before: Argument.String("BEFORE.json"), after: Argument.String("AFTER.json") },
  Effect.fn(function* ({ before, after }) {
    yield* print(compare(yield* readResults(before), yield* readResults(after)));
  }),
).pipe(Command.withDescription("How many times as fast everything is in the second result file"));

const bench = Command.make("bench").pipe(
  Command.withDescription("Kernels and rings against their ceilings"),
  Command.withSubcommands([kernels, ring, variants, link, comparison]),
);

// Every contender inherits it, so that none has a better driver than another.
prepareDriver();
const [verb = ""] = Deno.args;
const named = !verb.startsWith("-") && verb !== "" || /^(-h|--help|--version)$/.test(verb);
// Both benches get the same, and a flag that the second does not know would be found out when the first is over.
const unknown = named
  ? undefined
  : Deno.args.find((arg) =>
    arg.startsWith("-") && !Object.keys(common).some((name) => arg.split("=")[0] === `--${name}`)
  );
if (unknown !== undefined) {
  console.error(
    `bench: ${unknown} is no flag of both benches, which are run without a verb; ` +
      "put kernels or ring before it",
  );
  Deno.exit(2);
}
const lines = named ? [Deno.args] : ["kernels", "ring"].map((verb) => [verb, ...Deno.args]);
runMain(runCommandLine("bench", bench, ...lines));
