/**
 * The `annulus` command as a person runs it: a process of its own, of which nothing is left when the test ends.
 *
 * @module
 */
import { heapFlag } from "../../cli/children.ts";
import { fromFileUrl } from "../../cli/paths.ts";

const root = fromFileUrl(new URL("../..", import.meta.url));
/** Children inherit the environment, so that this tells them from all others, whoever their parent is by now. */
const familyVariable = "ANNULUS_TEST_FAMILY";
/** Long enough for a machine that is busy with other tests; only a hang takes as long. */
const patienceMilliseconds = 60_000;

/** How a process ended, and all that it said. */
export interface Finished {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** How to start the command. */
export interface AnnulusOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** Keeps standard input open until `closeStdin`. */
  readonly stdin?: boolean;
  /** Milliseconds for which it is waited for. */
  readonly patience?: number;
  /** Hears every line of either output when it comes. */
  readonly hear?: (line: string) => void;
}

/** One output stream of a process, by lines. */
class Lines {
  text = "";
  readonly ended: Promise<void>;
  #ended = false;
  readonly #waiting = new Set<() => void>();
  readonly #hear: (line: string) => void;

  constructor(stream: ReadableStream<Uint8Array<ArrayBuffer>>, hear: (line: string) => void) {
    this.#hear = hear;
    this.ended = this.#read(stream);
  }

  /** The `nth` whole line that matches, as soon as there is one; undefined if the stream ends without it. */
  async find(pattern: RegExp, nth: number): Promise<string | undefined> {
    for (;;) {
      const whole = this.text.split("\n").slice(0, -1);
      const line = whole.filter((line) => pattern.test(line))[nth - 1];
      if (line !== undefined || this.#ended) return line;
      await new Promise<void>((resume) => this.#waiting.add(resume));
    }
  }

  async #read(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<void> {
    for await (const text of stream.pipeThrough(new TextDecoderStream())) {
      const before = this.text.lastIndexOf("\n") + 1;
      this.text += text;
      for (const line of this.text.slice(before).split("\n").slice(0, -1)) this.#hear(line);
      this.#wake();
    }
    this.#ended = true;
    this.#wake();
  }

  #wake(): void {
    for (const resume of this.#waiting) resume();
    this.#waiting.clear();
  }
}

/** Whether a process has ended. */
export const isGone = (pid: number): boolean => {
  try {
    // A zombie is gone; only its parent has not asked yet.
    return /^State:\s+[ZX]/m.test(Deno.readTextFileSync(`/proc/${pid}/status`));
  } catch {
    return true;
  }
};

/** Looks again and again until there is what `look` wants: the ends of processes that are not ours are no events. */
export const eventually = async (
  what: string,
  look: () => boolean,
  milliseconds = patienceMilliseconds,
): Promise<void> => {
  const began = performance.now();
  while (!look()) {
    if (performance.now() - began > milliseconds) {
      throw new Error(`waited ${milliseconds} ms for ${what}`);
    }
    await new Promise((resume) => setTimeout(resume, 20));
  }
};

/** A process that runs the command. Dispose of it to end it with all of its descendants. */
export class Annulus implements AsyncDisposable {
  readonly #family = crypto.randomUUID();
  readonly #child: Deno.ChildProcess;
  readonly #stdout: Lines;
  readonly #stderr: Lines;
  readonly #what: string;
  readonly #stdin: boolean;
  readonly #patience: number;

  constructor(
    args: ReadonlyArray<string>,
    { env = {}, stdin = false, patience = patienceMilliseconds, hear = () => {} }: AnnulusOptions =
      {},
  ) {
    this.#stdin = stdin;
    this.#patience = patience;
    this.#what = `annulus ${args.join(" ")}`;
    this.#child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", heapFlag, `--config=${root}/deno.json`, `${root}/cli/main.ts`, ...args],
      env: { ...env, [familyVariable]: this.#family },
      stdin: stdin ? "piped" : "null",
      stdout: "piped",
      stderr: "piped",
      // A process group of its own, as a shell gives it one.
      detached: true,
    }).spawn();
    this.#stdout = new Lines(this.#child.stdout, hear);
    this.#stderr = new Lines(this.#child.stderr, hear);
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Its living descendants with their command lines, by process id. */
  descendants(): ReadonlyMap<number, string> {
    const found = new Map<number, string>();
    for (const { name } of Deno.readDirSync("/proc")) {
      if (!/^\d+$/.test(name) || Number(name) === this.pid) continue;
      try {
        const environment = Deno.readTextFileSync(`/proc/${name}/environ`);
        if (!environment.split("\0").includes(`${familyVariable}=${this.#family}`)) continue;
        const command = Deno.readTextFileSync(`/proc/${name}/cmdline`).replaceAll("\0", " ");
        if (!isGone(Number(name))) found.set(Number(name), command);
      } catch {
        // It ended meanwhile, or is none of our business.
      }
    }
    return found;
  }

