/**
 * Links that do to one frame what a network may do, so that suites and transfers can be shown to notice.
 *
 * @module
 */
import { Effect } from "effect";
import type { Link, Links } from "../../runtime/link.ts";

/** What happens to a frame. `reorder` lets the next frame overtake it; `flip` changes one bit of it. */
export const faultKinds = ["drop", "duplicate", "reorder", "flip"] as const;

/** A fault, and the frame sent over each link that it happens to, counted from 0. */
export interface Fault {
  readonly kind: typeof faultKinds[number];
  readonly at: number;
}

const flipped = (frame: Uint8Array): Uint8Array => {
  const copy = new Uint8Array(frame);
  const middle = copy.length >> 1;
  copy[middle] = copy[middle]! ^ 0x10;
  return copy;
};

/** The same links with a fault in what each end sends. */
export const faultyLinks = (inner: Links["Service"], fault: Fault): Links["Service"] => ({
  ...inner,
  open: (ends) =>
    Effect.map(inner.open(ends), (link): Link => {
      let count = 0;
      let late: Uint8Array | undefined;
      return {
        ...link,
        send: (frame) =>
          Effect.suspend(() => {
            const hit = count++ === fault.at;
            if (late !== undefined) {
              const both = [frame, late];
              late = undefined;
              return Effect.forEach(both, link.send, { discard: true });
            }
            if (!hit) return link.send(frame);
            switch (fault.kind) {
              case "drop":
                return Effect.void;
              case "duplicate":
                return Effect.andThen(link.send(frame), link.send(frame));
              case "reorder":
                late = new Uint8Array(frame);
                return Effect.void;
              case "flip":
                return link.send(flipped(frame));
            }
          }),
      };
    }),
});
