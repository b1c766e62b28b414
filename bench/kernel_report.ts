/**
 * The tables of the kernel bench, for people.
 *
 * @module
 */
import { table } from "../cli/output.ts";
import type { Contender } from "./contenders.ts";
import { flopsOf } from "./job.ts";
import type { KernelTable, Score } from "./kernels.ts";
import { digits, median, spread } from "./statistics.ts";

const secondsOf = ({ samples }: Score): ReadonlyArray<number> =>
  samples.map(({ seconds }) => seconds);
/** GFLOP/s, sample by sample. */
const ratesOf = (score: Score): ReadonlyArray<number> =>
  secondsOf(score).map((seconds) => flopsOf(score.job) / seconds / 1e9);

/** The fastest that is right. */
const best = (rows: ReadonlyArray<Score>, field: Contender["field"], role: Contender["role"]) =>
  rows.filter((row) => row.field === field && row.role === role && row.verdict.right)
    .toSorted((a, b) => median(ratesOf(b)) - median(ratesOf(a)))[0];

/** How many times as fast as another one, in the rounds that both have. */
const against = (score: Score, other: Score | undefined): string => {
  if (other === undefined) return "";
  const rates = ratesOf(other);
  return digits(median(ratesOf(score).slice(0, rates.length).map((rate, i) => rate / rates[i]!)));
};

const partOf = (score: Score, name: string): string => {
  const values = score.samples.flatMap(({ parts }) => parts?.[name] ?? []);
  return values.length === 0 ? "" : digits(1000 * median(values));
};

const wholeToForward = ({ samples }: Score): string => {
  const ratios = samples.flatMap(({ seconds, parts }) =>
    parts?.["forward"] === undefined ? [] : seconds / parts["forward"]
  );
  return ratios.length === 0 ? "" : spread(ratios);
};

const roles: ReadonlyArray<Contender["role"]> = ["ceiling", "annulus", "peer"];

/** One table in Markdown: ceilings, annulus, peers, each from the fastest on. */
export const kernelMarkdown = ({ title, job, rows, missing }: KernelTable): string => {
  const gradients = job.kind === "gradients";
  const header = [
    "",
    "field",
    "ms",
    "GFLOP/s",
    "of ceiling",
    "× best peer",
    "error",
    gradients ? "of forward" : "absorb ms",
    "rounds",
  ];
  const ordered = rows.toSorted((a, b) =>
    roles.indexOf(a.role) - roles.indexOf(b.role) || median(ratesOf(b)) - median(ratesOf(a))
  );
  const cells = ordered.map((row) => [
    row.name,
    row.field,
    spread(secondsOf(row).map((seconds) => 1000 * seconds)),
    digits(median(ratesOf(row))),
    against(row, best(rows, row.field, "ceiling")),
    row.role === "ceiling" ? "" : against(row, best(rows, row.field, "peer")),
    `${row.verdict.error.toExponential(1)}${row.verdict.right ? "" : " WRONG"}`,
    gradients ? wholeToForward(row) : partOf(row, "absorb"),
    String(row.samples.length),
  ]);
  const lines = [header, header.map(() => "---"), ...cells]
    .map((row) => row.flatMap((cell) => ["|", cell]).concat("|"));
  return [
    `## ${title}\n`,
    table(lines),
    ...(missing.length === 0 ? [] : [
      "\nNot in the table:\n",
      ...missing.map(({ name, reason }) => `- ${name}: ${reason}`),
    ]),
  ].join("\n");
};

/** How everybody ran, and how busy the machine was with something else. */
export const runMarkdown = (tables: ReadonlyArray<KernelTable>): string => {
  const rows = tables.flatMap(({ rows }) => rows);
  const about = new Map(rows.map(({ name, about }) => [name, about]));
  const others = rows.flatMap(({ samples }) => samples.flatMap(({ others }) => others ?? []));
  return [
    "## As they ran\n",
    ...[...about].map(([name, about]) => `- ${name}: ${about}`),
    ...(others.length === 0 ? [] : [
      `\nOther processes used ${
        spread(others.map((share) => 100 * share))
      } % of the CPUs meanwhile.`,
    ]),
  ].join("\n");
};

/** What makes the bench fail, in sentences. */
export const faultsOf = (tables: ReadonlyArray<KernelTable>): ReadonlyArray<string> =>
  tables.flatMap(({ title, rows, missing }) => [
    ...rows.filter(({ verdict }) => !verdict.right).map(({ name, verdict }) =>
      `${title}: ${name} is wrong, its relative error is ${verdict.error.toExponential(1)}`
    ),
    ...missing.filter(({ failed }) => failed).map(({ name, reason }) =>
      `${title}: ${name} did not end: ${reason}`
    ),
  ]);
