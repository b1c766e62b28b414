/**
 * One end of a NATS link as plain state: what was said, what was heard, and whether the two still agree. NATS keeps
 * the order of what one connection publishes on one subject, and may drop any of it. So every message repeats how
 * many frames its speaker has sent, received and taken, and the first contradiction ends the link.
 *
 * @module
 */
import { Effect } from "effect";
import { Condition } from "../../runtime/condition.ts";
import { LinkClosed, type LinkError, LinkFailed } from "../../runtime/errors.ts";
import type { Farewell } from "../../runtime/farewell.ts";
import { type Ends, slotName } from "../../runtime/link.ts";
import { decodeMessage, encodeMessage, headerBytes, type Message } from "./message.ts";

/** What both ends keep to. */
export interface Terms {
  /** Bytes sent but not yet taken, per direction; a frame larger than that travels alone. */
  readonly windowBytes: number;
  /** The largest body that the server takes. */
  readonly maxBody: number;
  /** What `beatsOfPatience` beats amount to, in words. */
  readonly deadline: string;
  /** Publishes to the peer; may throw. */
  readonly publish: (bytes: Uint8Array) => void;
}

/** A peer that stays silent, or does not hear us, for so many beats is given up. */
export const beatsOfPatience = 10;

/** However small a frame is, its message costs memory at both ends and in the server. */
const leastCharge = 1024;

const chargeOf = (frame: Uint8Array): number => Math.max(frame.length + headerBytes, leastCharge);

const empty = new Uint8Array(0);

/** How far a wrapping count went from `a` to `b`. */
const distance = (a: number, b: number): number => (b - a) >>> 0;

/** The state of one end. */
export class Conversation {
  readonly #run: string;
  readonly #self: string;
  readonly #peer: string;
  readonly #terms: Terms;

  /** Tells this opening of the end from any earlier one. */
  readonly #session = 1 + Math.floor(Math.random() * (2 ** 32 - 1));
  /** The same of the peer, 0 until it was heard. */
  #peerSession = 0;
  /** The peer has heard us, too. */
  #met = false;
  #failure: LinkFailed | undefined;
  #farewell: Farewell | undefined;
  #closed = false;

  // Outgoing, with what the peer says about it.
  #sent = 0;
  #received = 0;
  #taken = 0;
  #window = 0;
  /** Charges of the frames that the peer has not taken, oldest first, and their sum. */
  readonly #inFlight: Array<number> = [];
  #inFlightBytes = 0;

  // Incoming.
  #arrived = 0;
  #consumed = 0;
  readonly #inbox: Array<Uint8Array> = [];
  #inboxBytes = 0;

  // Beats since the peer said anything, and since it last heard any of what is on its way to it.
  #silent = 0;
  #unheard = 0;
  #receivedAtBeat = 0;

  readonly #arrivals = new Condition();
  readonly #room = new Condition();
  readonly #state = new Condition();

  constructor(ends: Ends, terms: Terms) {
    this.#run = ends.run;
    this.#self = slotName(ends.self);
    this.#peer = slotName(ends.peer);
    this.#terms = terms;
  }

  /** Returns once both ends have heard each other. */
  readonly met: Effect.Effect<void, LinkError> = this.#state.until(() =>
    this.over() ?? (this.#met ? Effect.void : undefined)
  );

  /** Sends a frame if there is room now. */
  offer(frame: Uint8Array): Effect.Effect<void, LinkError> | undefined {
    const over = this.over();
    if (over !== undefined) return over;
    const charge = chargeOf(frame);
    if (this.#inFlight.length > 0 && this.#inFlightBytes + charge > this.#window) return undefined;
    this.#sent = (this.#sent + 1) >>> 0;
    this.#inFlight.push(charge);
    this.#inFlightBytes += charge;
    this.#say("frame", frame);
    return this.over() ?? Effect.void;
  }

  /** Sends a frame as soon as there is room. */
  readonly send = (frame: Uint8Array): Effect.Effect<void, LinkError> =>
    this.#room.until(() => this.offer(frame));

  /** The next frame. */
  readonly receive: Effect.Effect<Uint8Array, LinkError> = this.#arrivals.until(() => {
    // A peer that left had sent these before; after a failure nothing can be trusted.
    if (this.#failure !== undefined || this.#closed || this.#inbox.length === 0) {
      return this.over();
    }
    const frame = this.#inbox.shift()!;
    this.#inboxBytes -= chargeOf(frame);
    this.#consumed = (this.#consumed + 1) >>> 0;
    if (this.#farewell === undefined) this.#say("alive");
    return Effect.succeed(frame);
  });

  /** Whether the peer has taken everything, if that can be told now. */
  settled(): Effect.Effect<void, LinkError> | undefined {
    const nothingLeft = this.#inFlight.length === 0 && this.#failure === undefined && !this.#closed;
    return nothingLeft ? Effect.void : this.over();
  }

  /** Returns when the peer has taken everything. */
  readonly drain: Effect.Effect<void, LinkError> = this.#room.until(() => this.settled());

