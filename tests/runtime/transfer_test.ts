import { Effect, Result } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { FileInvalid, LinkClosed } from "../../runtime/errors.ts";
import { headerBytes } from "../../runtime/frame.ts";
import { type Link, Links } from "../../runtime/link.ts";
import {
  receive,
  receiveBytes,
  receiveInto,
  send,
  sendBytes,
  type Transfer,
} from "../../runtime/transfer.ts";
import { faultKinds, faultyLinks } from "../support/faulty_links.ts";

const transfer = (bytes: number, chunkBytes: number): Transfer => ({
  run: "0123456789abcdef",
  epoch: 0,
  layer: 0,
  kind: "kv",
  block: 3,
  step: 1,
  from: 0,
  to: 1,
  bytes,
  chunkBytes,
});

/** A link into an array; what it is asked for beyond that is a closed link. */
const looped = (frames: Array<Uint8Array> = []): Link => ({
  send: (frame) => Effect.sync(() => void frames.push(frame)),
  receive: Effect.suspend(() => {
    const frame = frames.shift();
    const closed = { run: "run", self: "1", peer: "0", done: true, reason: "that was all" };
    return frame === undefined ? Effect.fail(new LinkClosed(closed)) : Effect.succeed(frame);
  }),
  drain: Effect.void,
  broken: Effect.never,
});

const noise = (length: number) => Uint8Array.from({ length }, (_, i) => i * 151 + (i >> 8));

const anySize = fc.tuple(fc.nat(2000), fc.integer({ min: 1, max: 40 }).map((n) => 8 * n));

Deno.test("sendBytes() and receiveBytes() move any number of bytes in as few frames as will do", async () => {
  await fc.assert(fc.asyncProperty(anySize, async ([length, chunkBytes]) => {
    const frames: Array<Uint8Array> = [];
    const [link, what, bytes] = [looped(frames), transfer(length, chunkBytes), noise(length)];
    await Effect.runPromise(sendBytes(link, what, bytes));
    assert.equal(frames.length, Math.ceil(length / chunkBytes));
    for (const frame of frames) assert.ok(frame.length <= headerBytes + chunkBytes);
    const copies = [...frames];
    const received = await Effect.runPromise(receiveBytes(link, what));
    assert.deepEqual(received, bytes);
    assert.ok(received.buffer instanceof SharedArrayBuffer, "a Worker can read it without a copy");
    const ends: Array<number> = [];
    const into = new Uint8Array(length);
    await Effect.runPromise(receiveInto(into, looped(copies), what, (end) =>
      Effect.sync(() => {
        assert.deepEqual(into.subarray(0, end), bytes.subarray(0, end));
        ends.push(end);
      })));
    assert.deepEqual(
      ends,
      Array.from(
        { length: Math.ceil(length / chunkBytes) },
        (_, i) => Math.min((i + 1) * chunkBytes, length),
      ),
    );
  }));
});

Deno.test("send() reads one range at a time, in order, and no further once reading fails", async () => {
  const ranges: Array<readonly [number, number]> = [];
  const unreadable = new FileInvalid({ attempted: "read", file: "f", needed: "n", found: "x" });
  const frames: Array<Uint8Array> = [];
  const sending = send(looped(frames), transfer(50, 16), (from, to) => {
    ranges.push([from, to]);
    return from === 32 ? Effect.fail(unreadable) : Effect.succeed(noise(to).subarray(from));
  });
  assert.equal(await Effect.runPromise(Effect.flip(sending)), unreadable);
  assert.deepEqual(ranges, [[0, 16], [16, 32], [32, 48]]);
  assert.equal(frames.length, 2);
});

Deno.test("receive() writes every payload where it belongs", async () => {
  const link = looped();
  await Effect.runPromise(sendBytes(link, transfer(50, 16), noise(50)));
  const written: Array<readonly [number, number]> = [];
  await Effect.runPromise(receive(link, transfer(50, 16), (from, payload) =>
    Effect.sync(() => {
      written.push([from, payload.length]);
      assert.deepEqual(payload, noise(50).subarray(from, from + payload.length));
    })));
  assert.deepEqual(written, [[0, 16], [16, 16], [32, 16], [48, 2]]);
});

for (const kind of faultKinds) {
  Deno.test(`receiveBytes() takes no transfer of which links ${kind} a frame`, async () => {
    const chunks = 4;
    for (let at = 0; at < chunks; at++) {
      const frames: Array<Uint8Array> = [];
      const result = await Effect.gen(function* () {
        const links = Links.of({
          name: "looped",
          maxFrame: 1e6,
          open: () => Effect.succeed(looped(frames)),
          counts: () => ({}),
        });
        const link = yield* faultyLinks(links, { kind, at }).open({ run: "run", self: 0, peer: 1 });
        const next = { ...transfer(64, 16), block: 4 };
        yield* sendBytes(link, transfer(64, 16), noise(64));
        yield* sendBytes(link, next, noise(64));
        yield* receiveBytes(link, transfer(64, 16));
        // A frame too many is found by the transfer that follows.
        yield* receiveBytes(link, next);
      }).pipe(Effect.scoped, Effect.result, Effect.runPromise);
      assert.ok(Result.isFailure(result), `frame ${at}`);
      assert.equal(result.failure._tag, "FrameRejected", `frame ${at}`);
    }
  });
}

Deno.test("receiveBytes() takes no transfer but the one that it expects", async () => {
  const there = transfer(32, 16);
  const others: ReadonlyArray<Partial<Transfer>> = [
    { run: "fedcba9876543210" },
    { epoch: 1 },
    { layer: 1 },
    { kind: "o" },
    { block: 2 },
    { step: 2 },
    { from: 2 },
    { to: 2 },
    { bytes: 31 },
    { bytes: 33 },
  ];
  for (const other of others) {
    const link = looped();
    const found = { ...there, ...other };
    await Effect.runPromise(sendBytes(link, found, noise(found.bytes)));
    const error = await Effect.runPromise(Effect.flip(receiveBytes(link, there)));
    assert.equal(error._tag, "FrameRejected", JSON.stringify(other));
  }
});
