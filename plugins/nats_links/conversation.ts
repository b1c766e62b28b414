/**
 * One end of a NATS link as plain state: opens it, moves frames both ways, says farewell, and gives up a peer that is
 * silent. Whatever is lost, doubled, damaged or late on the way is repeated or dropped, and counted; what comes out is
 * every frame once and in order, or an error.
 *
 * Time enters as pulses: beats of this process that came back from the server. Only they count against a peer, so that
 * neither a server that is away nor a pause of this process is ever taken for a peer's silence.
 *
 * @module
 */
import { Effect } from "effect";
import { Condition } from "../../runtime/condition.ts";
import { LinkClosed, type LinkError, LinkFailed } from "../../runtime/errors.ts";
import type { Farewell } from "../../runtime/farewell.ts";
import { type Ends, slotName } from "../../runtime/link.ts";
import { Incoming } from "./incoming.ts";
import { decodeMessage, encodeMessage, type Flaw, type Message, stamp } from "./message.ts";
import { Outgoing, type Pending } from "./outgoing.ts";

/** Why a message was not used. */
export type Rejection = Flaw | "stale" | "ahead" | "foreign" | "odd" | "duplicate" | "outside";

/** What both ends keep to, and what one end needs. */
export interface Terms {
  /** A number above 0 that tells this opening of the end from any other one. */
  readonly session: number;
  /** Bytes sent but not yet taken, per direction; a frame larger than that travels alone. */
  readonly windowBytes: number;
  /** The largest body that the server takes. */
  readonly maxBody: number;
  /** Publishes to the peer, in the way of bulk or past it; may throw, and may lose the message. */
  readonly publish: (way: "bulk" | "control", bytes: Uint8Array) => void;
  /** Milliseconds that never go back. */
  readonly now: () => number;
  /** Hears of everything that was sent again, or was not used. */
  readonly count: (what: Rejection | "resent") => void;
}

/** A peer that is silent for so many pulses is given up. */
export const pulsesOfPatience = 10;
/** One that lives and receives nothing for so many is, too. */
const pulsesOfStalling = 3 * pulsesOfPatience;

const empty = new Uint8Array(0);

/** The state of one end. */
export class Conversation {
  readonly #run: string;
  readonly #self: string;
  readonly #peer: string;
  readonly #epoch: number;
  readonly #terms: Terms;

  readonly #session: number;
  /** The same of the peer, once it has answered us: until then it may be an earlier one that greets. */
  #peerSession = 0;
  #greeted = 0;
  #failure: LinkFailed | undefined;
  #farewell: Farewell | undefined;
  #closed: Farewell | undefined;

  readonly #outgoing = new Outgoing();
  readonly #incoming: Incoming;
  /** A frame waits for room, which the peer may have granted in a message that was lost. */
  #waiting = false;
  /** Pulses since the peer said anything, and since it received anything of what is on its way to it. */
  #silent = 0;
  #stalled = 0;
  #receivedAtPulse = 0;

  readonly #arrivals = new Condition();
  readonly #room = new Condition();
  readonly #state = new Condition();

  constructor(ends: Ends, terms: Terms) {
    this.#run = ends.run;
    this.#self = slotName(ends.self);
    this.#peer = slotName(ends.peer);
    this.#epoch = ends.epoch ?? 0;
    this.#terms = terms;
    this.#session = terms.session;
    this.#incoming = new Incoming(terms.windowBytes);
  }

  /** Whether the peer has heard us, and we it. */
  get acquainted(): boolean {
    return this.#peerSession !== 0;
  }

