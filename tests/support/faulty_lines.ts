/**
 * Lines that do to messages at random what a messaging system may do, the same for the same seed.
 *
 * @module
 */
import type { Line, Lines } from "../../plugins/nats_links/line.ts";
import { uniform } from "./random.ts";

/** How likely each fault is for a message, from 0 to 1. */
export interface Faults {
  readonly loss?: number;
  readonly duplicate?: number;
  /** Lets up to three later messages overtake it, or those of two milliseconds. */
  readonly reorder?: number;
  /** Changes one bit of it. */
  readonly corrupt?: number;
}

/** Milliseconds after which a message that is overtaken comes at the latest. */
const latest = 2;

const corrupted = (bytes: Uint8Array, at: number): Uint8Array => {
  const copy = new Uint8Array(bytes);
  const bit = Math.floor(at * 8 * copy.length);
  copy[bit >> 3]! ^= 1 << (bit & 7);
  return copy;
};

const faultyLine = (line: Line, faults: Faults, seed: number): Line => {
  const { loss = 0, duplicate = 0, reorder = 0, corrupt = 0 } = faults;
  const next = uniform(seed);
  const late = new Set<{ behind: number; readonly send: () => void }>();
  return {
    ...line,
    publish: (subject, bytes, reply) => {
      const [lost, twice, held, odd] = [next(), next(), next(), next()];
      const damage = next(), overtaken = next();
      for (const message of late) message.behind--;
      if (lost < loss) return;
      const sent = odd < corrupt ? corrupted(bytes, damage) : bytes;
      if (held < reorder) {
        const copy = new Uint8Array(sent);
        const message = {
          behind: 1 + Math.floor(3 * overtaken),
          send: () => {
            if (late.delete(message)) line.publish(subject, copy, reply);
          },
        };
        late.add(message);
        setTimeout(message.send, latest);
      } else {
        line.publish(subject, sent, reply);
        if (twice < duplicate) line.publish(subject, sent, reply);
      }
      for (const message of late) if (message.behind <= 0) message.send();
    },
  };
};

/** The same lines with faults in everything that is published on them. */
export const faultyLines = ({ bulk, control }: Lines, faults: Faults, seed: number): Lines => ({
  bulk: faultyLine(bulk, faults, 2 * seed),
  control: faultyLine(control, faults, 2 * seed + 1),
});
