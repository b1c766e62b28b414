/**
 * How a command line ends: help for who asks for it, one sentence on standard error for everything that went wrong, and
 * an exit code. 0 when the answer is right, 1 when there is none, 2 for wrong usage, 130 for Ctrl-C.
 *
 * @module
 */
import { Cause, Data, Effect } from "effect";
import { CliConfig, CliError, CliOutput, Command, GlobalFlag } from "effect/cli";
import { version } from "../runtime/version.ts";
import { note } from "./output.ts";
import { platform } from "./platform.ts";

/** Wrong usage that no single flag shows. */
class Misuse extends Data.TaggedError("Misuse")<{ readonly message: string }> {}

/** Ends the command as wrong usage. */
export const misuse = (message: string): Misuse => new Misuse({ message });

/** One sentence on standard error, and the exit code. */
const refuse = (name: string, sentence: string, code: number): Effect.Effect<void> =>
  Effect.andThen(
    note(`${name}: ${sentence.replaceAll(/\s*\n\s*/g, " ")}`),
    Effect.sync(() => void (Deno.exitCode = code)),
  );

/** Help is for who asks for it; wrong usage gets a sentence, from `refuse`. */
const presenter = CliOutput.layerPresenter({
  present: (event) =>
    event._tag === "InvalidInvocation" ? Effect.void : CliOutput.defaultPresenter.present(event),
});

/** Nothing here prompts, and the wizard would. */
const config = CliConfig.layer({
  builtIns: GlobalFlag.BuiltIns.filter((flag) => flag !== GlobalFlag.Wizard),
});

/** What the parser has against the arguments; nothing where help was asked for. */
const complaints = (error: CliError.CliError): ReadonlyArray<string> =>
  error._tag === "ShowHelp" ? error.errors.map(({ message }) => message) : [error.message];

/** Runs one command after the other with its arguments, until one fails; never fails, but sets the exit code. */
export const runCommandLine = <Name extends string, Input, Context, E>(
  name: string,
  command: Command.Command<Name, Input, Context, E, never>,
  ...lines: ReadonlyArray<ReadonlyArray<string>>
): Effect.Effect<void> =>
  Effect.forEach(lines, Command.runWith(command, { version }), { discard: true }).pipe(
    Effect.catchCause((cause) => {
      if (Cause.hasInterruptsOnly(cause)) return Effect.interrupt;
      const error = Cause.squash(cause);
      const usage = CliError.isCliError(error)
        ? complaints(error)
        : error instanceof Misuse
        ? [error.message]
        : undefined;
      if (usage?.length === 0) return Effect.void;
      if (usage !== undefined) return refuse(name, `${usage.join("; ")}; see ${name} --help`, 2);
      const sentence = error instanceof Error ? error.message : String(error);
      return refuse(
        name,
        Cause.hasDies(cause) ? `internal error, please report it: ${sentence}` : sentence,
        1,
      );
    }),
    Effect.provide([platform, presenter, config]),
  );
