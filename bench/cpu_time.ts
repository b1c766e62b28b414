/**
 * How busy the CPUs are with other work than what is measured, where the system says so.
 *
 * @module
 */

/** Seconds of CPU time since the system began. */
interface CpuTime {
  readonly everybody: number;
  readonly one: number;
}

/** Linux counts in hundredths of a second, so that a share needs this many seconds to mean something. */
const ticks = 100;
const shortest = 0.1;

const read = (pid: number): CpuTime | undefined => {
  try {
    const [user, nice, system, , , irq, softirq] = Deno.readTextFileSync("/proc/stat")
      .split("\n")[0]!.trim().split(/\s+/).slice(1).map(Number) as Array<number>;
    // The second field is the program's name, in parentheses and with whatever it contains.
    const own = Deno.readTextFileSync(`/proc/${pid}/stat`).replace(/^.*\) /s, "").split(" ");
    return {
      everybody: (user! + nice! + system! + irq! + softirq!) / ticks,
      one: (Number(own[11]) + Number(own[12])) / ticks,
    };
  } catch {
    return undefined; // not Linux, or the process has just ended
  }
};

/**
 * Starts watching a process; the function that it gives returns the share of all CPUs that others used since then, or
 * undefined where that cannot be seen or the time was too short.
 */
export const watchOthers = (pid: number): () => number | undefined => {
  const [before, began] = [read(pid), performance.now()];
  return () => {
    const after = read(pid);
    const seconds = (performance.now() - began) / 1000;
    if (before === undefined || after === undefined || seconds < shortest) return undefined;
    const others = after.everybody - before.everybody - (after.one - before.one);
    return Math.max(0, others / (seconds * navigator.hardwareConcurrency));
  };
};
