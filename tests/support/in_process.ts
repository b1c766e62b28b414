/**
 * A kernel as a device of this thread. Without a Worker nothing runs beside it, which suits tests of what is around.
 *
 * @module
 */
import { Effect } from "effect";
import type { Device } from "../../runtime/device.ts";
import { DeviceFailed } from "../../runtime/errors.ts";
import { withLatents } from "../../runtime/latent_kernel.ts";
import type { AttentionKernel } from "../../runtime/kernel.ts";
import { hostPrograms } from "../../runtime/program_kernel.ts";

const settled = <A>(value: () => A | Promise<A>): Effect.Effect<A> =>
  Effect.promise(() => Promise.resolve(value()));

/** An accumulation that is closed with the scope. */
const opened = <A extends { readonly close: () => void }>(begin: () => A | Promise<A>) =>
  Effect.acquireRelease(settled(begin), (opened) => Effect.sync(() => opened.close()));

/** What the kernel throws is a defect, but for programs, of which it is asked what it refuses. */
export const inProcess = (plain: AttentionKernel): Device["Service"] => {
  const kernel = withLatents(plain);
  const { info, beginBackward } = kernel;
  const asked = <A>(attempted: string, value: () => A | Promise<A>) =>
    Effect.tryPromise({
      try: () => Promise.resolve().then(value),
      catch: (cause) =>
        new DeviceFailed({ device: info.name, attempted, found: (cause as Error).message }),
    });
  return {
    info,
    programs: (weights) =>
      Effect.map(
        opened(() => kernel.programs?.(weights) ?? hostPrograms(weights, kernel.linear)),
        (kernel) => ({
          fill: (...of) => asked("fill a weight", () => kernel.fill(...of)),
          run: (program) => asked("run a program", () => kernel.run(program)),
        }),
      ),
    begin: (queries) =>
      Effect.map(opened(() => kernel.begin(queries)), ({ absorb, finish }) => ({
        absorb: (...block) => Effect.as(settled(() => absorb(...block)), 0),
        finish: settled(finish),
      })),
    ...(beginBackward === undefined ? {} : {
      beginBackward: (queries, outcome) =>
        Effect.map(opened(() => beginBackward(queries, outcome)), ({ absorb, finish }) => ({
          absorb: (...block) =>
            Effect.map(settled(() => absorb(...block)), (gradients) => ({ gradients, busy: 0 })),
          finish: settled(finish),
        })),
    }),
  };
};
