/**
 * The tables of the ring bench, for people.
 *
 * @module
 */
import { table } from "../cli/output.ts";
import type { RingRow, RingTable } from "./ring.ts";
import { digits, median, spread } from "./statistics.ts";

const figures = ({ samples }: RingRow, figure: "hidden" | "hiddenByTime"): string => {
  const values = samples.flatMap((sample) => sample[figure] ?? []);
  return values.length === 0 ? "" : spread(values);
};

/** One table in Markdown. */
export const ringMarkdown = ({ title, device, flops, rows }: RingTable): string => {
  const header = [
    "",
    "ms",
    "GFLOP/s",
    "of bare kernel",
    "of own calls",
    "hidden, by timeline",
    "hidden, by time",
    "error",
  ];
  const cells = rows.map((row) => [
    row.name,
    spread(row.samples.map(({ seconds }) => 1000 * seconds)),
    digits(median(row.samples.map(({ seconds }) => flops / seconds / 1e9))),
    spread(row.samples.map(({ seconds, kernel }) => kernel / seconds)),
    spread(row.samples.map(({ seconds, calls }) => calls / seconds)),
    figures(row, "hidden"),
    figures(row, "hiddenByTime"),
    row.verdict === undefined
      ? ""
      : `${row.verdict.error.toExponential(1)}${row.verdict.right ? "" : " WRONG"}`,
  ]);
  const lines = [header, header.map(() => "---"), ...cells]
    .map((row) => row.flatMap((cell) => ["|", cell]).concat("|"));
  const kind = device.software ? " (software, not a GPU)" : "";
  return `## ${title}\n\n${device.backend}${kind}.\n\n${table(lines)}`;
};

/** What makes the bench fail, in sentences. */
export const ringFaults = (tables: ReadonlyArray<RingTable>): ReadonlyArray<string> =>
  tables.flatMap(({ title, rows }) =>
    rows.flatMap(({ name, verdict }) =>
      verdict === undefined || verdict.right
        ? []
        : [`${title}: ${name} is wrong, its relative error is ${verdict.error.toExponential(1)}`]
    )
  );
