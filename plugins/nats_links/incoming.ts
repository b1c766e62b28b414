/**
 * What a peer sent: puts its frames in order, drops those that are here already, and holds no more than was granted.
 *
 * @module
 */
import type { Message } from "./message.ts";
import { headerBytes } from "./message.ts";

/** However small a frame is, its message costs memory at both ends and in the server. */
const leastCharge = 1024;

/** Bytes of a window that a frame takes. */
export const chargeOf = (frame: Uint8Array): number =>
  Math.max(frame.length + headerBytes, leastCharge);

/** How far a wrapping count went from `a` to `b`; negative if b is the earlier one. */
export const ahead = (a: number, b: number): number => (b - a) | 0;

/** How many frames beyond the first missing one a message tells of. */
const tellable = 64;

/**
 * Bytes that nobody else has a view of. The client gives views of what a socket read at once, which may hold several
 * messages; but one that is larger than that has memory of its own.
 */
const owned = (body: Uint8Array): Uint8Array =>
  body.length > largestRead ? body : new Uint8Array(body);
const largestRead = 128 * 1024;

/** A frame, or the farewell behind the last one. */
export type Arrival = Pick<Message, "kind" | "body">;

/** The state of one direction at its receiver. */
export class Incoming {
  /** All arrivals up to this one are here. */
  #received = 0;
  #taken = 0;
  #granted: number;
  #heard = 0;
  /** Charges of what is here and not taken. */
  #held = 0;
  /** The number of the farewell: there is one. */
  #last: number | undefined;
  readonly #early = new Map<number, Arrival>();
  readonly #inOrder: Array<Arrival> = [];

  constructor(readonly windowBytes: number) {
    this.#granted = windowBytes;
  }

  /** What every message tells the peer. */
  get state(): Pick<Message, "received" | "beyond" | "heard" | "taken" | "granted"> {
    let beyond = 0n;
    for (const number of this.#early.keys()) {
      const bit = ahead(this.#received, number) - 1;
      if (bit < tellable) beyond |= 1n << BigInt(bit);
    }
    return {
      received: this.#received,
      beyond,
      heard: this.#heard,
      taken: this.#taken,
      granted: this.#granted,
    };
  }

  /** Takes note of a message that may be lost. */
  hear(dispatch: number): void {
    if (ahead(this.#heard, dispatch) > 0) this.#heard = dispatch;
  }

  /** Keeps a frame that is new, and says which it was. */
  accept({ kind, number, body }: Message): "new" | "duplicate" | "outside" {
    if (ahead(this.#received, number) <= 0 || this.#early.has(number)) return "duplicate";
    const charge = kind === "frame" ? chargeOf(body) : 0;
    if (charge > 0 && this.#held > 0 && this.#held + charge > this.windowBytes) return "outside";
    if (kind === "done" && this.#last !== undefined) return "outside";
    if (kind === "done") this.#last = number;
    this.#held += charge;
    this.#early.set(number, { kind, body: owned(body) });
    for (;;) {
      const next = (this.#received + 1) >>> 0;
      const arrival = this.#early.get(next);
      if (arrival === undefined) return "new";
      this.#early.delete(next);
      this.#received = next;
      this.#inOrder.push(arrival);
    }
  }

  /** Whether the farewell is all that is left. */
  get farewell(): Arrival | undefined {
    const last = this.#inOrder.at(-1);
    return last?.kind === "done" ? last : undefined;
  }

  /** The next frame, which makes room for another. */
  take(): Uint8Array | undefined {
    if (this.#inOrder[0]?.kind !== "frame") return undefined;
    const { body } = this.#inOrder.shift()!;
    const charge = chargeOf(body);
    this.#held -= charge;
    this.#taken = (this.#taken + 1) >>> 0;
    this.#granted = (this.#granted + charge) >>> 0;
    return body;
  }
}
