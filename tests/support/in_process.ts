/**
 * A kernel as a device of this thread. Without a Worker nothing runs beside it, which suits tests of what is around.
 *
 * @module
 */
import { Effect } from "effect";
import type { Device } from "../../runtime/device.ts";
import type { AttentionKernel } from "../../runtime/kernel.ts";

const settled = <A>(value: () => A | Promise<A>): Effect.Effect<A> =>
  Effect.promise(() => Promise.resolve(value()));

/** What the kernel throws is a defect. */
export const inProcess = (kernel: AttentionKernel): Device["Service"] => ({
  info: kernel.info,
  begin: (queries) =>
    Effect.map(
      Effect.acquireRelease(
        settled(() => kernel.begin(queries)),
        (accumulation) => Effect.sync(accumulation.close),
      ),
      (accumulation) => ({
        absorb: (block, tiles, band) =>
          Effect.as(settled(() => accumulation.absorb(block, tiles, band)), 0),
        finish: settled(accumulation.finish),
      }),
    ),
});
