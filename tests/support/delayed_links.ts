/**
 * Links on which every frame is on its way for a while, as many at once as there are, and which are counted.
 *
 * @module
 */
import { Clock, Effect, Layer } from "effect";
import { type Kind, kinds } from "../../runtime/frame.ts";
import { type Ends, Links } from "../../runtime/link.ts";

/** What a frame is part of. */
const kindOf = (frame: Uint8Array): Kind =>
  kinds[new DataView(frame.buffer, frame.byteOffset).getUint16(6, true)]!;

/** @param counted Frames by what they are part of. */
export const delayed = (
  milliseconds: number,
  counted: Map<Kind, number>,
): Layer.Layer<Links, never, Links> =>
  Layer.effect(
    Links,
    Effect.map(Links, (links) => {
      /** When the frames of each direction were sent that have not been taken. */
      const sent = new Map<string, Array<number>>();
      const way = ({ run, lane, epoch }: Ends, from: Ends["self"], to: Ends["self"]) => {
        const name = JSON.stringify([run, epoch, lane, from, to]);
        const there = sent.get(name) ?? [];
        sent.set(name, there);
        return there;
      };
      return Links.of({
        ...links,
        open: (ends) =>
          Effect.map(links.open(ends), (link) => ({
            ...link,
            send: (frame) =>
              Effect.gen(function* () {
                const kind = kindOf(frame);
                counted.set(kind, (counted.get(kind) ?? 0) + 1);
                way(ends, ends.self, ends.peer).push(yield* Clock.currentTimeMillis);
                yield* link.send(frame);
              }),
            receive: Effect.gen(function* () {
              const frame = yield* link.receive;
              const at = way(ends, ends.peer, ends.self).shift()! + milliseconds;
              const now = yield* Clock.currentTimeMillis;
              if (at > now) yield* Effect.sleep(at - now);
              return frame;
            }),
          })),
      });
    }),
  );
