/**
 * The file that `--trace` names. It is created before the run, so that a place that cannot be written to does not
 * cost a run, and appears under its name when all is in it.
 *
 * @module
 */
import { basename, dirname, join } from "node:path";
import { Effect, type Scope } from "effect";
import { FileInvalid } from "../runtime/errors.ts";
import { chromeTrace, type Interval } from "../runtime/timeline.ts";

/** A trace that is to be written. */
export interface Trace {
  readonly commit: (timeline: ReadonlyArray<Interval>) => Effect.Effect<void, FileInvalid>;
}

/** Creates the file; a scope that ends before `commit` leaves nothing behind. */
export const createTrace = Effect.fn("createTrace")(
  function* (path: string): Effect.fn.Return<Trace, FileInvalid, Scope.Scope> {
    const invalid = (needed: string, found: string) =>
      new FileInvalid({ attempted: "write", file: path, needed, found });
    const unwritable = (cause: unknown) =>
      invalid(
        "its folder must be there and writable",
        // Without the name of the file, which the sentence has already.
        cause instanceof Error ? cause.message.replace(/: \w+ '.*$/s, "") : String(cause),
      );
    const old = yield* Effect.tryPromise(() => Deno.stat(path)).pipe(Effect.option);
    if (old._tag === "Some" && !old.value.isFile) {
      const found = old.value.isDirectory ? "a folder" : "something else";
      return yield* invalid("it must be a regular file or not be there yet", found);
    }
    const random = crypto.randomUUID().slice(0, 8);
    const temporary = join(dirname(path), `.${basename(path)}.${random}.part`);
    const write = (text: string, options?: Deno.WriteFileOptions) =>
      Effect.tryPromise({
        try: () => Deno.writeTextFile(temporary, text, options),
        catch: unwritable,
      });
    yield* Effect.acquireRelease(
      write("", { createNew: true }),
      // Under its own name it is out of reach of this.
      () => Effect.promise(() => Deno.remove(temporary).catch(() => {})),
    );
    return {
      commit: (timeline) =>
        Effect.andThen(
          write(JSON.stringify(chromeTrace(timeline))),
          Effect.tryPromise({ try: () => Deno.rename(temporary, path), catch: unwritable }),
        ),
    };
  },
);
