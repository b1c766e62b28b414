/**
 * Kernels against ceilings and peers: every contender computes the same job in its own process, one after the other in
 * each round, so that drift of the machine meets them alike. What the last round computed is judged.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import type { Sample } from "./contender.ts";
import type { Contender } from "./contenders.ts";
import { flopsOf, inputsOf, type Job, readTensors, titleOf, writeTensors } from "./job.ts";
import { judge, type Reference, referenceOf, type Verdict } from "./judge.ts";
import { watchOthers } from "./cpu_time.ts";
import { Absent, type Running, start } from "./process.ts";

/** What a contender showed. */
export interface Score {
  readonly name: string;
  readonly field: Contender["field"];
  readonly role: Contender["role"];
  /** What it computed, which for a ceiling is not the job of the others. */
  readonly job: Job;
  /** How it runs. */
  readonly about: string;
  readonly samples: ReadonlyArray<Measurement>;
  readonly verdict: Verdict;
}

/** A sample, and how busy the machine was with something else. */
export interface Measurement extends Sample {
  /** The share of all CPUs that other processes used meanwhile, where the system tells. */
  readonly others?: number;
}

/** A contender that is not in the table. */
export interface Missing {
  readonly name: string;
  readonly reason: string;
  /** It had begun, so that this is a fault and no mere absence. */
  readonly failed: boolean;
}

/** A job and all who computed it. */
export interface KernelTable {
  readonly title: string;
  readonly job: Job;
  readonly rows: ReadonlyArray<Score>;
  readonly missing: ReadonlyArray<Missing>;
}

/** How a bench is run. */
export interface BenchOptions {
  readonly rounds: number;
  /** Size of the square matrices that ceilings multiply. */
  readonly matmul: number;
  /** Gets a line before each piece of work. */
  readonly progress: (line: string) => Effect.Effect<void>;
  /** Runs what is measured while nobody else measures. */
  readonly exclusively: <A, E, R>(work: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>;
}

/** Beyond this many seconds a contender is measured in fewer rounds. */
const slow = 10;
const roundsWhenSlow = 3;

/** Up to this many seconds it shows in a call that its process stood idle before: in caches, memory and threads. */
const brief = 2;

interface Task {
  readonly job: Job;
  readonly inputs: string;
  readonly reference: Reference;
}

/** Inputs in a folder that the scope's end removes, and what the results must be. */
const prepare = Effect.fnUntraced(function* (job: Job): Effect.fn.Return<Task, never, Scope.Scope> {
  const inputs = yield* folder;
  const tensors = inputsOf(job);
  yield* Effect.promise(() => writeTensors(inputs, tensors));
  return { job, inputs, reference: referenceOf(job, tensors) };
});

const folder = Effect.acquireRelease(
  Effect.promise(() => Deno.makeTempDir({ prefix: "annulus-bench-" })),
  (path) => Effect.promise(() => Deno.remove(path, { recursive: true })),
);

/** A contender that has its job and has computed it once, which compiles what needs compiling. */
interface Ready {
  readonly contender: Contender;
  readonly task: Task;
  readonly running: Running;
  readonly about: string;
  readonly rounds: number;
  /** Each turn begins with a call that does not count. */
  readonly wakes: boolean;
  readonly samples: Array<Measurement>;
}

const warm = Effect.fnUntraced(function* (
  contender: Contender,
  task: Task,
  rounds: number,
): Effect.fn.Return<Ready, Absent, Scope.Scope> {
  const running = yield* start(contender.command);
  const about = yield* running.ask({ op: "open", job: task.job, inputs: task.inputs });
  const { seconds } = yield* Effect.mapError(
    running.ask({ op: "sample" }),
    // A device of ours that opens and does not compute is not merely absent.
    ({ reason }) => new Absent({ reason, failed: contender.role === "annulus" }),
  );
  const fewer = seconds > slow ? Math.min(rounds, roundsWhenSlow) : rounds;
  return { contender, task, running, about, rounds: fewer, wakes: seconds <= brief, samples: [] };
});

const sampleOf = Effect.fnUntraced(function* ({ running, wakes }: Ready) {
  if (wakes) yield* running.ask({ op: "sample" });
  const others = watchOthers(running.pid);
  const sample = yield* running.ask({ op: "sample" });
  const share = others();
  return share === undefined ? sample : { ...sample, others: share };
});

const verdictOf = Effect.fnUntraced(function* ({ contender, task, running }: Ready) {
  const results = yield* folder;
  const names = yield* running.ask({ op: "result", folder: results });
  const tensors = yield* Effect.promise(() => readTensors(results, names));
  return judge(task.reference, tensors, contender.bound[task.job.kind]);
});

/** Measures one job. */
export const measure = (
  job: Job,
  contenders: ReadonlyArray<Contender>,
  options: BenchOptions,
): Effect.Effect<KernelTable> =>
  Effect.scoped(Effect.gen(function* () {
    const title = `${job.kind}, ${titleOf(job)}`;
    yield* options.progress(title);
    const own = yield* prepare(job);
    const ceiling = yield* prepare({ kind: "matmul", size: options.matmul });
    const missing: Array<Missing> = [];
    const without =
      ({ name }: Contender, failed: boolean) => ({ reason }: { readonly reason: string }) =>
        Effect.sync(() => void missing.push({ name, reason, failed }));

    const ready = new Set<Ready>();
    const enter = Effect.fnUntraced(function* (contender: Contender) {
      const task = contender.role === "ceiling" ? ceiling : own;
      if (!contender.computes.includes(task.job.kind)) return;
      if (flopsOf(task.job) > (contender.mostFlops ?? Infinity)) {
        return yield* without(contender, false)({ reason: "it is too slow for this shape" });
      }
      yield* options.progress(`  ${contender.name}`);
      yield* warm(contender, task, options.rounds).pipe(
        Effect.map((entered) => void ready.add(entered)),
        Effect.catch(({ reason, failed = false }) => without(contender, failed)({ reason })),
      );
    });
    const sample = (entered: Ready) =>
      sampleOf(entered).pipe(
        Effect.map((sample) => void entered.samples.push(sample)),
        Effect.catch((absent) => {
          ready.delete(entered);
          return without(entered.contender, true)(absent);
        }),
      );
    yield* options.exclusively(Effect.forEach(contenders, enter));
    for (let round = 0; round < options.rounds; round++) {
      yield* options.progress(`  round ${round + 1} of ${options.rounds}`);
      const taking = [...ready].filter(({ rounds }) => round < rounds);
      yield* options.exclusively(Effect.forEach(taking, sample));
    }
    const rows: Array<Score> = [];
    for (const entered of ready) {
      const { contender: { name, field, role }, task, about, samples } = entered;
      yield* verdictOf(entered).pipe(
        Effect.map((verdict) =>
          void rows.push({ name, field, role, job: task.job, about, samples, verdict })
        ),
        Effect.catch(without(entered.contender, true)),
      );
    }
    return { title, job, rows, missing };
  }));
