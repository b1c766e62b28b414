/**
 * A NATS server of our own, for a run or a test on this machine: `nats-server` on a free loopback port.
 *
 * @module
 */
import { basename, dirname } from "node:path";
import { Effect, Schedule, type Scope } from "effect";
import { ServerUnavailable } from "../runtime/errors.ts";

/** Which program to start, and how. */
export interface NatsServerOptions {
  /**
   * A path, or a name on PATH or in the folders where Debian puts daemons.
   * @default "nats-server"
   */
  readonly program?: string;
  /** A port; by default one that is free. */
  readonly port?: number;
  /** The path of a configuration file; its address and port are not used, and paths in it are relative to it. */
  readonly config?: string;
}

/** How to reach a server that runs. */
export interface NatsServer {
  readonly url: string;
  readonly pid: number;
  /** Returns when it has ended, for whatever reason. */
  readonly ended: Effect.Effect<void>;
}

const deadline = "10 seconds";

const unavailable = (found: string) =>
  new ServerUnavailable({
    url: "nats://127.0.0.1",
    needed: "nats-server to start (`deno task setup` installs it)",
    found,
  });

/** Ends the server when this process is gone, however it ended: its end of the pipe closes then. */
const guard = `exec 3<&0
"$@" </dev/null 3<&- & server=$!
(read line <&3; kill $server 2>/dev/null) & reader=$!
wait $server
kill $reader 2>/dev/null`;
const guarded = (program: string, args: ReadonlyArray<string>) =>
  Deno.build.os === "windows"
    ? { command: program, args: [...args] }
    : { command: "sh", args: ["-c", guard, "sh", program, ...args] };

/** A process with its log: what it said until it was ready, and a reader that keeps its pipe from filling up. */
class Server {
  readonly #child: Deno.ChildProcess;
  readonly #lines: ReadableStreamDefaultReader<string>;
  #log = "";
  #drained: Promise<void> | undefined;

  constructor({ program = "nats-server", port = -1, config }: NatsServerOptions) {
    // The server picks the port and holds it, so no other process can take it in between.
    const { command, args } = guarded(program, [
      ...["-a", "127.0.0.1", "-p", String(port)],
      ...(config === undefined ? [] : ["-c", basename(config)]),
    ]);
    this.#child = new Deno.Command(command, {
      args,
      ...(config === undefined ? {} : { cwd: dirname(config) }),
      env: { PATH: `${Deno.env.get("PATH") ?? ""}:/usr/sbin:/usr/local/sbin` },
      stdin: "piped",
      stdout: "null",
      stderr: "piped",
      // Away from the terminal: Ctrl-C must not end it before its clients have said goodbye.
      detached: true,
    }).spawn();
    this.#lines = this.#child.stderr.pipeThrough(new TextDecoderStream()).getReader();
  }

  /** Of the server itself, which says it in front of every line. */
  get pid(): number {
    return Number(/^\[(\d+)\]/m.exec(this.#log)?.[1] ?? this.#child.pid);
  }

  async ended(): Promise<void> {
    await this.#child.status;
  }

  /** The port, once clients may connect; throws with the log if the server ended instead. */
  async port(): Promise<number> {
    for (;;) {
      const port = /Listening for client connections on \S*:(\d+)/.exec(this.#log);
      if (port !== null && this.#log.includes("Server is ready")) {
        this.#drained = this.#drain();
        return Number(port[1]);
      }
      const { done, value } = await this.#lines.read();
      if (done) throw new Error(this.#log.trim().split("\n").at(-1) || "it ended without a word");
      this.#log += value;
    }
  }

  async stop(): Promise<void> {
    if (Deno.build.os === "windows") this.#signal("SIGTERM");
    await this.#child.stdin.close().catch(() => {});
    // One that was stopped or hangs does not hear that it is to end.
    const kill = setTimeout(() => this.#signal("SIGKILL"), 5000);
    await this.#child.status;
    clearTimeout(kill);
    await (this.#drained ?? this.#drain());
  }

  async #drain(): Promise<void> {
    while (!(await this.#lines.read()).done);
  }

  #signal(signal: Deno.Signal): void {
    try {
      Deno.kill(this.pid, signal);
    } catch {
      // It has ended already.
    }
  }
}

/** Starts a server and returns when it takes clients. It ends with the scope. */
export const startNatsServer = Effect.fn("startNatsServer")(
  function* (
    options: NatsServerOptions = {},
  ): Effect.fn.Return<NatsServer, ServerUnavailable, Scope.Scope> {
    const server = yield* Effect.acquireRelease(
      Effect.try({
        try: () => new Server(options),
        catch: (cause) => unavailable(cause instanceof Error ? cause.message : String(cause)),
      }),
      (server) => Effect.promise(() => server.stop()),
    );
    const port = yield* Effect.tryPromise({
      try: () => server.port(),
      catch: (cause) => unavailable(cause instanceof Error ? cause.message : String(cause)),
    }).pipe(
      Effect.timeoutOrElse({
        duration: deadline,
        orElse: () => Effect.fail(unavailable(`it was not ready within ${deadline}`)),
      }),
    );
    return {
      url: `nats://127.0.0.1:${port}`,
      pid: server.pid,
      ended: Effect.promise(() => server.ended()),
    };
  },
);

/** Starts a server, and again at the same address whenever it ends before the scope does. */
export const keepNatsServer = Effect.fn("keepNatsServer")(function* (
  options: NatsServerOptions = {},
) {
  const first = yield* startNatsServer(options);
  const port = Number(first.url.split(":").at(-1));
  const again = Effect.scoped(
    Effect.flatMap(startNatsServer({ ...options, port }), ({ ended }) => ended),
  );
  yield* first.ended.pipe(
    // Its port may be taken for a moment.
    Effect.andThen(Effect.forever(Effect.retry(again, Schedule.spaced("500 millis")))),
    Effect.forkScoped,
  );
  return first;
});
