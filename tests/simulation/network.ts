/**
 * A network in virtual time: events in order, and messages that are lost, doubled, late, damaged, overtaken or replayed
 * at random. Everything follows from the seed.
 *
 * @module
 */
import { crc32 } from "node:zlib";
import { uniform } from "../support/random.ts";

/** How likely a fault is for each message, from 0 to 1, and how late messages are, in milliseconds. */
export interface Weather {
  readonly loss: number;
  readonly duplicate: number;
  readonly corrupt: number;
  /** A message of any time ago comes again. */
  readonly replay: number;
  readonly delay: readonly [least: number, most: number];
}

/** No faults. */
export const fair: Weather = { loss: 0, duplicate: 0, corrupt: 0, replay: 0, delay: [1, 2] };

interface Event {
  readonly at: number;
  readonly order: number;
  readonly run: () => void;
}

/** Events in virtual time. */
export class Simulation {
  readonly random: () => number;
  #now = 0;
  #order = 0;
  #log = 0;
  readonly #events: Array<Event> = [];

  constructor(readonly seed: number) {
    this.random = uniform(seed);
  }

  /** Milliseconds. */
  get now(): number {
    return this.#now;
  }
  /** Of everything that was noted so far: two runs of one seed have the same. */
  get hash(): number {
    return this.#log;
  }

  between(least: number, most: number): number {
    return least + (most - least) * this.random();
  }
  whole(least: number, most: number): number {
    return Math.floor(this.between(least, most + 1));
  }

  note(...words: ReadonlyArray<string | number>): void {
    this.#log = crc32(`${this.#now.toFixed(3)} ${words.join(" ")}`, this.#log);
  }

  after(milliseconds: number, run: () => void): void {
    const event = { at: this.#now + milliseconds, order: this.#order++, run };
    // A binary heap: the earliest event is the first.
    let i = this.#events.push(event) - 1;
    for (;;) {
      const parent = (i - 1) >> 1;
      if (i === 0 || !before(event, this.#events[parent]!)) break;
      this.#events[i] = this.#events[parent]!;
      i = parent;
    }
    this.#events[i] = event;
  }

  every(milliseconds: number, run: () => void): void {
    const again = () => {
      run();
      this.after(milliseconds, again);
    };
    this.after(milliseconds, again);
  }

  /** Runs events until `done`, or until virtual time is up: then false. */
  runUntil(done: () => boolean, limit: number): boolean {
    while (!done()) {
      const [next] = this.#events;
      if (next === undefined || next.at > limit) return false;
      this.#removeFirst();
      this.#now = next.at;
      next.run();
    }
    return true;
  }

  #removeFirst(): void {
    const last = this.#events.pop()!;
    if (this.#events.length === 0) return;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      const right = this.#events[child + 1];
      if (right !== undefined && before(right, this.#events[child]!)) child++;
      if (child >= this.#events.length || !before(this.#events[child]!, last)) break;
      this.#events[i] = this.#events[child]!;
      i = child;
    }
    this.#events[i] = last;
  }
}

const before = (a: Event, b: Event): boolean => a.at < b.at || (a.at === b.at && a.order < b.order);

/** Messages replayed are taken from so many. */
const remembered = 200;

/** Carries messages, or loses them. */
export class Network {
  weather: Weather = fair;
  /** A server that is away loses what is on its way, and everything that is published meanwhile. */
  #server = 0;
  #up = true;
  readonly #past: Array<() => void> = [];

  constructor(readonly simulation: Simulation) {}

  get up(): boolean {
    return this.#up;
  }
  stop(): void {
    this.#up = false;
    this.#server++;
  }
  start(): void {
    this.#up = true;
  }

  send(bytes: Uint8Array, deliver: (bytes: Uint8Array) => void): void {
    const { simulation, weather } = this;
    const server = this.#server;
    if (!this.#up || simulation.random() < weather.loss) return;
    const copy = new Uint8Array(bytes);
    if (simulation.random() < weather.corrupt) {
      const bit = simulation.whole(0, 8 * copy.length - 1);
      copy[bit >> 3]! ^= 1 << (bit & 7);
    }
    const arrive = () => {
      if (server === this.#server) deliver(copy);
    };
    const times = simulation.random() < weather.duplicate ? 2 : 1;
    for (let i = 0; i < times; i++) simulation.after(simulation.between(...weather.delay), arrive);
    this.#past.push(() => deliver(copy));
    if (this.#past.length > remembered) this.#past.shift();
    if (simulation.random() < weather.replay) {
      const again = this.#past[simulation.whole(0, this.#past.length - 1)]!;
      simulation.after(simulation.between(...weather.delay), again);
    }
  }
}
