/**
 * Bits that flip on the way: finds messages in the stream between a NATS client and its server, and flips a bit in the
 * next one that is to have one. NATS itself has no checksum.
 *
 * @module
 */

/** Where in a message: in what a member said, or in the line before it by which server and client find its end. */
export type Part = "payload" | "line";

const newline = "\n".charCodeAt(0);
const carriageReturn = "\r".charCodeAt(0);
/** Only these lines; what a subscription that is damaged would mean is another matter. */
const message = /^H?(?:PUB|MSG) .* (\d+)\r?\n$/;

/** One direction of one connection. */
export class Bits {
  readonly #wanted: () => Part | undefined;
  readonly #flipped: (part: Part) => void;
  readonly #random: () => number;
  /** The line so far, and then the bytes of a payload and its line end that are still to come. */
  #line = "";
  #left = 0;
  /** Of the payload that passes: where before its end a bit is to flip. */
  #at = -1;

  /**
   * @param wanted Which part of a message is to be damaged now, if any.
   * @param flipped Is told when it was.
   */
  constructor(
    wanted: () => Part | undefined,
    flipped: (part: Part) => void,
    random: () => number,
  ) {
    this.#wanted = wanted;
    this.#flipped = flipped;
    this.#random = random;
  }

  /** Takes the next bytes of the stream, and damages them where they lie. */
  pass(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      if (this.#left > 0) {
        const taken = Math.min(this.#left, bytes.length - at);
        const flip = this.#left - this.#at;
        if (this.#at >= 0 && flip < taken) {
          this.#flip(bytes, at + flip, "payload");
          this.#at = -1;
        }
        this.#left -= taken;
        at += taken;
        continue;
      }
      const end = bytes.indexOf(newline, at) + 1;
      const until = end === 0 ? bytes.length : end;
      this.#line += new TextDecoder("latin1").decode(bytes.subarray(at, until));
      if (end > 0) this.#ended(bytes, at, end);
      at = until;
    }
  }

  #ended(bytes: Uint8Array, begin: number, end: number): void {
    const found = message.exec(this.#line);
    this.#line = "";
    if (found === null) return;
    const size = Number(found[1]);
    this.#left = size + 2;
    const wanted = this.#wanted();
    if (wanted === "payload" && size > 0) this.#at = 3 + Math.floor(this.#random() * size);
    const last = bytes[end - 2] === carriageReturn ? end - 2 : end - 1;
    if (wanted === "line" && last > begin) {
      this.#flip(bytes, begin + Math.floor(this.#random() * (last - begin)), "line");
    }
  }

  #flip(bytes: Uint8Array, at: number, part: Part): void {
    bytes[at]! ^= 1 << Math.floor(this.#random() * 8);
    this.#flipped(part);
  }
}
