/**
 * Frames: the unit of every bulk transfer. A fixed 64-byte little-endian header, then raw tensor bytes. A receiver
 * knows from the plan what comes next, and takes nothing else.
 *
 * | byte | field | | byte | field |
 * | --- | --- | --- | --- | --- |
 * | 0 | magic "ANLS" | | 32 | chunk, from 0 |
 * | 4 | version, u16 | | 36 | chunks in the transfer |
 * | 6 | kind, u16 | | 40 | payload bytes |
 * | 8 | run, u64 | | 44 | payload CRC-32 |
 * | 16 | epoch | | 48 | sender's slot, u16 |
 * | 20 | layer | | 50 | receiver's slot, u16 |
 * | 24 | block (of K/V) or rank (of the rest) | | 52 | zero |
 * | 28 | step: hops from the block's home | | 60 | header CRC-32 of bytes 0 to 59 |
 *
 * Fields without a type are u32. TCP's checksum lets about one bad packet in ten million pass, and a broker's framing
 * slips can reach the application; the CRCs catch both.
 *
 * @module
 */
import { Result } from "effect";
import { crc32 } from "node:zlib";
import { FrameRejected } from "./errors.ts";
import { type Slot, slotName } from "./link.ts";

/** Bytes of the header. */
export const headerBytes = 64;
/** Version of the wire format. */
const frameVersion = 1;
const magic = 0x534c4e41; // "ANLS", read as a little-endian number

/**
 * What the payload is part of: queries, a K/V block, a rank's result; for gradients the cotangent, a K/V block on its
 * second way around, the gradients of a block on their way home, and dq. A checkpoint begins with its mark, and so does a
 * turn of a model, which brings ids of tokens and gives logits, and what a rank tells of what it keeps.
 */
export const kinds = [
  ...["q", "kv", "o", "lse", "do", "kv again", "dkv", "dq", "up", "mark"] as const,
  ...["turn", "ids", "logits", "told"] as const,
] as const;
/** What the payload is part of. */
export type Kind = typeof kinds[number];

/** Everything about a frame that both ends know from the plan. */
export interface Address {
  readonly run: string;
  readonly epoch: number;
  readonly layer: number;
  readonly kind: Kind;
  /** The block's id for K/V, the rank for the rest. */
  readonly block: number;
  /** Hops from the block's home to the receiver; 0 between driver and rank. */
  readonly step: number;
  readonly from: Slot;
  readonly to: Slot;
  readonly chunk: number;
  readonly chunks: number;
}

const slotNumber = (slot: Slot): number => slot === "driver" ? 0xffff : slot;
const writeHeader = (view: DataView, address: Address, payload: Uint8Array): void => {
  view.setUint32(0, magic, true);
  view.setUint16(4, frameVersion, true);
  view.setUint16(6, kinds.indexOf(address.kind), true);
  view.setBigUint64(8, BigInt(`0x${address.run}`), true);
  view.setUint32(16, address.epoch, true);
  view.setUint32(20, address.layer, true);
  view.setUint32(24, address.block, true);
  view.setUint32(28, address.step, true);
  view.setUint32(32, address.chunk, true);
  view.setUint32(36, address.chunks, true);
  view.setUint32(40, payload.byteLength, true);
  view.setUint32(44, crc32(payload), true);
  view.setUint16(48, slotNumber(address.from), true);
  view.setUint16(50, slotNumber(address.to), true);
};

/** A frame as one array: header, then a copy of the payload. */
export const sealFrame = (address: Address, payload: Uint8Array): Uint8Array<ArrayBuffer> => {
  const frame = new Uint8Array(headerBytes + payload.byteLength);
  frame.set(payload, headerBytes);
  const view = new DataView(frame.buffer);
  writeHeader(view, address, frame.subarray(headerBytes));
  view.setUint32(60, crc32(frame.subarray(0, 60)), true);
  return frame;
};

/**
 * The payload of a frame, a view into it, if the frame is exactly the one at `address` with `length` payload bytes.
 * Checks go from cheap to dear, and the sentence names the first field that differs.
 */
export const openFrame = (
  frame: Uint8Array,
  address: Address,
  length: number,
): Result.Result<Uint8Array, FrameRejected> => {
  const reject = (field: string, needed: unknown, found: unknown) =>
    Result.fail(
      new FrameRejected({
        run: address.run,
        peer: slotName(address.from),
        what: `${address.kind} ${address.block}, chunk ${address.chunk + 1} of ${address.chunks}`,
        field,
        needed: String(needed),
        found: String(found),
      }),
    );
  if (frame.byteLength < headerBytes) {
    return reject("length", `at least ${headerBytes} bytes`, frame.byteLength);
  }
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  const word = (at: number) => view.getUint32(at, true);
  if (word(0) !== magic) {
    return reject("magic", `0x${magic.toString(16)}`, `0x${word(0).toString(16)}`);
  }
  const headerCrc = crc32(frame.subarray(0, 60));
  if (word(60) !== headerCrc) return reject("header CRC-32", headerCrc, word(60));
  const half = (at: number) => view.getUint16(at, true);
  const payload = frame.subarray(headerBytes);
  const fields: ReadonlyArray<readonly [string, unknown, unknown]> = [
    ["version", frameVersion, half(4)],
    ["kind", address.kind, kinds[half(6)] ?? half(6)],
    ["run", address.run, view.getBigUint64(8, true).toString(16).padStart(16, "0")],
    ["epoch", address.epoch, word(16)],
    ["layer", address.layer, word(20)],
    ["block", address.block, word(24)],
    ["step", address.step, word(28)],
    ["chunk", address.chunk, word(32)],
    ["number of chunks", address.chunks, word(36)],
    ["sender", slotNumber(address.from), half(48)],
    ["receiver", slotNumber(address.to), half(50)],
    ["payload length", length, word(40)],
    ["payload length", length, payload.byteLength],
  ];
  for (const [field, needed, found] of fields) {
    if (needed !== found) return reject(field, needed, found);
  }
  const crc = crc32(payload);
  return crc === word(44) ? Result.succeed(payload) : reject("payload CRC-32", word(44), crc);
};
