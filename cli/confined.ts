/**
 * A script in a process of its own, for code that nobody read: with no permission but those that it is granted, no file
 * to write to, so much memory and so much time. It is killed when it has said what it has to say, when it asks for more
 * than it was granted, at its limits, and when this process ends, however that ends.
 *
 * @module
 */
import { resolve } from "node:path";
import { Effect, Schedule } from "effect";
import { prepareDriver } from "../plugins/webgpu/environment.ts";
import { eachLine } from "./lines.ts";
import { fromFileUrl } from "./paths.ts";

/** What a script may use, as Deno names it: files and folders to read, libraries, variables, facts of the system. */
export type Grants = Readonly<Partial<Record<"read" | "ffi" | "env" | "sys", readonly string[]>>>;

/** How much it may use. */
export interface Limits {
  readonly seconds: number;
  /** Of memory, in MiB. */
  readonly memory: number;
}

/** How it ended, or why it was killed. */
export type Ending =
  | { readonly kind: "said"; readonly text: string }
  /** It asked for a permission that it was not granted, whatever it did when there was none. */
  | { readonly kind: "asked"; readonly what: string }
  | { readonly kind: "late" }
  | { readonly kind: "large" }
  /** By itself, before it had said anything. */
  | { readonly kind: "ended"; readonly how: string };

/**
 * What no permission of Deno's is for, in words of the system, and then Deno in the place of the shell. Nothing can be
 * written to files: Web Storage and caches need no permission. A second process waits for the end of standard input,
 * which comes when nobody is there any more to write to it, and kills the script, which may be in a loop. Standard output
 * is kept for Deno's list of the permissions that were asked for; what the script writes goes to standard error.
 */
const shell = `
read -r key
exec 3>&1 4<&0 5<<end
$key
end
trap '' XFSZ; ulimit -f 0; ulimit -c 0
{ read -r _ <&4; kill -9 $$; } >/dev/null 2>&1 3>&- 5<&- &
exec "$@" <&5 1>&2 4<&- 5<&-
`;

/** What a process writes beyond that is not read, so that it cannot fill the memory of this one. */
const longestLine = 1 << 20, mostLines = 100, longestPrinted = 1000;

const flagsOf = (grants: Grants): ReadonlyArray<string> =>
  Object.entries(grants).map(([name, values]) => `--allow-${name}=${values.join(",")}`);

const isGranted = (grants: Grants, permission: string, value: string | null): boolean => {
  const values = grants[permission as keyof Grants] ?? [];
  if (value === null) return false;
  if (permission !== "read") return values.includes(value);
  const path = resolve(value);
  return values.some((allowed) => path === allowed || path.startsWith(`${allowed}/`));
};

const asking = (permission: string, value: string | null): string =>
  `${permission} access${value === null ? "" : ` to "${value.slice(0, longestPrinted)}"`}`;

/** What a line of Deno's list says was asked for, where that was not granted. */
const askedIn = (line: string, grants: Grants): string | undefined => {
  // The longest have lost their end, and are no JSON any more.
  const { permission, value } = line.length < longestLine
    ? JSON.parse(line)
    : { permission: /"permission":"(\w+)"/.exec(line)![1], value: line.split('"value":"')[1] };
  return isGranted(grants, permission, value) ? undefined : asking(permission, value);
};

/** What an error of permissions in a line says was asked for: Deno does not list programs that were to be run. */
const askedBy = (line: string): string | undefined => {
  const found = /Requires (\w+) access(?: to \\*"(.*?)\\*")?, run again/.exec(line);
  return found === null ? undefined : asking(found[1]!, found[2] ?? null);
};

/** The most memory that a process had in use so far, in MiB; 0 where the system does not tell. */
const peakOf = (pid: number): number => {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) / 1024;
  } catch {
    return 0; // it has just ended; or not Linux, or without the permission to look
  }
};

const start = (script: URL, args: ReadonlyArray<string>, grants: Grants, memory: number) => {
  // The process inherits what it is not allowed to find out.
  prepareDriver();
  // Without this folder the drivers' loader prints an error on hosts that have no screen.
  const XDG_RUNTIME_DIR = Deno.env.get("XDG_RUNTIME_DIR") ?? "/tmp";
  return new Deno.Command("sh", {
    args: [
      ...["-c", shell, "sh", Deno.execPath(), "run", "--no-prompt", "--cached-only", "--no-remote"],
      `--config=${fromFileUrl(new URL("../deno.json", import.meta.url))}`,
      `--v8-flags=--max-old-space-size=${memory}`,
      ...flagsOf(grants),
      fromFileUrl(script),
      ...args,
    ],
    env: { DENO_AUDIT_PERMISSIONS: "/dev/fd/3", NO_COLOR: "1", XDG_RUNTIME_DIR },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
    // A group of its own, which is killed as one.
    detached: true,
  }).spawn();
};

/**
 * Runs the script until it says something: one line that begins with the key that it reads from standard input. Gives how
 * that ended, and the first lines of what it printed besides. Nothing of it is left then. Rejects where no process can be
 * started.
 */
export const runConfined = Effect.fn("runConfined")(function* (
  script: URL,
  args: ReadonlyArray<string>,
  grants: Grants,
  { seconds, memory }: Limits,
) {
  const key = crypto.randomUUID();
  const printed: Array<string> = [];
  const over = Promise.withResolvers<Ending>();
  let asked: Ending | undefined;
  const ask = (what: string | undefined) => {
    if (what !== undefined) over.resolve(asked ??= { kind: "asked", what });
  };
  const ending = yield* Effect.scoped(Effect.gen(function* () {
    const process = yield* Effect.acquireRelease(
      Effect.try({
        try: () => {
          const child = start(script, args, grants, memory);
          const reading = [
            eachLine(child.stdout, (line) => ask(askedIn(line, grants)), longestLine),
            eachLine(child.stderr, (line) => {
              ask(askedBy(line));
              if (line.startsWith(key)) {
                over.resolve({ kind: "said", text: line.slice(key.length) });
              } else if (line !== "" && printed.length < mostLines) {
                printed.push(line.slice(0, longestPrinted));
              }
            }, longestLine),
          ];
          const ended = Promise.all([child.status, ...reading]).then(([{ code, signal }]) =>
            over.resolve(
              printed.some((line) => /^# Fatal .*out of memory/.test(line))
                ? { kind: "large" }
                : { kind: "ended", how: signal ?? `code ${code}` },
            )
          );
          const input = child.stdin.getWriter();
          input.write(new TextEncoder().encode(`${key}\n`)).catch(() => {}); // it has ended already
          return { pid: child.pid, input, ended };
        },
        catch: (cause) => cause instanceof Error ? cause.message : String(cause),
      }),
      ({ pid, input, ended }) =>
        Effect.promise(async () => {
          // Who waits for the end of the input is in the group yet, so that the number is no other group's.
          try {
            Deno.kill(-pid, "SIGKILL");
          } catch {
            // Somebody else has killed the group.
          }
          await ended;
          await input.close().catch(() => {});
        }),
    );
    return yield* Effect.raceAllFirst([
      Effect.promise(() => over.promise),
      Effect.delay(Effect.succeed<Ending>({ kind: "late" }), `${seconds} seconds`),
      Effect.sync(() => peakOf(process.pid) > memory).pipe(
        Effect.repeat({ schedule: Schedule.spaced("20 millis"), until: (large) => large }),
        Effect.as<Ending>({ kind: "large" }),
      ),
    ]);
  }));
  // What it asked for may be heard of after its end.
  return { ending: asked ?? ending, printed };
});
