/** Bits flip where they are to flip, however the stream is cut into reads. */
import assert from "node:assert/strict";
import { uniform } from "../support/random.ts";
import { Bits, type Part } from "./bits.ts";

const stream = "INFO {}\r\nSUB a 1\r\nPUB a.b 0\r\n\r\nMSG a.b 1 c 12\r\nPUB a 9\r\n..\r\nPING\r\n";
const [payload, line] = [stream.indexOf("PUB a 9"), stream.indexOf("MSG")];

const passed = (part: Part, seed: number, chunk: number): Uint8Array => {
  let wanted: Part | undefined = part;
  const flipped: Array<Part> = [];
  const random = uniform(seed);
  const bits = new Bits(
    () => wanted,
    (part) => {
      wanted = undefined;
      flipped.push(part);
    },
    random,
  );
  const bytes = new TextEncoder().encode(stream);
  for (let at = 0; at < bytes.length; at += chunk) bits.pass(bytes.subarray(at, at + chunk));
  assert.deepEqual(flipped, [part]);
  return bytes;
};

for (
  const [part, begin, end] of [
    ["payload", payload, payload + 12],
    ["line", stream.indexOf("PUB a.b"), line + "MSG a.b 1 c 12".length],
  ] as const
) {
  Deno.test(`one bit of a message's ${part} flips, and no other`, () => {
    const original = new TextEncoder().encode(stream);
    for (let seed = 0; seed < 200; seed++) {
      // A line of which the end comes later has passed already; what is left of it flips.
      const bytes = passed(part, seed, part === "payload" ? 1 + seed % 20 : stream.length);
      const changed = [...bytes.keys()].filter((i) => bytes[i] !== original[i]);
      assert.equal(changed.length, 1);
      const [at] = changed as [number];
      assert.ok(at >= begin && at < end, `byte ${at}`);
      const apart = bytes[at]! ^ original[at]!;
      assert.equal(apart & (apart - 1), 0, "one bit");
    }
  });
}
