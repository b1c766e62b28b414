/**
 * What commands print: results on standard output, everything else on standard error.
 *
 * @module
 */
import { Effect } from "effect";

const encoder = new TextEncoder();

const write = (to: typeof Deno.stdout, text: string): void => {
  const bytes = encoder.encode(text);
  try {
    for (let at = 0; at < bytes.length;) at += to.writeSync(bytes.subarray(at));
  } catch (cause) {
    // The reader has gone, as `head` does. The work is none the worse for it.
    if (!(cause instanceof Deno.errors.BrokenPipe)) throw cause;
  }
};

/** Lines as a terminal may show them: files and other machines choose part of the text. */
const harmless = (text: string): string =>
  text.replace(/[^\P{C}\n]/gu, (c) => `\\u{${c.codePointAt(0)!.toString(16)}}`);

/** A part of the result, without a line's end. */
export const printPart = (text: string): Effect.Effect<void> =>
  Effect.sync(() => write(Deno.stdout, harmless(text)));

/** A line of the result. */
export const print = (line: string): Effect.Effect<void> =>
  Effect.sync(() => write(Deno.stdout, `${harmless(line)}\n`));

/** The result as JSON. */
export const printJson = (value: unknown): Effect.Effect<void> =>
  print(JSON.stringify(value, null, 2));

/** A line for the person at the terminal. */
export const note = (line: string): Effect.Effect<void> =>
  Effect.sync(() => write(Deno.stderr, `${harmless(line)}\n`));

/** Text without a line's end, for what is redrawn in place. */
export const draw = (text: string): Effect.Effect<void> =>
  Effect.sync(() => write(Deno.stderr, text));

/** Columns aligned by spaces; numbers to the right. */
export const table = (rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = rows[0]!.map((_, column) =>
    Math.max(...rows.map((row) => (row[column] ?? "").length))
  );
  const numeric = (text: string) => /^[-\d.]/.test(text);
  return rows.map((row) =>
    row.map((cell, column) =>
      numeric(cell) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)
    ).join("  ").trimEnd()
  ).join("\n");
};

/** "1.5 MiB" */
export const sizeInWords = (bytes: number): string => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 2 ** (10 * power);
  return `${Number.isInteger(value) || value >= 100 ? Math.round(value) : value.toFixed(1)} ${
    units[power]
  }`;
};
