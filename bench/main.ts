/**
 * `deno task bench`: kernels against ceilings and peers, then rings against the bare kernel. Exit codes: 0 when every
 * result was right, 1 when one was wrong, 2 for wrong usage.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import { Cause, Data, Effect, Option } from "effect";
import { Argument, CliError, Command, Flag } from "effect/cli";
import { note, print } from "../cli/output.ts";
import { platform, runMain } from "../cli/platform.ts";
import { version } from "../runtime/version.ts";
import { compare } from "./compare.ts";
import { contendersWith } from "./contenders.ts";
import type { Job } from "./job.ts";
import { faultsOf, kernelMarkdown, runMarkdown } from "./kernel_report.ts";
import { type BenchOptions, measure } from "./kernels.ts";
import { exclusivelyWith } from "./lock.ts";
import { thisMachine } from "./machine.ts";
import { page, readResults, write } from "./results.ts";

/** A result is wrong, or a contender that had begun did not end. */
class BenchFailed extends Data.TaggedError("BenchFailed")<{ readonly message: string }> {}

const listOf = (text: string): ReadonlyArray<string> =>
  text.split(",").map((part) => part.trim()).filter((part) => part !== "");
const optional = <A>(flag: Flag.Flag<A>) =>
  flag.pipe(Flag.optional, Flag.map((value) => Option.getOrUndefined(value)));
const switchOf = (name: string) => Flag.withDefault(Flag.Boolean(name), false);

const shapePattern = /^(\d+)x(\d+)x(\d+)$/;
const flags = {
  rounds: Flag.Int("rounds").pipe(
    Flag.filter((rounds) => rounds >= 1, () => "a number of at least 1"),
    Flag.withDefault(5),
    Flag.withDescription("How often each contender is measured"),
  ),
  quick: switchOf("quick").pipe(
    Flag.withDescription("Small shapes, to see that the bench works; its figures mean nothing"),
  ),
  lock: optional(
    Flag.String("lock").pipe(
      Flag.withDescription("A file that is locked while something is measured, as `flock` does"),
    ),
  ),
  out: Flag.String("out").pipe(
    Flag.withDefault(fileURLToPath(new URL("./results", import.meta.url))),
    Flag.withDescription("The folder for the results"),
  ),
};

const kernels = Command.make(
  "kernels",
  {
    ...flags,
    shapes: Flag.String("shapes").pipe(
      Flag.filter(
        (text) => listOf(text).every((shape) => shapePattern.test(shape)),
        () => "heads x tokens x head dim, with commas between: 8x2048x64,4x4096x128",
      ),
      Flag.withDefault("8x2048x64"),
      Flag.withDescription("Heads x tokens x head dim, with commas between"),
    ),
    only: optional(
      Flag.String("only").pipe(
        Flag.withDescription("Contenders whose name has one of these parts; ceilings stay"),
      ),
    ),
    versions: Flag.String("versions").pipe(
      Flag.filter(
        (text) => listOf(text).every((number) => /^\d+$/.test(number)),
        () => "numbers with commas between",
      ),
      Flag.withDefault(""),
      Flag.withDescription("Versions of the WebGPU kernel to measure besides the chosen one"),
    ),
    jobs: Flag.Literals("jobs", ["all", "attention", "gradients"]).pipe(Flag.withDefault("all")),
    masks: Flag.Literals("masks", ["both", "full", "causal"]).pipe(Flag.withDefault("both")),
  },
  Effect.fn(function* (given) {
    const shapes = given.quick ? ["2x96x32"] : listOf(given.shapes);
    const jobs = shapes.flatMap((shape): ReadonlyArray<Job> => {
      const [heads, tokens, headDim] = shapePattern.exec(shape)!.slice(1).map(Number) as [
        number,
        number,
        number,
      ];
      return (["attention", "gradients"] as const)
        .filter((kind) => given.jobs === "all" || given.jobs === kind)
        .flatMap((kind) =>
          [false, true]
            .filter((causal) => given.masks === "both" || (given.masks === "causal") === causal)
            .map((causal) => ({ kind, heads, tokens, headDim, causal }))
        );
    });
    const parts = given.only === undefined ? [""] : listOf(given.only);
    const contenders = contendersWith(listOf(given.versions).map(Number)).filter(
      ({ name, role }) => role === "ceiling" || parts.some((part) => name.includes(part)),
    );
    const options: BenchOptions = {
      rounds: given.rounds,
      matmul: given.quick ? 256 : 1024,
      progress: note,
      exclusively: exclusivelyWith(given.lock),
    };
    const machine = thisMachine();
    const tables = yield* Effect.forEach(jobs, (job) => measure(job, contenders, options));
    const command = `deno task bench${Deno.args.map((arg) => ` ${arg}`).join("")}`;
    const markdown = page("Kernels", command, machine, kernelReading, [
      ...tables.map(kernelMarkdown),
      runMarkdown(tables),
    ]);
    yield* print(markdown);
    yield* write(given.out, { bench: "kernels", machine, tables }, markdown);
    const faults = faultsOf(tables);
    if (faults.length > 0) return yield* new BenchFailed({ message: faults.join("; ") });
  }),
).pipe(Command.withDescription("Kernels against ceilings and peers"));

const kernelReading =
  "Medians with [least..most] over the rounds, of whole calls from inputs in memory to results in " +
  "memory; contenders take turns in each round. Ratios are medians of the ratios of single rounds, " +
  "to the fastest ceiling (by GFLOP/s) and to the fastest peer (by time) of the same field. The " +
  "error is the relative L2 distance to float64. GFLOP/s count the operations that the result " +
  "needs, 4 · headDim for each pair of query and key that counts, and 14 with gradients.";

const comparison = Command.make(
  "compare",
  { before: Argument.String("BEFORE.json"), after: Argument.String("AFTER.json") },
  Effect.fn(function* ({ before, after }) {
    yield* print(compare(yield* readResults(before), yield* readResults(after)));
  }),
).pipe(Command.withDescription("How many times as fast everything is in the second result file"));

const bench = Command.make("bench").pipe(
  Command.withDescription("Kernels and rings against their ceilings"),
  Command.withSubcommands([kernels, comparison]),
);

const program = Command.runWith(bench, { version })(Deno.args).pipe(
  Effect.catchCause((cause) => {
    if (Cause.hasInterruptsOnly(cause)) return Effect.interrupt;
    const error = Cause.squash(cause);
    const usage = CliError.isCliError(error);
    return Effect.andThen(
      note(`bench: ${error instanceof Error ? error.message : String(error)}`),
      Effect.sync(() => void (Deno.exitCode = usage ? 2 : 1)),
    );
  }),
  Effect.provide(platform),
);

runMain(program);
