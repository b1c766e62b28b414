/**
 * What a table must say of the machine that its figures come from.
 *
 * @module
 */
import { version } from "../runtime/version.ts";

/** A machine and what the bench runs on it. */
export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly memory: number;
  readonly system: string;
  readonly deno: string;
  readonly annulus: string;
  /** Variables of the environment that change what libraries and drivers do, where they are set. */
  readonly environment: Readonly<Record<string, string>>;
  /** When the run began, in UTC. */
  readonly date: string;
}

const telling = [
  "OPENBLAS_CORETYPE",
  "OPENBLAS_NUM_THREADS",
  "OPENBLAS_L2_SIZE",
  "OMP_NUM_THREADS",
  "LP_NATIVE_VECTOR_WIDTH",
  "LP_NUM_THREADS",
];

/** What Linux says of its CPUs; empty elsewhere. */
const cpuInfo = (): string => {
  try {
    return Deno.readTextFileSync("/proc/cpuinfo");
  } catch {
    return "";
  }
};

/** This machine. */
export const thisMachine = (): Machine => ({
  cpu: /^model name\s*:\s*(.+)$/m.exec(cpuInfo())?.[1] ?? Deno.build.arch,
  cores: navigator.hardwareConcurrency,
  memory: Deno.systemMemoryInfo().total,
  system: `${Deno.build.os} ${Deno.osRelease()}`,
  deno: Deno.version.deno,
  annulus: version,
  environment: Object.fromEntries(
    telling.flatMap((name) => {
      const value = Deno.env.get(name);
      return value === undefined ? [] : [[name, value]];
    }),
  ),
  date: new Date().toISOString().slice(0, 16).replace("T", " "),
});
