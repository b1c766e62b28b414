/**
 * What faults cost: which of the time was effective, and how much each kind of fault took.
 *
 * @module
 */

/** Something that was done to the cluster; times are milliseconds. */
export interface Fault {
  readonly name: string;
  readonly began: number;
  readonly ended: number;
  /** When a run that lost something by it went on. */
  readonly wentOn?: number;
}

/** One run, from the start of its process to its end. */
export interface Run {
  readonly began: number;
  readonly ended: number;
  /** It gave the bytes that it should. */
  readonly right: boolean;
}

/** After a fault a node may be busy coming back for so long. */
const aftermath = 5000;

/** The middle one of some numbers. */
export const median = (values: ReadonlyArray<number>): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;

const lasted = ({ began, ended }: Run): number => ended - began;

/** The faults during which, or soon after which, a run went. */
export const faultsOf = (run: Run, faults: ReadonlyArray<Fault>): ReadonlyArray<Fault> =>
  faults.filter(({ began, ended }) => began < run.ended && run.began < ended + aftermath);

/** What all faults cost. */
export interface Account {
  /** Milliseconds of a run that no fault touched: the median. */
  readonly undisturbed: number;
  /** Runs that no fault touched. */
  readonly untouched: number;
  /** Of the time, the share in which runs made progress that was not thrown away. */
  readonly effective: number;
  /** Milliseconds by fault. */
  readonly cost: ReadonlyMap<Fault, number>;
}

/**
 * A run that a fault touched has cost what it took longer than a run that none touched, be it that it stood still, that
 * it computed something again, or that it was slow; one that failed was in vain. All other time is effective. Of several
 * faults in one run each bears the same share.
 *
 * @param before Runs before the first fault.
 */
export const accountOf = (
  before: ReadonlyArray<Run>,
  runs: ReadonlyArray<Run>,
  faults: ReadonlyArray<Fault>,
): Account => {
  const untouched = runs.filter((run) => run.right && faultsOf(run, faults).length === 0);
  const undisturbed = median([...before, ...untouched].map(lasted));
  const cost = new Map(faults.map((fault) => [fault, 0]));
  let lost = 0;
  for (const run of runs) {
    const causes = faultsOf(run, faults);
    if (run.right && causes.length === 0) continue;
    const spent = run.right ? lasted(run) - undisturbed : lasted(run);
    lost += spent;
    for (const fault of causes) cost.set(fault, cost.get(fault)! + spent / causes.length);
  }
  const all = runs.reduce((sum, run) => sum + lasted(run), 0);
  return { undisturbed, untouched: untouched.length, effective: 1 - lost / all, cost };
};

/** A table of what each kind of fault did, in lines of Markdown. */
export const tableOf = (
  faults: ReadonlyArray<Fault>,
  cost: Account["cost"],
): ReadonlyArray<string> => {
  const figures = (milliseconds: ReadonlyArray<number>) => {
    const seconds = (value: number) => (value / 1000).toFixed(1);
    return milliseconds.length === 0
      ? "– | –"
      : `${seconds(median(milliseconds))} | ${seconds(Math.max(...milliseconds))}`;
  };
  return [
    "| fault | times | with a recovery | s until the run went on: median | worst | s that it cost: median | worst |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    ...[...Map.groupBy(faults, ({ name }) => name)].map(([name, all]) => {
      const waits = all.flatMap(({ began, wentOn }) => wentOn === undefined ? [] : wentOn - began);
      const costs = figures(all.map((fault) => cost.get(fault)!));
      return `| ${name} | ${all.length} | ${waits.length} | ${figures(waits)} | ${costs} |`;
    }),
  ];
};
