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
    : ["SIGINT" as const, "SIGTERM" as const];
  for (const signal of signals) Deno.addSignalListener(signal, stop);
  fiber.addObserver((exit) => {
    for (const signal of signals) Deno.removeSignalListener(signal, stop);
    teardown(exit, (code) => Deno.exit(stopped ? 130 : code === 0 ? Deno.exitCode : code));
  });
});