  /** A peer that is done has broken nothing: what it sent is still to be taken. */
  readonly broken: Effect.Effect<never, LinkError> = this.#state.until(() =>
    this.#farewell?.done === true && !this.#closed ? undefined : this.over()
  );

  /** Says who we are; worth repeating until heard, as what nobody subscribes to is dropped. */
  greet(): void {
    const window = new Uint8Array(4);
    const granted = Math.min(this.#terms.windowBytes, 2 ** 32 - 1);
    new DataView(window.buffer).setUint32(0, granted, true);
    this.#say("hello", window);
  }

  /** To be called ten times per deadline: tells the peer that we live, and doubts the peer if it does not. */
  beat(): void {
    if (this.over() !== undefined) return;
    this.#say("alive");
    this.#silent++;
    const allHeard = this.#sent === this.#received;
    this.#unheard = allHeard || this.#received !== this.#receivedAtBeat ? 0 : this.#unheard + 1;
    this.#receivedAtBeat = this.#received;
    if (this.#silent > beatsOfPatience) {
      this.fail(`a word from ${this.#peer} within ${this.#terms.deadline}`, "silence");
    } else if (this.#unheard > beatsOfPatience) {
      this.fail(
        `${this.#peer} to receive frame ${
          (this.#received + 1) >>> 0
        } within ${this.#terms.deadline}`,
        `it is alive and has ${this.#received} of ${this.#sent} frames`,
      );
    }
  }

  /** Takes in what came from the peer's subject. Never throws; copies what it keeps. */
  hear(bytes: Uint8Array): void {
    if (this.over() !== undefined) return;
    const message = decodeMessage(bytes);
    if (message === undefined) {
      return this.fail("messages in its own format", `${bytes.length} bytes in another`);
    }
    const { kind, from, to, body } = message;
    const forUs = to === 0 || to === this.#session;
    if (this.#peerSession === 0) {
      // Anything but a greeting is the end of an earlier link between the two.
      if (kind !== "hello" || !forUs) return;
      this.#peerSession = from;
      const granted = new DataView(body.buffer, body.byteOffset).getUint32(0, true);
      this.#window = Math.min(this.#terms.windowBytes, granted);
      this.greet();
    } else if (from !== this.#peerSession || !forUs) {
      return this.fail(`one ${this.#peer}`, `two that speak as ${this.#peer}`);
    } else if (kind === "hello" && to === 0) {
      this.greet();
    }
    this.#silent = 0;
    if (to === this.#session && !this.#met) {
      this.#met = true;
      this.#state.changed();
    }
    this.#acknowledge(message);
    if (this.over() === undefined) this.#accept(message);
  }

  /** Ends the link with an error, unless it has ended already. */
  fail(needed: string, found: string): void {
    if (this.over() !== undefined) return;
    const [run, self, peer] = [this.#run, this.#self, this.#peer];
    this.#failure = new LinkFailed({ run, self, peer, needed, found });
    this.#wakeAll();
  }

  /** Closes this end and tells the peer why; true if the peer may still be listening. */
  close({ done, reason }: Farewell): boolean {
    const listening = this.#farewell === undefined;
    if (listening) {
      const body = new TextEncoder().encode(reason).subarray(0, this.#terms.maxBody);
      this.#say(done ? "done" : "left", body);
    }
    this.#closed = true;
    this.#wakeAll();
    return listening;
  }

  /** Applies the peer's counts of what it received and took. */
  #acknowledge({ received, taken }: Message): void {
    const heard = distance(this.#received, received);
    const freed = distance(this.#taken, taken);
    if (
      heard > distance(this.#received, this.#sent) || freed > distance(this.#taken, received)
    ) {
      return this.fail(
        `counts of at least ${this.#received} received and ${this.#taken} taken, of ${this.#sent} frames sent`,
        `${received} received and ${taken} taken`,
      );
    }
    this.#received = received;
    if (freed === 0) return;
    this.#taken = taken;
    for (const charge of this.#inFlight.splice(0, freed)) this.#inFlightBytes -= charge;
    this.#room.changed();
  }

  /** Takes a frame or a farewell, if it is the one that comes next. */
  #accept({ kind, sent, body }: Message): void {
    if (kind !== "frame") {
      if (sent !== this.#arrived) {
        return this.fail(`all of the ${sent} frames sent`, `${this.#arrived} of them`);
      }
      if (kind !== "done" && kind !== "left") return;
      this.#farewell = { done: kind === "done", reason: new TextDecoder().decode(body) };
      return this.#wakeAll();
    }
    const next = (this.#arrived + 1) >>> 0;
    if (sent !== next) return this.fail(`frame ${next}`, `frame ${sent}`);
    const bytes = this.#inboxBytes + chargeOf(body);
    if (bytes > this.#terms.windowBytes && this.#inbox.length > 0) {
      return this.fail(
        `at most ${this.#terms.windowBytes} bytes that were not taken`,
        `${bytes} bytes`,
      );
    }
    this.#arrived = next;
    this.#inboxBytes = bytes;
    this.#inbox.push(new Uint8Array(body)); // a view of the socket's buffer until here
    this.#arrivals.changed();
  }

  #say(kind: Message["kind"], body: Uint8Array = empty): void {
    const message: Message = {
      kind,
      from: this.#session,
      to: this.#peerSession,
      sent: this.#sent,
      received: this.#arrived,
      taken: this.#consumed,
      body,
    };
    try {
      this.#terms.publish(encodeMessage(message));
    } catch (cause) {
      this.fail("to publish over its NATS connection", String(cause));
    }
  }

  /** The error with which everything from now on ends, if the link has ended. */
  over(): Effect.Effect<never, LinkError> | undefined {
    const [run, self, peer] = [this.#run, this.#self, this.#peer];
    if (this.#failure !== undefined) return Effect.fail(this.#failure);
    if (this.#closed) {
      const [needed, found] = ["an open end", "this end was closed"];
      return Effect.fail(new LinkFailed({ run, self, peer, needed, found }));
    }
    if (this.#farewell === undefined) return undefined;
    return Effect.fail(new LinkClosed({ run, self, peer, reason: this.#farewell.reason }));
  }

  #wakeAll(): void {
    for (const condition of [this.#arrivals, this.#room, this.#state]) condition.changed();
  }
}
