/**
 * The two ends of a NATS link in virtual time, in bad weather and then in fair: what was sent comes out, once and in
 * order, while nobody holds more than was agreed, and nobody is blamed for the weather.
 *
 * @module
 */
import { Effect, Exit } from "effect";
import assert from "node:assert/strict";
import { Conversation } from "../../plugins/nats_links/conversation.ts";
import { chargeOf } from "../../plugins/nats_links/incoming.ts";
import { encodeMessage, type Message } from "../../plugins/nats_links/message.ts";
import { LinkClosed } from "../../runtime/errors.ts";
import { fair, Network, Simulation, type Weather } from "./network.ts";

/** What a seed came to. */
export interface Outcome {
  readonly hash: number;
  /** How often each thing happened that a campaign should have seen. */
  readonly seen: ReadonlyMap<string, number>;
}

const pulseEvery = 500, tickEvery = 10;
/** Bad weather ends after this; then everything has to arrive in time. */
const storm = 12_000, calm = 20_000;

/** One end with somebody who uses it. */
class Side {
  readonly conversation: Conversation;
  /** Frames of its own that it still has to send, and those that it has taken. */
  readonly outbox: Array<Uint8Array>;
  readonly taken: Array<Uint8Array> = [];
  takenBytes = 0;
  sentBytes = 0;
  sent = 0;
  frozen = false;
  /** Nobody uses it any more. */
  left = false;
  readonly #waiting: Array<Uint8Array> = [];

  constructor(
    readonly name: string,
    readonly network: Network,
    /** Who hears what is said to either slot. */
    listeners: readonly [Array<Side>, Array<Side>],
    slot: 0 | 1,
    epoch: number,
    readonly windowBytes: number,
    frames: ReadonlyArray<Uint8Array>,
    count: (what: string) => void,
  ) {
    const { simulation } = network;
    this.outbox = [...frames];
    this.conversation = new Conversation({ run: "run", self: slot, peer: 1 - slot, epoch }, {
      session: simulation.whole(1, 2 ** 32 - 1),
      windowBytes,
      maxBody: 1 << 16,
      publish: (_, bytes) =>
        network.send(bytes, (heard) => listeners[1 - slot]!.forEach((side) => side.hear(heard))),
      now: () => simulation.now,
      count,
    });
    listeners[slot].push(this);
  }

  hear(bytes: Uint8Array): void {
    if (this.frozen) this.#waiting.push(bytes);
    else this.conversation.hear(bytes);
  }

