/**
 * What was measured on this machine: the best version of the kernel and its sizes, by number format and head dimension.
 * Kept in a file, and used only on the adapter and by the version of annulus that measured it.
 *
 * @module
 */
import type { DType } from "../../runtime/dtype.ts";
import { version } from "../../runtime/version.ts";
import type { AdapterInfo } from "./adapter.ts";
import { cacheHome } from "./environment.ts";
import { type Choice, versionNamed } from "./ladder.ts";

/** What is asked of a kernel. */
export interface Task {
  readonly dtype: DType;
  readonly headDim: number;
}

/** A choice as the file has it. */
interface Kept {
  readonly kernel: string;
  readonly rows: number;
  readonly keys: number;
  readonly lanes: number;
}

/** What the file holds. */
interface Tuning {
  readonly annulus: string;
  readonly adapter: string;
  readonly best: Readonly<Record<string, Kept>>;
}

/** What was read, and why it is less than the file has. */
export interface Measured {
  readonly choice: (task: Task) => Choice | undefined;
  readonly note?: string;
}

/** Where the file is; undefined where nothing says where a user's files are. */
export const tuningPath = (): string | undefined => {
  const home = cacheHome();
  return home === undefined ? undefined : `${home}/annulus-webgpu-tuning.json`;
};

/** All that an adapter says of itself and its driver. */
const nameOf = ({ vendor, architecture, device, description }: AdapterInfo): string =>
  [vendor, architecture, device, description].join(" / ");

const keyOf = ({ dtype, headDim }: Task): string => `${dtype} ${headDim}`;

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null;

/** A file may hold anything: whatever its numbers are, a program must be able to have them. */
const choiceOf = (kept: unknown): Choice | undefined => {
  if (!isRecord(kept)) return undefined;
  const { kernel, rows, keys, lanes } = kept;
  const version = typeof kernel === "string" ? versionNamed(kernel) : undefined;
  const within = (x: unknown, most: number): x is number =>
    Number.isInteger(x) && (x as number) >= 1 && (x as number) <= most;
  if (version === undefined || !within(rows, 16) || !within(keys, 16) || !within(lanes, 256)) {
    return undefined;
  }
  return 16 % keys === 0 ? { version, blocking: { rows, keys, lanes } } : undefined;
};

const parse = (text: string): Tuning => {
  const found: unknown = JSON.parse(text);
  if (
    !isRecord(found) || typeof found["annulus"] !== "string" ||
    typeof found["adapter"] !== "string" || !isRecord(found["best"]) ||
    !Object.values(found["best"]).every((kept) => choiceOf(kept) !== undefined)
  ) {
    throw new Error("it does not have the form of one");
  }
  return found as unknown as Tuning;
};

const nothing = (note?: string): Measured => ({
  choice: () => undefined,
  ...(note === undefined ? {} : { note }),
});

/** What the file says about an adapter. Never fails: with a note of why, there is nothing instead. */
export const readTuning = (path: string, info: AdapterInfo): Measured => {
  // Nodes may read little, and nothing here may prompt.
  if (Deno.permissions.querySync({ name: "read", path }).state !== "granted") return nothing();
  let tuning: Tuning;
  try {
    tuning = parse(Deno.readTextFileSync(path));
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return nothing();
    const reason = cause instanceof Error ? cause.message : String(cause);
    return nothing(`the tuning in ${path} is not used: ${reason}`);
  }
  const measured = [`annulus ${tuning.annulus}`, tuning.adapter];
  const here = [`annulus ${version}`, nameOf(info)];
  const other = measured.findIndex((name, i) => name !== here[i]);
  if (other >= 0) {
    return nothing(
      `the tuning in ${path} is not used: it is of ${measured[other]}, and this is ${
        here[other]
      }; ` +
        "annulus bench --kernel measures anew",
    );
  }
  return { choice: (task) => choiceOf(tuning.best[keyOf(task)]) };
};

/** Keeps a choice for an adapter, with those that were measured before on the same. Throws where it may not write. */
export const keepTuning = (
  path: string,
  info: AdapterInfo,
  task: Task,
  { version: { name: kernel }, blocking: { rows, keys, lanes } }: Choice,
): void => {
  const adapter = nameOf(info);
  let best: Tuning["best"] = {};
  try {
    const before = parse(Deno.readTextFileSync(path));
    if (before.annulus === version && before.adapter === adapter) best = before.best;
  } catch {
    // There is none, or none of use.
  }
  const kept: Kept = { kernel, rows, keys, lanes };
  const tuning: Tuning = { annulus: version, adapter, best: { ...best, [keyOf(task)]: kept } };
  // In one step, since devices may be reading it.
  const draft = `${path}.${Deno.pid}`;
  Deno.mkdirSync(path.replace(/\/[^/]*$/, "") || "/", { recursive: true });
  Deno.writeTextFileSync(draft, `${JSON.stringify(tuning, null, 2)}\n`);
  try {
    Deno.renameSync(draft, path);
  } catch (cause) {
    Deno.removeSync(draft);
    throw cause;
  }
};