  /** Returns once both ends have heard each other. */
  readonly met: Effect.Effect<void, LinkError> = this.#state.until(() =>
    this.over() ?? (this.acquainted ? Effect.void : undefined)
  );

  /** Sends a frame if there is room now. */
  offer(frame: Uint8Array): Effect.Effect<void, LinkError> | undefined {
    const over = this.over();
    if (over !== undefined) return over;
    this.#waiting = !this.#outgoing.hasRoomFor(frame);
    if (this.#waiting) return undefined;
    this.#send(this.#outgoing.add("frame", frame, this.#terms.now()));
    return this.over() ?? Effect.void;
  }

  /** Sends a frame as soon as there is room. */
  readonly send = (frame: Uint8Array): Effect.Effect<void, LinkError> =>
    this.#room.until(() => this.offer(frame));

  /** The next frame, if it is here. */
  take(): Effect.Effect<Uint8Array, LinkError> | undefined {
    // A peer that left had sent these before; after a failure nothing can be trusted.
    if (this.#failure !== undefined || this.#closed !== undefined) return this.over();
    const frame = this.#incoming.take();
    if (frame === undefined) return this.over();
    this.#say("alive");
    return Effect.succeed(frame);
  }

  /** The next frame. */
  readonly receive: Effect.Effect<Uint8Array, LinkError> = this.#arrivals.until(() => this.take());

  /** Whether the peer has taken everything, if that can be told now. */
  settled(): Effect.Effect<void, LinkError> | undefined {
    const sound = this.#failure === undefined && this.#closed === undefined;
    return sound && this.#outgoing.allTaken ? Effect.void : this.over();
  }

  /** Returns when the peer has taken everything. */
  readonly drain: Effect.Effect<void, LinkError> = this.#room.until(() => this.settled());

  /** A peer that is done has broken nothing: what it sent is still to be taken. */
  readonly broken: Effect.Effect<never, LinkError> = this.#state.until(() =>
    this.#farewell?.done === true && this.#closed === undefined ? undefined : this.over()
  );

  /** Returns when the peer knows of our farewell, or cannot be told any more. */
  readonly departed: Effect.Effect<void> = this.#state.until(() => {
    const told = this.#closed?.done === true && this.#outgoing.arrived;
    const deaf = this.#farewell !== undefined || this.#failure !== undefined;
    return told || deaf || this.#peerSession === 0 ? Effect.void : undefined;
  });

  /** Says who we are; worth repeating until heard, as what nobody subscribes to is dropped. */
  greet(): void {
    this.#say("hello");
  }

  /** To be called many times a second: sends again what is late, and asks where nothing comes back. */
  tick(): void {
    if (this.#peerSession === 0 || this.#failure !== undefined) return;
    if (this.#closed?.done === false) return this.#leave();
    const now = this.#terms.now();
    this.#sendAgain(now);
    if (!this.#outgoing.wantsProbe(this.#waiting, now)) return;
    const dispatch = this.#outgoing.dispatched(undefined, now);
    this.#outgoing.probed(now);
    this.#say("probe", empty, dispatch);
  }

  #sendAgain(now: number): void {
    for (const pending of this.#outgoing.lost(now)) {
      this.#terms.count("resent");
      this.#outgoing.dispatched(pending, now);
      this.#send(pending);
    }
  }

  /** The way to the peer is new: says what we have and asks for what the peer has. */
  resume(): void {
    this.#outgoing.begun();
    this.#say(this.#peerSession === 0 ? "hello" : "alive");
    this.tick();
  }

  /** To be called for every pulse: tells the peer that we live, and doubts the peer if it does not. */
  pulse(): void {
    if (this.#peerSession === 0 || this.over() !== undefined) return;
    this.#say("alive");
    const { received, sent } = this.#outgoing;
    this.#silent++;
    this.#stalled = received === sent || received !== this.#receivedAtPulse ? 0 : this.#stalled + 1;
    this.#receivedAtPulse = received;
    if (this.#silent > pulsesOfPatience) {
      this.fail(
        `a word from ${this.#peer} while the server answers ${pulsesOfPatience} times`,
        "silence",
      );
    } else if (this.#stalled > pulsesOfStalling) {
      this.fail(
        `${this.#peer} to receive frame ${(received + 1) >>> 0} while the server answers ` +
          `${pulsesOfStalling} times`,
        `it is alive and has ${received} of ${sent} frames`,
      );
    }
  }

  /** Takes in what came from the peer's subject. Never throws; copies what it keeps. */
  hear(bytes: Uint8Array): void {
    const message = decodeMessage(bytes);
    if (typeof message === "string") return this.#terms.count(message);
    const { kind, from, to, epoch } = message;
    if (epoch !== this.#epoch) return this.#terms.count(epoch < this.#epoch ? "stale" : "ahead");
    if (this.#peerSession === 0) {
      if (this.over() !== undefined) return;
      // Who has not heard us may be the end of an earlier link between the two.
      if (to !== this.#session) {
        if (kind !== "hello") return this.#terms.count("foreign");
        this.#greeted = from;
        return this.greet();
      }
      this.#peerSession = from;
      this.#outgoing.begin(message.granted, this.#terms.now());
      this.#say("alive");
      this.#state.changed();
    } else if (from !== this.#peerSession || (to !== this.#session && to !== 0)) {
      return this.#terms.count("foreign");
    } else if (kind === "hello") {
      this.#say("alive");
    }
    if (to === this.#session) this.#listen(message);
  }

  /** Ends the link with an error, unless it has ended already. */
  fail(needed: string, found: string): void {
    if (this.#failure !== undefined || this.over() !== undefined) return;
    const [run, self, peer] = [this.#run, this.#self, this.#peer];
    this.#failure = new LinkFailed({ run, self, peer, needed, found });
    this.#wakeAll();
  }

  /** Closes this end and tells the peer why. */
  close(farewell: Farewell): void {
    // A last word to a peer that has left already: it may wait to hear that we know.
    if (this.#farewell !== undefined) this.#say("alive");
    else if (this.#peerSession !== 0 && this.#failure === undefined) {
      if (farewell.done) {
        const body = this.#spoken(farewell);
        this.#send(this.#outgoing.add("done", body, this.#terms.now()));
      }
    }
    this.#closed = farewell;
    if (!farewell.done) this.#leave();
    this.#wakeAll();
  }

  #leave(): void {
    if (this.#farewell === undefined) this.#say("left", this.#spoken(this.#closed!));
  }

  #spoken({ reason }: Farewell): Uint8Array {
    return new TextEncoder().encode(reason).subarray(0, this.#terms.maxBody);
  }

  #listen(message: Message): void {
    const { kind, dispatch, body } = message;
    this.#silent = 0;
    const now = this.#terms.now();
    if (!this.#outgoing.acknowledge(message, now)) return this.#terms.count("odd");
    // At once: until what is missing comes, whoever takes frames in order waits for it.
    this.#sendAgain(now);
    if (kind === "left") {
      // It repeats that until it hears that we know.
      if (this.#closed === undefined) this.#say("left");
      this.#depart({ done: false, reason: new TextDecoder().decode(body) });
    } else if (kind === "frame" || kind === "done" || kind === "probe") {
      this.#incoming.hear(dispatch);
      const outcome = kind === "probe" ? "new" : this.#incoming.accept(message);
      if (outcome !== "new") this.#terms.count(outcome);
      this.#say("alive");
      this.#arrivals.changed();
      const { farewell } = this.#incoming;
      if (farewell !== undefined) {
        this.#depart({ done: true, reason: new TextDecoder().decode(farewell.body) });
      }
    }
    this.#room.changed();
    if (this.#closed !== undefined) this.#state.changed();
  }

  #depart(farewell: Farewell): void {
    if (this.#farewell !== undefined) return;
    this.#farewell = farewell;
    this.#wakeAll();
  }

  #send(pending: Pending): void {
    stamp(
      pending.bytes,
      this.#header(pending.kind, pending.number, pending.dispatch),
      pending.bodyCrc,
    );
    this.#publish("bulk", pending.bytes);
  }

  #say(kind: Message["kind"], body: Uint8Array = empty, dispatch = 0): void {
    const message = { ...this.#header(kind, this.#outgoing.sent, dispatch), body };
    this.#publish(kind === "probe" ? "bulk" : "control", encodeMessage(message));
  }

  #header(kind: Message["kind"], number: number, dispatch: number): Omit<Message, "body"> {
    const to = this.#peerSession === 0 ? this.#greeted : this.#peerSession;
    const [from, epoch] = [this.#session, this.#epoch];
    return { kind, from, to, epoch, number, dispatch, ...this.#incoming.state };
  }

  #publish(way: "bulk" | "control", bytes: Uint8Array): void {
    try {
      this.#terms.publish(way, bytes);
    } catch (cause) {
      this.fail("to publish over its NATS connection", String(cause));
    }
  }

  /** The error with which everything from now on ends, if the link has ended. */
  over(): Effect.Effect<never, LinkError> | undefined {
    const [run, self, peer] = [this.#run, this.#self, this.#peer];
    if (this.#failure !== undefined) return Effect.fail(this.#failure);
    if (this.#closed !== undefined) {
      const [needed, found] = ["an open end", "this end was closed"];
      return Effect.fail(new LinkFailed({ run, self, peer, needed, found }));
    }
    if (this.#farewell === undefined) return undefined;
    return Effect.fail(new LinkClosed({ run, self, peer, ...this.#farewell }));
  }

  #wakeAll(): void {
    for (const condition of [this.#arrivals, this.#room, this.#state]) condition.changed();
  }
}
