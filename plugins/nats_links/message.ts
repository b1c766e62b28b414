/**
 * The messages that two ends of a NATS link exchange. Each begins with 28 bytes, little-endian:
 *
 * | bytes | field |
 * | --- | --- |
 * | 0–3 | the letters `anl1` |
 * | 4–7 | kind |
 * | 8–11 | `from`: the number that the speaker drew when it opened its end, never 0 |
 * | 12–15 | `to`: the same of the one spoken to; 0 while the speaker has not heard it |
 * | 16–19 | `sent`: frames that the speaker has sent, this one included |
 * | 20–23 | `received`: frames that reached the speaker |
 * | 24–27 | `taken`: frames that the speaker's consumer took |
 *
 * The three counts wrap around at 2³². `hello` goes on with the bytes that the speaker is ready to hold (u32), `frame`
 * with the frame, `done` and `left` with the reason in UTF-8, `alive` with nothing.
 *
 * @module
 */

/** What a message is for; its index is its number on the wire. */
export const kinds = ["hello", "frame", "alive", "done", "left"] as const;

/** One message. */
export interface Message {
  readonly kind: typeof kinds[number];
  readonly from: number;
  readonly to: number;
  readonly sent: number;
  readonly received: number;
  readonly taken: number;
  readonly body: Uint8Array;
}

/** Bytes before the body. */
export const headerBytes = 28;

const magic = 0x316c6e61;

/** The bytes of a message; the body is copied. */
export const encodeMessage = (message: Message): Uint8Array<ArrayBuffer> => {
  const bytes = new Uint8Array(headerBytes + message.body.length);
  const header = new DataView(bytes.buffer);
  const { kind, from, to, sent, received, taken } = message;
  [magic, kinds.indexOf(kind), from, to, sent, received, taken]
    .forEach((word, i) => header.setUint32(4 * i, word, true));
  bytes.set(message.body, headerBytes);
  return bytes;
};

/** The message in these bytes, or undefined if they are none. The body is a view of them. */
export const decodeMessage = (bytes: Uint8Array): Message | undefined => {
  if (bytes.length < headerBytes) return undefined;
  const header = new DataView(bytes.buffer, bytes.byteOffset, headerBytes);
  const word = (i: number) => header.getUint32(4 * i, true);
  const kind = kinds[word(1)];
  if (word(0) !== magic || kind === undefined || word(2) === 0) return undefined;
  const body = bytes.subarray(headerBytes);
  if (kind === "hello" && body.length !== 4) return undefined;
  const [from, to, sent, received, taken] = [word(2), word(3), word(4), word(5), word(6)];
  return { kind, from, to, sent, received, taken, body };
};