  /** What Ctrl-C does: interrupts the foreground process group. */
  interrupt(): void {
    Deno.kill(-this.pid, "SIGINT");
  }

  kill(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  /** Writes to standard input. */
  async write(text: string): Promise<void> {
    const writer = this.#child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(text));
    writer.releaseLock();
  }

  closeStdin(): Promise<void> {
    return this.#child.stdin.close();
  }

  /** The first line on standard output that matches, or the `nth`. */
  line(pattern: RegExp, nth = 1): Promise<string> {
    return this.#lineOf(this.#stdout, pattern, nth);
  }

  /** The first line on standard error that matches. */
  errorLine(pattern: RegExp): Promise<string> {
    return this.#lineOf(this.#stderr, pattern, 1);
  }

  /** Waits for its end. */
  finished(): Promise<Finished> {
    return this.#patiently("its end", this.#end());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Again until there is none, as a process may have been about to start another.
    for (;;) {
      const left = [this.pid, ...this.descendants().keys()].filter((pid) => !isGone(pid));
      if (left.length === 0) break;
      for (const pid of left) {
        try {
          Deno.kill(pid, "SIGKILL");
        } catch {
          // It ended by itself.
        }
      }
      await eventually("killed processes to end", () => left.every(isGone));
    }
    await this.#end();
    if (this.#stdin) await this.#child.stdin.close().catch(() => {});
  }

  async #end(): Promise<Finished> {
    const [{ code }] = await Promise.all([
      this.#child.status,
      this.#stdout.ended,
      this.#stderr.ended,
    ]);
    return { code, stdout: this.#stdout.text, stderr: this.#stderr.text };
  }

  async #lineOf(lines: Lines, pattern: RegExp, nth: number): Promise<string> {
    const line = await this.#patiently(`a line like ${pattern}`, lines.find(pattern, nth));
    if (line === undefined) {
      throw new Error(`${this.#what}: no line like ${pattern}\n${this.#said()}`);
    }
    return line;
  }

  async #patiently<A>(what: string, waiting: Promise<A>): Promise<A> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new Error(`${this.#what}: waited in vain for ${what}\n${this.#said()}`)),
        this.#patience,
      );
    });
    try {
      return await Promise.race([waiting, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  #said(): string {
    return `stdout: ${this.#stdout.text}\nstderr: ${this.#stderr.text}`;
  }
}

/** Runs the command to its end, and makes sure that it left no process behind. */
export const annulus = async (
  args: ReadonlyArray<string>,
  options?: AnnulusOptions,
): Promise<Finished> => {
  await using process = new Annulus(args, options);
  const finished = await process.finished();
  const left = [...process.descendants()];
  if (left.length > 0) throw new Error(`annulus ${args.join(" ")} left ${left.join("; ")} behind`);
  return finished;
};

/** Runs `work` over all items, two at once, and gives the results in their order. */
export const twoAtOnce = async <A, B>(
  items: ReadonlyArray<A>,
  work: (item: A) => Promise<B>,
): Promise<ReadonlyArray<B>> => {
  const results: Array<B> = [];
  let next = 0;
  const worker = async () => {
    while (next < items.length) {
      const index = next++;
      results[index] = await work(items[index]!);
    }
  };
  // Both end before either's failure is told, so that no process outlives the test.
  const ends = await Promise.allSettled([worker(), worker()]);
  for (const end of ends) if (end.status === "rejected") throw end.reason;
  return results;
};

/** A folder that is gone with the test. */
export const scratch = async (): Promise<AsyncDisposable & { readonly path: string }> => {
  const path = await Deno.makeTempDir({ prefix: "annulus-test-" });
  return {
    path,
    [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }),
  };
};
