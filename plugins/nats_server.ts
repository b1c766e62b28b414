/**
 * A NATS server of our own, for a run or a test on this machine: `nats-server` on a free loopback port.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
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
  /** The path of a configuration file; its address and port are not used. */
  readonly config?: string;
}

/** How to reach a server that runs. */
export interface NatsServer {
  readonly url: string;
  readonly pid: number;
}

const deadline = "10 seconds";

const unavailable = (found: string) =>
  new ServerUnavailable({
    url: "nats://127.0.0.1",
    needed: "nats-server to start (`deno task setup` installs it)",
    found,
  });

/** A process with its log: what it said until it was ready, and a reader that keeps its pipe from filling up. */
class Server {
  readonly #child: Deno.ChildProcess;
  readonly #lines: ReadableStreamDefaultReader<string>;
  #log = "";
  #drained: Promise<void> | undefined;

  constructor({ program = "nats-server", port = -1, config }: NatsServerOptions) {
    this.#child = new Deno.Command(program, {
      // The server picks the port and holds it, so no other process can take it in between.
      args: [
        "-a",
        "127.0.0.1",
        "-p",
        String(port),
        ...(config === undefined ? [] : ["-c", config]),
      ],
      env: { PATH: `${Deno.env.get("PATH") ?? ""}:/usr/sbin:/usr/local/sbin` },
      stdin: "null",
      stdout: "null",
      stderr: "piped",
      // Away from the terminal: Ctrl-C must not end it before its clients have said goodbye.
      detached: true,
    }).spawn();
    this.#lines = this.#child.stderr.pipeThrough(new TextDecoderStream()).getReader();
  }

  get pid(): number {
    return this.#child.pid;
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
    this.#signal("SIGTERM");
    // One that was stopped or hangs does not hear SIGTERM.
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
      this.#child.kill(signal);
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
    return { url: `nats://127.0.0.1:${port}`, pid: server.pid };
  },
);
