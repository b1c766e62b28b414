/**
 * Imported before Effect, this keeps its fibers from remembering every wait of theirs.
 *
 * Effect 4.1 makes an `AsyncResource` each time that a fiber waits, and goes on within it. Deno 2.9's keeps the one within
 * which it was made, and that one the one before: a chain of all waits of a process, of which a node has some hundred for
 * each block. Nobody here asks for asynchronous contexts, so that Effect is told that there are none.
 *
 * @module
 */
import process from "node:process";

const { getBuiltinModule } = process;
process.getBuiltinModule =
  ((name: string) =>
    name === "node:async_hooks" ? undefined : getBuiltinModule(name)) as typeof getBuiltinModule;
