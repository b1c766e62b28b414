/** What the sender of a link keeps of its frames. */
import assert from "node:assert/strict";
import { Outgoing } from "../../plugins/nats_links/outgoing.ts";
import { headerBytes, type Message } from "../../plugins/nats_links/message.ts";

const body = (size: number, filled: number) => new Uint8Array(size).fill(filled);

/** The peer has so many frames, and everything that was dispatched. */
const having = (received: number, beyond = 0n): Message => ({
  ...{ kind: "frame", from: 1, to: 0, epoch: 0, number: 0, dispatch: 0 },
  ...{ received, beyond, heard: received, taken: received, granted: 2 ** 30, body: body(0, 0) },
});

Deno.test("the memory of a frame is used again when the peer has it, and not before", () => {
  const outgoing = new Outgoing();
  outgoing.begin(2 ** 30, 0);
  const [first, second, third] = [1, 2, 3].map((filled) =>
    outgoing.add("frame", body(100, filled), 0)
  );
  assert.equal(new Set([first, second, third].map((frame) => frame!.bytes)).size, 3);
  // The peer has the first and the third.
  assert.ok(outgoing.acknowledge(having(1, 0b10n), 1));
  const fourth = outgoing.add("frame", body(100, 4), 2);
  const other = outgoing.add("frame", body(101, 5), 2);
  const fifth = outgoing.add("frame", body(100, 6), 2);
  assert.equal(fourth.bytes, first!.bytes);
  assert.equal(fifth.bytes, third!.bytes);
  const sixth = outgoing.add("frame", body(100, 7), 2);
  for (
    const [frame, filled] of [[second!, 2], [fourth, 4], [other, 5], [fifth, 6], [
      sixth,
      7,
    ]] as const
  ) {
    assert.ok(
      frame.bytes.subarray(headerBytes).every((x) => x === filled),
      `frame ${frame.number}`,
    );
  }
});

Deno.test("no more memory is kept than may be on its way", () => {
  const outgoing = new Outgoing();
  outgoing.begin(2 ** 30, 0);
  const size = 2 ** 20 - headerBytes;
  const before = Array.from({ length: 7 }, () => outgoing.add("frame", body(size, 1), 0).bytes);
  assert.ok(outgoing.acknowledge(having(7), 1));
  const after = Array.from({ length: 7 }, () => outgoing.add("frame", body(size, 1), 2).bytes);
  assert.deepEqual(after.map((bytes) => before.indexOf(bytes)), [3, 4, 5, 6, -1, -1, -1]);
});
