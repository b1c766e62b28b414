/**
 * The bench's side of a contender: starts its process, asks it and ends it. The contender's side is `contender.ts`.
 *
 * @module
 */
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { Data, Effect, type Scope } from "effect";
import { type Answers, mark, type Reply, type Request } from "./contender.ts";

/** A contender does not install or run here, or stopped to. */
export class Absent extends Data.TaggedError("Absent")<{
  readonly reason: string;
  /** That is a fault, and no mere absence. */
  readonly failed?: boolean;
}> {}

/** A contender's process. */
export interface Running {
  readonly pid: number;
  readonly ask: <R extends Request>(request: R) => Effect.Effect<Answers[R["op"]], Absent>;
}

/** The slowest peers take a minute for the largest shapes. */
const patience = "5 minutes";

/** One sentence of what a process said last. */
const lastWords = (lines: ReadonlyArray<string>): string => {
  const plain = lines.map((line) => line.trim());
  const telling = plain.filter((line) => line !== "" && !/^at |^\d+: |^Stack backtrace/.test(line));
  return telling.findLast((line) => /error/i.test(line)) ?? telling.at(-1) ?? "it said nothing";
};

/** Starts a contender, in this process's environment; the scope's end ends it. */
export const start: (
  command: ReadonlyArray<string>,
) => Effect.Effect<Running, Absent, Scope.Scope> = Effect.fnUntraced(function* (command) {
  const [program, ...args] = command;
  const { child, requests } = yield* Effect.acquireRelease(
    Effect.try({
      try: () => {
        const child = new Deno.Command(program!, {
          args,
          // Without the folder, the drivers' loader prints an error on hosts that have no screen.
          env: { NO_COLOR: "1", XDG_RUNTIME_DIR: Deno.env.get("XDG_RUNTIME_DIR") ?? "/tmp" },
          stdin: "piped",
          stdout: "piped",
          stderr: "piped",
        }).spawn();
        return { child, requests: child.stdin.getWriter() };
      },
      catch: (cause) => new Absent({ reason: `${program} does not start: ${cause}` }),
    }),
    ({ child, requests }) =>
      Effect.promise(async () => {
        const closed = requests.close().catch(() => {}); // as where the process has ended
        try {
          child.kill("SIGKILL");
        } catch {
          // It has ended by itself.
        }
        await closed;
        await child.status;
      }),
  );
  const words: Array<string> = [];
  let waiting: ((reply: Reply) => void) | undefined;
  let gone: Reply | undefined;
  const linesOf = (stream: ReadableStream<Uint8Array>, line: (text: string) => void) =>
    new Promise<void>((resolve) => {
      createInterface({ input: Readable.fromWeb(stream) }).on("line", line).on("close", resolve);
    });
  const said = linesOf(child.stderr, (line) => void words.push(line));
  const answered = linesOf(child.stdout, (line) => {
    if (line.startsWith(mark)) waiting?.(JSON.parse(line.slice(mark.length)));
    else words.push(line);
  });
  Promise.all([said, answered, child.status]).then(([, , { code }]) => {
    gone = { refusal: `its process ended with exit code ${code}: ${lastWords(words)}` };
    waiting?.(gone);
  });

  const ask = <R extends Request>(request: R): Effect.Effect<Answers[R["op"]], Absent> =>
    Effect.callback<Answers[R["op"]], Absent>((resume) => {
      waiting = (reply) => {
        waiting = undefined;
        resume(
          "answer" in reply
            ? Effect.succeed(reply.answer as Answers[R["op"]])
            : Effect.fail(new Absent({ reason: reply.refusal })),
        );
      };
      if (gone !== undefined) return waiting(gone);
      requests.write(new TextEncoder().encode(`${JSON.stringify(request)}\n`)).catch(() => {
        // Its end is told above.
      });
    }).pipe(
      Effect.timeoutOrElse({
        duration: patience,
        orElse: () => Effect.fail(new Absent({ reason: `no answer within ${patience}` })),
      }),
    );
  return { pid: child.pid, ask };
});
