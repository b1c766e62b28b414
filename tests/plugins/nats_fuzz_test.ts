/** Whatever bytes arrive, they are a message or none: nothing throws, and nothing is taken for what it is not. */
import { Effect, Exit, Result } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { answers, cards, events, requests } from "../../plugins/nats_cluster/control.ts";
import { Conversation } from "../../plugins/nats_links/conversation.ts";
import {
  decodeMessage,
  encodeMessage,
  headerBytes,
  kinds,
  type Message,
} from "../../plugins/nats_links/message.ts";
import { type Address, openFrame, sealFrame } from "../../runtime/frame.ts";

const u32 = fc.integer({ min: 0, max: 2 ** 32 - 1 });
const message: fc.Arbitrary<Message> = fc.record({
  kind: fc.constantFrom(...kinds),
  from: fc.integer({ min: 1, max: 3 }),
  to: fc.integer({ min: 0, max: 2 }),
  epoch: fc.nat(2),
  number: fc.oneof(fc.nat(5), u32),
  dispatch: fc.oneof(fc.nat(5), u32),
  received: fc.oneof(fc.nat(5), u32),
  beyond: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  heard: fc.oneof(fc.nat(5), u32),
  taken: fc.oneof(fc.nat(5), u32),
  granted: u32,
  body: fc.uint8Array({ maxLength: 50 }),
});

/** Bytes that were a message before some of them changed. */
const damaged = (bytes: fc.Arbitrary<Uint8Array>) =>
  fc.tuple(bytes, fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 3 }), fc.nat(3)).map(
    ([bytes, changes, cut]) => {
      const copy = new Uint8Array(bytes.subarray(0, Math.max(0, bytes.length - cut)));
      for (const [at, value] of changes) if (copy.length > 0) copy[at % copy.length] = value;
      return copy;
    },
  );

Deno.test("bytes are a message or they are none", () => {
  fc.assert(
    fc.property(
      fc.oneof(fc.uint8Array({ maxLength: 200 }), damaged(message.map(encodeMessage))),
      (bytes) => {
        const found = decodeMessage(bytes);
        if (typeof found === "string") return;
        // What is taken for a message is the one that these bytes are.
        assert.deepEqual(encodeMessage(found), new Uint8Array(bytes));
      },
    ),
    { numRuns: 20_000 },
  );
});

Deno.test("a conversation survives whatever sequence of messages it hears, and gives no frame twice", () => {
  fc.assert(
    fc.property(fc.array(message, { minLength: 1, maxLength: 60 }), (heard) => {
      let now = 0;
      const conversation = new Conversation({ run: "run", self: 0, peer: 1 }, {
        session: 1,
        windowBytes: 4096,
        maxBody: 1 << 16,
        publish: (_, bytes) => assert.ok(bytes.length >= headerBytes),
        now: () => now,
        count: () => {},
      });
      const taken: Array<Uint8Array> = [];
      for (const one of heard) {
        now += 7;
        conversation.hear(encodeMessage({ ...one, epoch: 0 }));
        conversation.tick();
        conversation.pulse();
        conversation.offer(Uint8Array.of(1));
        const frame = conversation.take();
        if (frame === undefined) continue;
        const exit = Effect.runSyncExit(frame);
        if (Exit.isSuccess(exit)) taken.push(exit.value);
      }
      // The nth frame that comes out is one that was numbered n, and came from the one peer that it met.
      taken.forEach((frame, i) =>
        assert.ok(
          heard.some(({ kind, number, body }) =>
            kind === "frame" && number === i + 1 && body.length === frame.length &&
            body.every((byte, at) => byte === frame[at])
          ),
        )
      );
    }),
    { numRuns: 3000 },
  );
});

Deno.test("bytes are the frame that comes next or they are refused", () => {
  const address: Address = {
    ...{ run: "0123456789abcdef", epoch: 1, layer: 0, block: 3, step: 2 },
    ...{ from: 1, to: 2, chunk: 0, chunks: 4 },
    kind: "kv",
  };
  const payload = Uint8Array.from({ length: 40 }, (_, i) => i);
  const sealed = sealFrame(address, payload);
  fc.assert(
    fc.property(
      fc.oneof(fc.uint8Array({ maxLength: 150 }), damaged(fc.constant(sealed))),
      fc.nat(80),
      (bytes, length) => {
        const opened = openFrame(bytes, address, length);
        if (Result.isFailure(opened)) return;
        assert.deepEqual(new Uint8Array(bytes), new Uint8Array(sealed));
        assert.deepEqual(new Uint8Array(opened.success), payload);
        assert.equal(length, payload.length);
      },
    ),
    { numRuns: 20_000 },
  );
});

Deno.test("control messages are understood or refused, whatever they are", () => {
  const deep = "[".repeat(100_000);
  const texts = fc.oneof(
    fc.string(),
    fc.json({ maxDepth: 6 }),
    fc.constantFrom(
      deep,
      `{"ask":${deep}`,
      "null",
      '{"ask":"offer"}',
      '{"event":"beat","beat":{}}',
    ),
    fc.record({ ask: fc.constantFrom("offer", "regroup", "release", "ping"), run: fc.string() })
      .map((value) => JSON.stringify(value)),
  ).map((text) => new TextEncoder().encode(text));
  fc.assert(
    fc.property(fc.oneof(texts, fc.uint8Array({ maxLength: 100 })), (bytes) => {
      for (const { decode } of [cards, requests, answers, events]) decode(bytes);
    }),
    { numRuns: 3000 },
  );
});
