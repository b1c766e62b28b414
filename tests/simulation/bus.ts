/**
 * A messaging system in virtual time, for everything that speaks over lines: it loses, doubles and delays messages, goes
 * away and comes back, and its members can die or be cut off for a while. Everything follows from the seed.
 *
 * @module
 */
import { Clock, Effect, FiberSet } from "effect";
import { crc32 } from "node:zlib";
import type { Line, Lines, LineWatcher } from "../../plugins/nats_links/line.ts";
import { uniform } from "../support/random.ts";

/** How likely a fault is for each message, from 0 to 1, and how late messages are, in milliseconds. */
export interface Weather {
  readonly loss: number;
  readonly duplicate: number;
  readonly delay: readonly [least: number, most: number];
}

/** No faults. */
export const fair: Weather = { loss: 0, duplicate: 0, delay: [1, 2] };

/** Whether a subscription is for a subject; its last word may be `*`. */
const matches = (pattern: string, subject: string) =>
  pattern.replace(/[^.]+$/, (last) => last === "*" ? subject.split(".").at(-1)! : last) === subject;

interface Subscription {
  readonly member: Member;
  readonly subject: string;
  readonly hear: Parameters<Line["subscribe"]>[1];
}

/** A process on the bus. */
export class Member implements Lines {
  readonly watchers = new Set<LineWatcher>();
  dead = false;
  /** It has lost the server, or not found it again: nobody listens in its place. */
  away = false;
  /** What it says and hears while it is cut off comes afterwards. */
  cut = false;
  readonly late: Array<() => void> = [];
  readonly control: Line;
  readonly bulk: Line;

  constructor(readonly bus: Bus) {
    // Both lines share what happens to the member; messages of one do not wait for those of the other.
    this.control = this.bulk = {
      maxPayload: 1 << 16,
      lost: Effect.never,
      publish: (...message) => this.whenHeard(() => bus.publish(...message)),
      subscribe: (subject, hear) => {
        const subscription = { member: this, subject, hear };
        bus.subscriptions.add(subscription);
        return () => void bus.subscriptions.delete(subscription);
      },
      watch: (watcher) => {
        this.watchers.add(watcher);
        return () => void this.watchers.delete(watcher);
      },
      flush: () => Promise.resolve(),
    };
  }

  whenHeard(act: () => void): void {
    if (this.dead || this.away) return;
    if (this.cut) this.late.push(act);
    else act();
  }

  join(): void {
    this.cut = false;
    for (const act of this.late.splice(0)) this.whenHeard(act);
  }
}

/** Who hears what, and when. */
export class Bus {
  weather: Weather = fair;
  up = true;
  /** Of everything that arrived, when and where. */
  hash = 0;
  readonly members: Array<Member> = [];
  readonly subscriptions = new Set<Subscription>();
  readonly #random: () => number;

  constructor(
    seed: number,
    readonly fork: (effect: Effect.Effect<void>) => unknown,
    readonly now: () => number,
  ) {
    this.#random = uniform(seed);
  }

  between(least: number, most: number): number {
    return least + (most - least) * this.#random();
  }
  whole(least: number, most: number): number {
    return Math.floor(this.between(least, most + 1));
  }

  member(): Member {
    const member = new Member(this);
    this.members.push(member);
    return member;
  }

  publish(subject: string, bytes: Uint8Array, reply?: string): void {
    if (!this.up || this.#random() < this.weather.loss) return;
    const listens = ({ member, subject: theirs }: Subscription) =>
      matches(theirs, subject) && !member.dead && !member.away;
    if (reply !== undefined && ![...this.subscriptions].some(listens)) {
      return this.publish(reply, new Uint8Array(0));
    }
    const copy = new Uint8Array(bytes);
    const times = this.#random() < this.weather.duplicate ? 2 : 1;
    for (const { member, subject: theirs, hear } of this.subscriptions) {
      if (!matches(theirs, subject)) continue;
      for (let i = 0; i < times; i++) {
        this.after(this.between(...this.weather.delay), () => {
          if (!this.up) return;
          member.whenHeard(() => {
            const at = this.members.indexOf(member);
            this.hash = crc32(`${this.now().toFixed(3)} ${at}`, this.hash);
            hear(copy, reply, subject);
          });
        });
      }
    }
  }

  after(milliseconds: number, act: () => void): void {
    this.fork(Effect.delay(Effect.sync(act), milliseconds));
  }

  stop(): void {
    this.up = false;
  }
  /** Members find it again after as many milliseconds as `late` says. */
  start(late: (member: Member) => number = () => 0): void {
    this.up = true;
    for (const member of this.members) {
      const milliseconds = late(member);
      member.away = milliseconds > 0;
      const back = () => {
        member.away = false;
        if (!member.dead) { for (const { back } of [...member.watchers]) back?.(); }
      };
      if (member.away) this.after(milliseconds, back);
      else back();
    }
  }
  /** The server answers everybody whom it reaches. */
  pulse(): void {
    if (!this.up) return;
    for (const { watchers, dead, away, cut } of this.members) {
      if (!dead && !away && !cut) { for (const { pulse } of [...watchers]) pulse?.(); }
    }
  }
}

/** A bus whose server answers every half second. */
export const makeBus = (seed: number) =>
  Effect.gen(function* () {
    const clock = yield* Clock.Clock;
    const fork = yield* FiberSet.makeRuntime<never>();
    const bus = new Bus(seed, fork, () => clock.currentTimeMillisUnsafe());
    yield* Effect.forkScoped(
      Effect.forever(Effect.delay(Effect.sync(() => bus.pulse()), "500 millis")),
    );
    return bus;
  });
