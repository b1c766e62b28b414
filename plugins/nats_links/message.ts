/**
 * The messages that two ends of a NATS link exchange. Each begins with 64 bytes, little-endian:
 *
 * | byte | field | | byte | field |
 * | --- | --- | --- | --- | --- |
 * | 0 | the letters `anl2` | | 32 | `beyond`: which of the next 64 arrived, u64 |
 * | 4 | kind | | 40 | `heard`: the latest `dispatch` that arrived |
 * | 8 | `from`: number of the speaker's end, never 0 | | 44 | `taken`: frames that the speaker's consumer took |
 * | 12 | `to`: the same of the one spoken to, or 0 | | 48 | `granted`: bytes that the peer may send in all |
 * | 16 | `epoch` of the run | | 52 | bytes of the body |
 * | 20 | `number` of the frame, or of the last one | | 56 | CRC-32 of the body |
 * | 24 | `dispatch`: of messages that may be lost | | 60 | CRC-32 of bytes 0 to 59 |
 * | 28 | `received`: all frames up to it arrived | | 64 | the body |
 *
 * Every field without a type is u32, and counts wrap around at 2³². A frame is repeated with its number and another
 * `dispatch`, so that `heard` always tells which of several copies arrived.
 *
 * @module
 */
import { crc32 } from "node:zlib";

/**
 * What a message is for; its index is its number on the wire. `hello` opens an end, `frame` carries bytes, `probe` asks
 * for an answer in the way of the frames, `alive` is that answer and a sign of life, `done` and `left` are farewells
 * with their reason in UTF-8; `done` has a number among the frames.
 */
export const kinds = ["hello", "frame", "probe", "alive", "done", "left"] as const;

/** One message. */
export interface Message {
  readonly kind: typeof kinds[number];
  readonly from: number;
  readonly to: number;
  readonly epoch: number;
  readonly number: number;
  readonly dispatch: number;
  readonly received: number;
  readonly beyond: bigint;
  readonly heard: number;
  readonly taken: number;
  readonly granted: number;
  readonly body: Uint8Array;
}

/** Bytes before the body. */
export const headerBytes = 64;

const magic = 0x326c6e61;

/** Writes everything before the body, of which it is told the CRC-32. */
export const stamp = (
  bytes: Uint8Array,
  message: Omit<Message, "body">,
  bodyCrc: number,
): void => {
  const header = new DataView(bytes.buffer, bytes.byteOffset, headerBytes);
  const { kind, from, to, epoch, number, dispatch, received, beyond, heard, taken, granted } =
    message;
  [magic, kinds.indexOf(kind), from, to, epoch, number, dispatch, received]
    .forEach((word, i) => header.setUint32(4 * i, word, true));
  header.setBigUint64(32, beyond, true);
  [heard, taken, granted, bodyCrc, 0]
    .forEach((word, i) => header.setUint32(40 + 4 * i, word, true));
  header.setUint32(60, crc32(bytes.subarray(0, 60)), true);
};

/** The bytes of a message; the body is copied. */
export const encodeMessage = ({ body, ...rest }: Message): Uint8Array<ArrayBuffer> => {
  const bytes = new Uint8Array(headerBytes + body.length);
  bytes.set(body, headerBytes);
  stamp(bytes, rest, crc32(body));
  return bytes;
};

/** Why bytes are no message. */
export type Flaw = "length" | "magic" | "header" | "kind" | "body";

/** The message in these bytes, or why they are none. The body is a view of them. */
export const decodeMessage = (bytes: Uint8Array): Message | Flaw => {
  if (bytes.length < headerBytes) return "length";
  const header = new DataView(bytes.buffer, bytes.byteOffset, headerBytes);
  const word = (at: number) => header.getUint32(at, true);
  if (word(0) !== magic) return "magic";
  if (word(60) !== crc32(bytes.subarray(0, 60))) return "header";
  const kind = kinds[word(4)];
  if (kind === undefined || word(8) === 0) return "kind";
  const body = bytes.subarray(headerBytes);
  if (word(52) !== crc32(body)) return "body";
  return {
    kind,
    from: word(8),
    to: word(12),
    epoch: word(16),
    number: word(20),
    dispatch: word(24),
    received: word(28),
    beyond: header.getBigUint64(32, true),
    heard: word(40),
    taken: word(44),
    granted: word(48),
    body,
  };
};
