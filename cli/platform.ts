/**
 * What `effect/cli` asks of the platform, from Deno alone. Commands do not prompt and do not use these services
 * otherwise, so most of it is empty.
 *
 * @module
 */
import { Effect, FileSystem, Layer, Path, Runtime, Stdio, Terminal } from "effect";
import { ChildProcessSpawner } from "effect/process";

const unused = Effect.die(new Error("annulus does not prompt"));

const terminal = Terminal.make({
  columns: Effect.sync(() => Deno.stdout.isTerminal() ? Deno.consoleSize().columns : 100),
  rows: Effect.succeed(24),
  size: unused,
  readInput: unused,
  readLine: unused,
  display: (text) => Effect.sync(() => void Deno.stdout.writeSync(new TextEncoder().encode(text))),
});

/** The services behind the command parser. */
export const platform = Layer.mergeAll(
  FileSystem.layerNoop({}),
  Path.layer,
  Stdio.layerTest({}),
  Layer.succeed(Terminal.Terminal, terminal),
  Layer.succeed(
    ChildProcessSpawner.ChildProcessSpawner,
    ChildProcessSpawner.make(() => unused),
  ),
);

/** A thread that does not end holds the process no longer than this. */
const threadsEndWithin = 5000;

/**
 * Returns when the threads of all Workers are gone, where that can be seen. Deno takes a Worker apart on a thread of
 * its own, after `terminate` has returned, and a graphics driver crashes the process that exits meanwhile.
 */
const workersGone = async (): Promise<void> => {
  const threads = "/proc/self/task";
  const isWorker = ({ name }: Deno.DirEntry): boolean => {
    try {
      return Deno.readTextFileSync(`${threads}/${name}/comm`).startsWith("worker-");
    } catch {
      return false; // it has just ended
    }
  };
  const began = performance.now();
  try {
    while ([...Deno.readDirSync(threads)].some(isWorker)) {
      if (performance.now() - began > threadsEndWithin) return;
      await new Promise((resume) => setTimeout(resume, 2));
    }
  } catch {
    // Not Linux, or without the permission to look.
  }
};

/**
 * Runs a program to its end and leaves the process with its exit code: `Deno.exitCode` where the program set one,
 * 130 where a signal interrupted it, whatever else went wrong then. Every scope is closed before.
 */
export const runMain = Runtime.makeRunMain(({ fiber, teardown }) => {
  let stopped = false;
  const stop = () => {
    stopped = true;
    fiber.interruptUnsafe();
  };
  const signals = Deno.build.os === "windows"
    ? ["SIGINT" as const]
    : ["SIGINT" as const, "SIGTERM" as const, "SIGHUP" as const];
  for (const signal of signals) Deno.addSignalListener(signal, stop);
  fiber.addObserver((exit) => {
    for (const signal of signals) Deno.removeSignalListener(signal, stop);
    teardown(exit, async (code) => {
      await workersGone();
      Deno.exit(stopped ? 130 : code === 0 ? Deno.exitCode : code);
    });
  });
});
