/**
 * What changed between two result files.
 *
 * @module
 */
import { table } from "../cli/output.ts";
import type { Results } from "./results.ts";
import { digits, median } from "./statistics.ts";

/** A table with, for each row that both have, the median times and how many times as fast the later is. */
export const compare = (before: Results, after: Results): string => {
  const rows = after.tables.flatMap(({ title, rows }) =>
    rows.flatMap(({ name, samples }) => {
      const earlier = before.tables.find((table) => table.title === title)
        ?.rows.find((row) => row.name === name);
      if (earlier === undefined) return [];
      const [a, b] = [earlier.samples, samples].map((all) =>
        1000 * median(all.map(({ seconds }) => seconds))
      ) as [number, number];
      return [["|", title, "|", name, "|", digits(a), "|", digits(b), "|", digits(a / b), "|"]];
    })
  );
  return table([
    ["|", "", "|", "", "|", "before, ms", "|", "after, ms", "|", "times as fast", "|"],
    ["|", "---", "|", "---", "|", "---", "|", "---", "|", "---", "|"],
    ...rows,
  ]);
};
