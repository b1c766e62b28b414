/**
 * The cluster on which things go wrong: a server that can be killed and frozen, nodes that are started again when they
 * have been killed, and a way of its own to the server for each node and for the driver.
 *
 * @module
 */
import { Effect, Exit, Scope } from "effect";
import { startNatsServer } from "../../plugins/nats_server.ts";
import { Annulus, isGone } from "../support/cli.ts";
import { Way } from "./way.ts";

/** A port that is free now. */
const freePort = (): number => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
};

/** A server at one address, and what it says of itself. */
export class Server {
  #scope: Scope.Closeable | undefined;
  readonly #config: string;
  readonly #monitor = freePort();
  pid = 0;
  port = -1;

  /** @param folder Where its configuration goes. */
  constructor(folder: string) {
    this.#config = `${folder}/server.conf`;
    Deno.writeTextFileSync(this.#config, `http: "127.0.0.1:${this.#monitor}"\n`);
  }

  async start(): Promise<void> {
    this.#scope = Effect.runSync(Scope.make());
    const options = { port: this.port, config: this.#config };
    const server = startNatsServer(options).pipe(Scope.provide(this.#scope));
    const { pid, url } = await Effect.runPromise(server);
    this.pid = pid;
    this.port = Number(url.split(":").at(-1));
  }

  async stop(): Promise<void> {
    if (this.#scope !== undefined) await Effect.runPromise(Scope.close(this.#scope, Exit.void));
  }

  /** How many subjects are listened to, over each connection by its port, and in all. */
  async subscriptions(): Promise<{
    readonly byPort: ReadonlyMap<number, number>;
    readonly all: number;
  }> {
    const ask = async (what: string) =>
      await (await fetch(`http://127.0.0.1:${this.#monitor}/${what}`)).json();
    const { connections }: {
      readonly connections: ReadonlyArray<
        { readonly port: number; readonly subscriptions: number }
      >;
    } = await ask("connz?limit=1024");
    const byPort = new Map(connections.map(({ port, subscriptions }) => [port, subscriptions]));
    return { byPort, all: (await ask("subsz")).num_subscriptions };
  }
}

/** One life of a node: a process from its start to its end. */
export interface Life {
  readonly process: Annulus;
  /** Ranks that it took, one for each of a layer. */
  ranks: number;
}

/** A node that comes back. */
export class Node {
  readonly way: Way;
  readonly #start: (hear: (line: string) => void) => Annulus;
  readonly #took: (rank: number) => void;
  life!: Life;

  /** @param took Is told of every rank that it begins with or goes on with. */
  constructor(
    way: Way,
    start: (hear: (line: string) => void) => Annulus,
    took: (rank: number) => void,
  ) {
    this.way = way;
    this.#start = start;
    this.#took = took;
  }

  get pid(): number {
    return this.life.process.pid;
  }

  get gone(): boolean {
    return isGone(this.pid);
  }

  async start(): Promise<void> {
    const known = new Set<string>();
    const process = this.#start((line) => {
      const said = line.startsWith("{") ? JSON.parse(line) : {};
      if (said.event !== "working") return;
      // It says so again in every epoch.
      known.add(`${said.run} ${said.rank}`);
      life.ranks = known.size;
      this.#took(said.rank);
    });
    const life: Life = { process, ranks: 0 };
    this.life = life;
    await process.line(/"event":"waiting"/);
  }

  async end(): Promise<void> {
    await this.life?.process[Symbol.asyncDispose]();
  }
}
