/**
 * What goes to a peer: keeps every frame until the peer has it, and finds out which ones were lost. A frame is sent
 * again on evidence only: the peer heard something that was dispatched well after it. Where nothing comes back, an
 * empty probe asks; no timer ever repeats a frame by itself.
 *
 * @module
 */
import { crc32 } from "node:zlib";
import { ahead, chargeOf } from "./incoming.ts";
import { headerBytes, type Message } from "./message.ts";

/** A network may let so many messages overtake another. */
const overtaking = 3;
/** Bytes on their way at once: more would only wait in sockets, and leave the processor's cache meanwhile. */
const mostOnWay = 4 * 1024 * 1024;
/** Bytes of memory that is kept for frames to come. */
const mostSpare = mostOnWay;
/** Milliseconds between looks at what may be lost. */
export const tickMilliseconds = 10;
/** Milliseconds before anything is known of the way, and the least and the most between two probes. */
const [unknownRoundTrip, leastProbe, mostProbe] = [250, 30, 250];

/** A frame that the peer may not have. */
export interface Pending {
  readonly kind: "frame" | "done";
  readonly number: number;
  /** The message, but for its header. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly bodyCrc: number;
  dispatch: number;
  sentAt: number;
}

/** The state of one direction at its sender; times are in milliseconds of one clock. */
export class Outgoing {
  #sent = 0;
  #frames = 0;
  #received = 0;
  #taken = 0;
  #charged = 0;
  #granted = 0;
  /** Bytes of the frames that the peer may not have. */
  #onWay = 0;
  #dispatch = 0;
  #heard = 0;
  readonly #pending = new Map<number, Pending>();
  /** Memory of frames that have arrived, from the one that was free first on. */
  readonly #spare: Array<Pending["bytes"]> = [];
  #spareBytes = 0;
  /** When what the peer may still hear of was dispatched. */
  readonly #dispatchedAt = new Map<number, number>();
  #roundTrip: number | undefined;
  #deviation = 0;
  #probes = 0;
  #quietSince = 0;

  /** The number of the last frame. */
  get sent(): number {
    return this.#sent;
  }
  /** How many frames the peer has, without a gap. */
  get received(): number {
    return this.#received;
  }
  /** The peer has everything. */
  get arrived(): boolean {
    return this.#pending.size === 0;
  }
  /** The peer's consumer took every frame. */
  get allTaken(): boolean {
    return this.#taken === this.#frames;
  }

