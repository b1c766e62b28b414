/**
 * Models of folders on rings of the devices that are here, for tests that compare what they say with what it should be.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import assert from "node:assert/strict";
import { cpu } from "../../plugins/cpu.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { inProcess } from "../../plugins/memory.ts";
import { modelsIn, openModel } from "../../plugins/models.ts";
import { reference } from "../../plugins/reference.ts";
import { webgpu } from "../../plugins/webgpu.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { findLibrary } from "../../runtime/library.ts";
import type { DevicePlugin } from "../../runtime/plugin.ts";
import { openSession, type Session, type SessionOptions } from "../../runtime/session.ts";

/** Every family on every device and ring takes many minutes; `deno task models` does that. */
export const everything: boolean = Deno.env.get("ANNULUS_MODELS") === "all";

const all = [1, 2, 4, 5];
/** Devices that are here, with the rings that are tried on them. */
export const devices: ReadonlyArray<{
  readonly device: DevicePlugin;
  readonly rings: ReadonlyArray<number>;
}> = [
  { device: reference, rings: all },
  ...(findLibrary(libraryName) === undefined ? [] : [{ device: cpu, rings: [5] }]),
  ...(await findAdapter() === undefined ? [] : [{ device: webgpu, rings: [2] }]),
].map(({ device, rings }) => ({ device, rings: everything ? all : rings }));

/** Runs a model of a folder on rings of these sizes, one after the other. */
export const onRings = (
  folder: string,
  device: DevicePlugin,
  rings: ReadonlyArray<number>,
  use: (session: Session, ring: number) => Effect.Effect<void, unknown>,
  limits: Pick<SessionOptions, "rowsAtOnce" | "logitsAtOnce"> = {},
): Promise<void> =>
  Effect.scoped(Effect.gen(function* () {
    const found = yield* openModel(folder);
    const services = yield* Layer.build(inProcess(device, modelsIn([found])));
    for (const ring of rings) {
      yield* Effect.scoped(Effect.gen(function* () {
        const session = yield* openSession({
          ...{ model: found.hash, shape: found.model, ring },
          ...limits,
        });
        yield* use(session, ring);
      })).pipe(Effect.provideContext(services));
    }
  })).pipe(Effect.runPromise);

/** The most likely token so many times, in a sequence that begins with a prompt. */
export const mostLikelyAfter = Effect.fnUntraced(function* (
  session: Session,
  prompt: ReadonlyArray<number>,
  count: number,
) {
  const sequence = 1000;
  const said: Array<number> = [];
  let next = prompt;
  for (let n = 0; n < count; n++) {
    const [logits] = yield* session.extend([{ sequence, ids: next }]);
    const id = logits!.indexOf(Math.max(...logits!));
    said.push(id);
    next = [id];
  }
  return said;
});

/** The largest difference, as a share of the largest logit. */
export const apart = (
  found: Float32Array,
  needed: ReadonlyArray<ArrayLike<number>>,
): number => {
  const flat = needed.flatMap((row) => Array.from(row));
  assert.equal(found.length, flat.length);
  const largest = Math.max(...flat.map(Math.abs));
  return Math.max(...flat.map((x, i) => Math.abs(x - found[i]!))) / largest;
};
