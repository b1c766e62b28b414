/**
 * Result files: JSON for programs, Markdown for people, side by side.
 *
 * @module
 */
import { Data, Effect } from "effect";
import type { Machine } from "./machine.ts";

/** What every bench writes, as far as the comparison of two files needs it. */
export interface Results {
  readonly bench: string;
  readonly machine: Machine;
  readonly tables: ReadonlyArray<{
    readonly title: string;
    readonly rows: ReadonlyArray<{
      readonly name: string;
      readonly samples: ReadonlyArray<{ readonly seconds: number }>;
    }>;
  }>;
}

const sentence = ({ cpu, cores, system, deno, annulus, environment, date }: Machine): string => {
  const set = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
  return `annulus ${annulus}, Deno ${deno}, ${cpu}, ${cores} cores, ${system}, ${date} UTC; ` +
    `environment: ${set.length === 0 ? "nothing that matters is set" : set.join(" ")}`;
};

/** A whole page: what was run, where, and the tables. */
export const page = (
  title: string,
  command: string,
  machine: Machine,
  reading: string,
  tables: ReadonlyArray<string>,
): string =>
  `# ${title}\n\n\`${command}\` on ${sentence(machine)}.\n\n${reading}\n\n${tables.join("\n\n")}\n`;

/** Writes `kernels.json` and `kernels.md`, or whatever the bench's name is. */
export const write = (folder: string, results: Results, markdown: string): Effect.Effect<void> =>
  Effect.promise(async () => {
    await Deno.mkdir(folder, { recursive: true });
    await Deno.writeTextFile(`${folder}/${results.bench}.md`, markdown);
    await Deno.writeTextFile(
      `${folder}/${results.bench}.json`,
      `${JSON.stringify(results, null, 2)}\n`,
    );
  });

/** A file is not what the bench writes. */
export class ResultsUnreadable extends Data.TaggedError("ResultsUnreadable")<{
  readonly path: string;
  readonly found: string;
}> {
  override get message(): string {
    return `Cannot compare "${this.path}": needs a result file of the bench: found ${this.found}`;
  }
}

/** Reads a result file. */
export const readResults = (path: string): Effect.Effect<Results, ResultsUnreadable> =>
  Effect.tryPromise({
    try: async () => {
      const results: Results = JSON.parse(await Deno.readTextFile(path));
      if (!Array.isArray(results.tables)) throw new Error("no tables");
      return results;
    },
    catch: (cause) =>
      new ResultsUnreadable({
        path,
        found: cause instanceof Error ? cause.message : String(cause),
      }),
  });