  /**
   * Whether the peer has room for a frame and the way is not full; one that is larger than the peer's window travels alone.
   * Where something was lost, what came after it waits at the peer and is not on its way any more, so that more follows.
   */
  hasRoomFor(frame: Uint8Array): boolean {
    if (this.allTaken) return true;
    const charge = chargeOf(frame);
    if (!this.arrived && this.#onWay + charge > mostOnWay) return false;
    return charge <= ahead(this.#charged, this.#granted);
  }

  /** Keeps a copy of a frame, or the farewell behind the last one, which needs no room. */
  add(kind: Pending["kind"], body: Uint8Array, now: number): Pending {
    this.#sent = (this.#sent + 1) >>> 0;
    if (kind === "frame") {
      this.#frames = (this.#frames + 1) >>> 0;
      this.#charged = (this.#charged + chargeOf(body)) >>> 0;
    }
    const bytes = this.#memory(headerBytes + body.length);
    bytes.set(body, headerBytes);
    const pending = {
      kind,
      number: this.#sent,
      bytes,
      bodyCrc: crc32(body),
      dispatch: 0,
      sentAt: 0,
    };
    // What was quiet before says nothing about this one.
    if (this.arrived) this.#quietSince = now;
    this.#pending.set(pending.number, pending);
    this.#onWay += bytes.length;
    this.dispatched(pending, now);
    return pending;
  }

  /** Gives a message that may be lost the number that tells its copies apart. */
  dispatched(pending: Pending | undefined, now: number): number {
    this.#dispatch = (this.#dispatch + 1) >>> 0;
    this.#dispatchedAt.set(this.#dispatch, now);
    if (pending !== undefined) {
      pending.dispatch = this.#dispatch;
      pending.sentAt = now;
      this.#probes = 0;
    }
    return this.#dispatch;
  }

  /** Takes in what the peer says that it has; false if it cannot be true. */
  acknowledge({ received, beyond, heard, taken, granted }: Message, now: number): boolean {
    if (
      ahead(received, this.#sent) < 0 || ahead(taken, this.#frames) < 0 ||
      ahead(heard, this.#dispatch) < 0
    ) return false;
    const before = this.#pending.size;
    for (const [number, { bytes }] of this.#pending) {
      const distance = ahead(received, number);
      const bit = distance > 0 && distance <= 64 ? (beyond >> BigInt(distance - 1)) & 1n : 0n;
      if (distance > 0 && bit === 0n) continue;
      this.#pending.delete(number);
      this.#onWay -= bytes.length;
      this.#keep(bytes);
    }
    if (ahead(this.#received, received) > 0) this.#received = received;
    if (ahead(this.#taken, taken) > 0) this.#taken = taken;
    const more = ahead(this.#granted, granted) > 0;
    if (more) this.#granted = granted;
    if (more || this.#pending.size < before) this.#probes = 0;
    if (ahead(this.#heard, heard) <= 0) return true;
    this.#measure(now - (this.#dispatchedAt.get(heard) ?? now));
    this.#heard = heard;
    this.#quietSince = now;
    for (const dispatch of this.#dispatchedAt.keys()) {
      if (ahead(heard, dispatch) > 0) break;
      this.#dispatchedAt.delete(dispatch);
    }
    return true;
  }

  /** The first grant, which may be any number. */
  begin(granted: number, now: number): void {
    this.#granted = granted;
    this.#quietSince = now;
  }

  /** Frames of which there is evidence that they were lost. */
  lost(now: number): ReadonlyArray<Pending> {
    const patience = 1.25 * (this.#roundTrip ?? 0) + this.#deviation + tickMilliseconds;
    return [...this.#pending.values()].filter(({ dispatch, sentAt }) => {
      const behind = ahead(dispatch, this.#heard);
      return behind >= overtaking || (behind > 0 && now - sentAt > patience);
    });
  }

  /** Whether it is time to ask the peer what it has. */
  wantsProbe(waiting: boolean, now: number): boolean {
    if (this.arrived && !waiting) return false;
    const usual = this.#roundTrip === undefined
      ? unknownRoundTrip
      : Math.max(leastProbe, this.#roundTrip + 4 * this.#deviation);
    return now - this.#quietSince >=
      Math.max(usual, Math.min(mostProbe, usual * 2 ** this.#probes));
  }

  /** A probe was sent: the next one waits longer. */
  probed(now: number): void {
    this.#probes++;
    this.#quietSince = now;
  }

  /** The way is new: what went before may be lost, and is worth asking about now. */
  begun(): void {
    this.#probes = 0;
    this.#quietSince = -Infinity;
  }

  /**
   * Memory for a message. What collects garbage would otherwise go through all of the heap for a few frames, since it counts
   * their bytes: that costs a link in bad weather, whose frames live longer, half of its time.
   */
  #memory(size: number): Pending["bytes"] {
    const at = this.#spare.findIndex(({ length }) => length === size);
    if (at < 0) return new Uint8Array(size);
    this.#spareBytes -= size;
    return this.#spare.splice(at, 1)[0]!;
  }

  /**
   * Keeps the memory of a frame that has arrived. Another copy of it may still wait to be written to a socket, and then it is
   * the next frame that goes out twice, or a mixture of both, which the peer refuses by its checksum.
   */
  #keep(bytes: Pending["bytes"]): void {
    this.#spare.push(bytes);
    this.#spareBytes += bytes.length;
    while (this.#spareBytes > mostSpare) this.#spareBytes -= this.#spare.shift()!.length;
  }

  /** Smooths round trips as TCP does (RFC 6298). */
  #measure(roundTrip: number): void {
    if (this.#roundTrip === undefined) {
      [this.#roundTrip, this.#deviation] = [roundTrip, roundTrip / 2];
      return;
    }
    this.#deviation += (Math.abs(roundTrip - this.#roundTrip) - this.#deviation) / 4;
    this.#roundTrip += (roundTrip - this.#roundTrip) / 8;
  }
}
