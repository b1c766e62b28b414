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
import { type Choice, isBlocking, mostRows, versionNamed } from "./ladder.ts";

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

/** What the file holds: of each adapter the best by number format and head dimension. */
interface Tuning {
  readonly annulus: string;
  readonly adapters: Readonly<Record<string, Readonly<Record<string, Kept>>>>;
}

/** One line of the file. */
export interface KeptChoice extends Kept {
  readonly annulus: string;
  readonly adapter: string;
  /** Number format and head dimension. */
  readonly task: string;
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

/** A file may hold anything: whatever its numbers are, a program must be able to have them, and compile in time. */
const choiceOf = (task: string, kept: unknown): Choice | undefined => {
  if (!isRecord(kept)) return undefined;
  const headDim = Number(/^(?:f32|f16|bf16) (\d+)$/.exec(task)?.[1]);
  const { kernel, rows, keys, lanes } = kept;
  const version = typeof kernel === "string" ? versionNamed(kernel) : undefined;
  const blocking = { rows, keys, lanes };
  if (version === undefined || !isBlocking(blocking)) return undefined;
  return blocking.rows <= mostRows(headDim) ? { version, blocking } : undefined;
};

const parse = (text: string): Tuning => {
  const found: unknown = JSON.parse(text);
  if (
    !isRecord(found) || typeof found["annulus"] !== "string" || !isRecord(found["adapters"]) ||
    !Object.values(found["adapters"]).every((best) =>
      isRecord(best) &&
      Object.entries(best).every(([task, kept]) => choiceOf(task, kept) !== undefined)
    )
  ) {
    throw new Error("it does not have the form of one");
  }
  return found as unknown as Tuning;
};

/** What the file says about an adapter. Never fails: with a note of why, there is nothing instead. */
export const readTuning = (path: string, info: AdapterInfo): Measured => {
  const nothing: Measured = { choice: () => undefined };
  const unused = (reason: string): Measured => ({
    ...nothing,
    note: `the tuning in ${path} is not used: ${reason}`,
  });
  // Nodes may read little, and nothing here may prompt.
  if (Deno.permissions.querySync({ name: "read", path }).state !== "granted") return nothing;
  let tuning: Tuning;
  try {
    tuning = parse(Deno.readTextFileSync(path));
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return nothing;
    return unused(cause instanceof Error ? cause.message : String(cause));
  }
  const anew = "annulus bench --kernel measures anew";
  if (tuning.annulus !== version) {
    return unused(`it is of annulus ${tuning.annulus}, and this is annulus ${version}; ${anew}`);
  }
  const best = tuning.adapters[nameOf(info)];
  if (Object.keys(tuning.adapters).length === 0) return nothing;
  if (best === undefined) {
    const others = Object.keys(tuning.adapters).join("; ");
    return unused(`it is of ${others}, and this is ${nameOf(info)}; ${anew}`);
  }
  return { choice: (task) => choiceOf(keyOf(task), best[keyOf(task)]) };
};

/** All that a file holds, for people. Throws where it cannot be read or is none. */
export const keptIn = (path: string): ReadonlyArray<KeptChoice> => {
  const { annulus, adapters } = parse(Deno.readTextFileSync(path));
  return Object.entries(adapters).flatMap(([adapter, best]) =>
    Object.entries(best).map(([task, kept]) => ({ annulus, adapter, task, ...kept }))
  );
};

/** Keeps a choice for an adapter, with all that this version measured before. Throws where it may not write. */
export const keepTuning = (
  path: string,
  info: AdapterInfo,
  task: Task,
  { version: { name: kernel }, blocking: { rows, keys, lanes } }: Choice,
): void => {
  let before: Tuning = { annulus: version, adapters: {} };
  try {
    const found = parse(Deno.readTextFileSync(path));
    if (found.annulus === version) before = found;
  } catch {
    // There is none, or none of use.
  }
  const adapter = nameOf(info);
  const best = { ...before.adapters[adapter], [keyOf(task)]: { kernel, rows, keys, lanes } };
  const tuning: Tuning = { ...before, adapters: { ...before.adapters, [adapter]: best } };
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