  thaw(): void {
    this.frozen = false;
    for (const bytes of this.#waiting.splice(0)) this.conversation.hear(bytes);
  }

  /** Sends while there is room. */
  push(): void {
    while (this.outbox.length > 0 && this.conversation.acquainted) {
      const offered = this.conversation.offer(this.outbox[0]!);
      if (offered === undefined) return;
      succeed(offered, `${this.name} sends`);
      this.sentBytes += chargeOf(this.outbox[0]!);
      this.sent++;
      this.outbox.shift();
    }
  }

  /** Takes a frame, if there is one. */
  pull(): void {
    const taken = this.conversation.take();
    if (taken === undefined) return;
    const frame = succeed(taken, `${this.name} receives`);
    this.taken.push(frame);
    this.takenBytes += chargeOf(frame);
  }
}

const succeed = <A>(effect: Effect.Effect<A, unknown>, what: string): A => {
  const exit = Effect.runSyncExit(effect);
  assert.ok(Exit.isSuccess(exit), `${what}: ${exit}`);
  return exit.value;
};

/** Lives through one seed; throws at the first promise that is broken. */
export const simulateLink = (seed: number): Outcome => {
  const simulation = new Simulation(seed);
  const network = new Network(simulation);
  const seen = new Map<string, number>();
  const count = (what: string) => {
    seen.set(what, (seen.get(what) ?? 0) + 1);
    simulation.note(what);
  };
  const odds = (most: number) => simulation.random() < 0.3 ? 0 : most * simulation.random();
  const least = simulation.between(0, 40);
  const bad: Weather = {
    loss: odds(0.2),
    duplicate: odds(0.2),
    corrupt: odds(0.1),
    replay: odds(0.1),
    delay: [least, least + simulation.between(0, 80)],
  };
  const largest = simulation.whole(1, 4000);
  const framesOf = (side: number) =>
    Array.from({ length: simulation.whole(0, 60) }, (_, i) => {
      const frame = new Uint8Array(simulation.whole(2, 2 + largest));
      frame[0] = side;
      frame[1] = i;
      return frame.fill(simulation.whole(0, 255), 2);
    });
  const windowBytes = simulation.whole(1024, 12_000);

  // The same two members had a link before, in an earlier epoch or closed since, of which messages may come back.
  const listeners: [Array<Side>, Array<Side>] = [[], []];
  let sides: readonly [Side, Side] | [] = [];
  const epochs = [simulation.whole(0, 1), 1];
  for (const [turn, epoch] of epochs.entries()) {
    const frames = [framesOf(2 * turn), framesOf(2 * turn + 1)] as const;
    for (const side of sides) {
      side.left = true;
      if (epochs[0] !== epoch) continue;
      side.conversation.close({ done: false, reason: "again" });
      listeners.forEach((those) => those.splice(0));
    }
    const [a, b] = [
      new Side("one", network, listeners, 0, epoch, windowBytes, frames[0], count),
      new Side("other", network, listeners, 1, epoch, windowBytes, frames[1], count),
    ];
    sides = [a, b];
    const end = simulation.now +
      (turn === 0 ? simulation.between(0, simulation.random() < 0.3 ? 150 : 3000) : storm);
    live(simulation, network, sides, bad, end, count);
    if (turn === 0) continue;
    const arrived = () =>
      sides.every((side, i) =>
        side.outbox.length === 0 && side.taken.length === frames[1 - i]!.length
      );
    network.weather = fair;
    assert.ok(simulation.runUntil(arrived, end + calm), `seed ${seed}: it stands still`);
    for (const [i, side] of sides.entries()) {
      for (const [j, frame] of side.taken.entries()) {
        assert.deepEqual(frame, frames[1 - i]![j], `seed ${seed}: frame ${j} to ${side.name}`);
      }
    }
    for (const side of sides) side.left = true;
    a.conversation.close({ done: true, reason: "all is said" });
    const heard = () => b.conversation.take() !== undefined;
    assert.ok(simulation.runUntil(heard, simulation.now + 5000), `seed ${seed}: no farewell`);
    const farewell = Effect.runSync(Effect.flip(b.conversation.take()!));
    assert.ok(farewell instanceof LinkClosed && farewell.reason === "all is said", `${farewell}`);
  }
  return { hash: simulation.hash, seen };
};

/** Lets both sides use their link until bad weather ends. */
const live = (
  simulation: Simulation,
  network: Network,
  sides: readonly [Side, Side],
  weather: Weather,
  end: number,
  count: (what: string) => void,
): void => {
  network.weather = weather;
  const present = (act: (side: Side) => void) => () => {
    for (const side of sides) if (!side.frozen) act(side);
  };
  simulation.every(100, present(({ conversation }) => conversation.greet()));
  simulation.every(tickEvery, present(({ conversation }) => conversation.tick()));
  simulation.every(
    pulseEvery,
    present(({ conversation }) => {
      if (network.up) conversation.pulse();
    }),
  );
  const pace = simulation.between(1, 60);
  simulation.every(
    pace,
    present((side) => {
      if (side.left) return;
      side.push();
      if (simulation.random() < 0.7) side.pull();
      const peer = sides[side === sides[0] ? 1 : 0];
      const held = side.sentBytes - peer.takenBytes;
      const alone = side.sent - peer.taken.length <= 1;
      assert.ok(alone || held <= side.windowBytes, `${held} bytes held`);
      simulation.note(side.name, side.sent, side.taken.length);
    }),
  );
  // A server that goes away, a member that stands still: at most one of each at a time.
  const outages = () => {
    if (simulation.now > end - 4000) return;
    count("server away");
    network.stop();
    simulation.after(simulation.between(10, 3000), () => {
      network.start();
      for (const side of sides) if (!side.frozen) side.conversation.resume();
      simulation.after(simulation.between(500, 6000), outages);
    });
  };
  const pauses = () => {
    if (simulation.now > end - 4000) return;
    count("member frozen");
    const side = simulation.random() < 0.5 ? sides[0] : sides[1];
    side.frozen = true;
    simulation.after(simulation.between(10, 3000), () => {
      side.thaw();
      simulation.after(simulation.between(500, 6000), pauses);
    });
  };
  if (simulation.random() < 0.5) simulation.after(simulation.between(100, 6000), outages);
  if (simulation.random() < 0.5) simulation.after(simulation.between(100, 6000), pauses);
  simulation.runUntil(() => simulation.now >= end, end);
};

/** A peer that ignores what it was granted, and says that it has what was never sent. */
export const simulateRogue = (seed: number): Outcome => {
  const simulation = new Simulation(seed);
  const seen = new Map<string, number>();
  const windowBytes = simulation.whole(1024, 12_000);
  const conversation = new Conversation({ run: "run", self: 0, peer: 1 }, {
    session: 1,
    windowBytes,
    maxBody: 1 << 16,
    publish: () => {},
    now: () => simulation.now,
    count: (what) => void seen.set(what, (seen.get(what) ?? 0) + 1),
  });
  const said: Message = {
    ...{ kind: "alive", from: 2, to: 1, epoch: 0, number: 0, dispatch: 0, received: 0, beyond: 0n },
    ...{ heard: 0, taken: 0, granted: 1 << 20, body: new Uint8Array(0) },
  };
  conversation.hear(encodeMessage(said));
  const sizes = Array.from({ length: 100 }, () => simulation.whole(1, 1000));
  // The first one never comes, so that all the others wait for it.
  for (const [i, size] of sizes.entries()) {
    conversation.hear(
      encodeMessage({ ...said, kind: "frame", number: i + 2, body: new Uint8Array(size) }),
    );
  }
  let held = 0;
  const kept = sizes.filter((size) => {
    const charge = chargeOf(new Uint8Array(size));
    const fits = held === 0 || held + charge <= windowBytes;
    if (fits) held += charge;
    return fits;
  });
  assert.equal(seen.get("outside"), sizes.length - kept.length, `seed ${seed}: frames held`);
  conversation.hear(encodeMessage({ ...said, kind: "frame", number: 1, from: 3 }));
  assert.equal(seen.get("foreign"), 1, `seed ${seed}: a frame of another`);
  const before = seen.get("outside")!;
  for (let number = 1000; number < 1100; number++) {
    conversation.hear(encodeMessage({ ...said, kind: "done", number, body: new Uint8Array(1000) }));
  }
  assert.equal(seen.get("outside")! - before, 99, `seed ${seed}: farewells held`);
  const claims = [{ received: 1 }, { taken: 1 }, { heard: 1 }];
  for (const claim of claims) conversation.hear(encodeMessage({ ...said, ...claim }));
  assert.equal(seen.get("odd"), claims.length, `seed ${seed}: claims refused`);
  return { hash: simulation.hash, seen };
};
