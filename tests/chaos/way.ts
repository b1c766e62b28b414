/**
 * A member's own way to the NATS server: a TCP proxy on loopback that can stand still, break, be slow, and flip bits.
 *
 * @module
 */
import { connect, createServer, type Server, type Socket } from "node:net";
import { once } from "node:events";
import { Bits, type Part } from "./bits.ts";

/** Reads that may wait on a slow way before no more is read. */
const mostWaiting = 256;

/** One way, and whoever comes over it. */
export class Way implements AsyncDisposable {
  readonly #server: Server;
  readonly #random: () => number;
  readonly #pairs = new Set<readonly [client: Socket, server: Socket]>();
  readonly #clients = new Set<Socket>();
  #open: PromiseWithResolvers<void> | undefined;
  #flipNext: Part | undefined;
  /** The share of messages in whose payload a bit flips, from 0 to 1. */
  damage = 0;
  /** Milliseconds that everything takes, each way. */
  delay = 0;
  /** Bits that have flipped. */
  readonly flipped: Record<Part, number> = { payload: 0, line: 0 };

  private constructor(server: Server, random: () => number) {
    this.#server = server;
    this.#random = random;
  }

  /** Opens a way to a port on loopback. */
  static async open(port: number, random: () => number): Promise<Way> {
    const server = createServer({ allowHalfOpen: true });
    const way = new Way(server, random);
    server.on("connection", (client) => void way.#connected(client, port));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return way;
  }

  get url(): string {
    return `nats://127.0.0.1:${(this.#server.address() as { port: number }).port}`;
  }

  /** The ports from which its connections reach the server. */
  get ports(): ReadonlyArray<number> {
    return [...this.#pairs].flatMap(([, { localPort }]) => localPort ?? []);
  }

  /** Nothing passes any more, and nobody hears of it. */
  cut(): void {
    this.#open ??= Promise.withResolvers();
  }

  /** What was held back goes on, and so does everything else. */
  mend(): void {
    this.#open?.resolve();
    this.#open = undefined;
  }

  /** Resets all connections. */
  reset(): void {
    for (const [client, server] of this.#pairs) {
      client.resetAndDestroy();
      server.resetAndDestroy();
    }
  }

  /** Flips one bit in this part of the next message that passes in either direction. */
  flipNext(part: Part): void {
    this.#flipNext = part;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.mend();
    const closed = once(this.#server, "close");
    this.#server.close();
    for (const socket of [...this.#clients, ...[...this.#pairs].flat()]) socket.destroy();
    await closed;
  }

  async #connected(client: Socket, port: number): Promise<void> {
    this.#clients.add(client);
    client.on("error", () => client.destroy());
    client.on("close", () => this.#clients.delete(client));
    await this.#open?.promise;
    if (client.destroyed) return;
    const server = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    const pair = [client, server] as const;
    server.on("error", () => this.#pairs.has(pair) || client.destroy());
    server.on("connect", () => {
      this.#pairs.add(pair);
      server.on("close", () => this.#pairs.delete(pair));
      void this.#carry(client, server);
      void this.#carry(server, client);
    });
  }

  async #carry(from: Socket, to: Socket): Promise<void> {
    const bits = new Bits(
      () => this.#flipNext ?? (this.#random() < this.damage ? "payload" : undefined),
      (part) => {
        this.#flipNext = undefined;
        this.flipped[part]++;
      },
      this.#random,
    );
    let last = Promise.resolve();
    let waiting = 0;
    const later = (due: number, act: () => Promise<unknown> | void) => {
      waiting++;
      last = last.then(async () => {
        const early = due - performance.now();
        if (early > 0) await new Promise((resume) => setTimeout(resume, early));
        // It may be cut again while it waits.
        while (this.#open !== undefined) await this.#open.promise;
        waiting--;
        if (!to.destroyed) await act();
      });
    };
    try {
      for await (const bytes of from as AsyncIterable<Uint8Array>) {
        bits.pass(bytes);
        later(performance.now() + this.delay, () => {
          if (to.write(bytes)) return;
          return new Promise<void>((resume) => {
            const go = () => {
              to.off("drain", go).off("close", go);
              resume();
            };
            to.on("drain", go).on("close", go);
          });
        });
        if (waiting >= mostWaiting) await last;
      }
      later(performance.now() + this.delay, () => void to.end());
    } catch {
      later(performance.now() + this.delay, () => void to.destroy());
    }
  }
}
