/**
 * Moves a known number of bytes over a link, as frames that are verified one by one. Lost, doubled, reordered, damaged
 * and foreign frames end the transfer with an error, over whatever link.
 *
 * @module
 */
import { Effect } from "effect";
import type { FrameRejected, LinkError } from "./errors.ts";
import { type Address, openFrame, sealFrame } from "./frame.ts";
import type { Link } from "./link.ts";

/** What is moved: everything of a frame's address but the chunk, and its size, both known from the plan. */
export interface Transfer extends Omit<Address, "chunk" | "chunks"> {
  readonly bytes: number;
  /** Payload bytes of every chunk but the last; the same at both ends, and a multiple of 8. */
  readonly chunkBytes: number;
}

/** The byte ranges of a transfer, each as one chunk; none for an empty one. */
const chunksOf = ({ bytes, chunkBytes, ...address }: Transfer) => {
  const chunks = Math.ceil(bytes / chunkBytes);
  return Array.from({ length: chunks }, (_, chunk) => ({
    address: { ...address, chunk, chunks },
    from: chunk * chunkBytes,
    to: Math.min((chunk + 1) * chunkBytes, bytes),
  }));
};

/** Sends the bytes that `read` gives for each range [from, to), one chunk at a time. */
export const send = Effect.fn("send")(function* <E>(
  link: Link,
  transfer: Transfer,
  read: (from: number, to: number) => Effect.Effect<Uint8Array, E>,
) {
  for (const { address, from, to } of chunksOf(transfer)) {
    yield* link.send(sealFrame(address, yield* read(from, to)));
  }
});

/** Receives a transfer; `write` gets every verified payload with its first byte's offset, in order. */
export const receive = Effect.fn("receive")(function* <E>(
  link: Link,
  transfer: Transfer,
  write: (from: number, payload: Uint8Array) => Effect.Effect<void, E>,
) {
  for (const { address, from, to } of chunksOf(transfer)) {
    const payload: Uint8Array = yield* Effect.fromResult(
      openFrame(yield* link.receive, address, to - from),
    );
    yield* write(from, payload);
  }
});

/** Sends bytes that are in memory, each chunk once `until` says that the bytes before its end are. */
export const sendBytes = (
  link: Link,
  transfer: Transfer,
  bytes: Uint8Array,
  until: (end: number) => Effect.Effect<void> = () => Effect.void,
): Effect.Effect<void, LinkError> =>
  send(link, transfer, (from, to) => Effect.as(until(to), bytes.subarray(from, to)));

/** Receives into memory that is there; `arrived` is run for every chunk, with the end of what has been written. */
export const receiveInto = (
  bytes: Uint8Array,
  link: Link,
  transfer: Transfer,
  arrived: (end: number) => Effect.Effect<void>,
): Effect.Effect<void, LinkError | FrameRejected> =>
  receive(link, transfer, (from, payload) =>
    Effect.suspend(() => {
      bytes.set(payload, from);
      return arrived(from + payload.length);
    }));

/** Receives into new shared memory, which a device's Worker can read without a copy. */
export const receiveBytes = (
  link: Link,
  transfer: Transfer,
): Effect.Effect<Uint8Array, LinkError | FrameRejected> =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(new SharedArrayBuffer(transfer.bytes));
    return Effect.as(receiveInto(bytes, link, transfer, () => Effect.void), bytes);
  });
