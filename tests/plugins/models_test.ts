/** Models on rings: logits are those of a float64 decoder, whatever the family, the ring and the device. */
import { Effect, Layer } from "effect";
import assert from "node:assert/strict";
import { cpu } from "../../plugins/cpu.ts";
import { inProcess } from "../../plugins/memory.ts";
import { modelsIn, openModel } from "../../plugins/models.ts";
import { reference } from "../../plugins/reference.ts";
import type { DevicePlugin } from "../../runtime/plugin.ts";
import { openSession, type Session } from "../../runtime/session.ts";
import { decoderLogits } from "../support/decoder.ts";
import { inFolder } from "../support/in_folder.ts";
import {
  asWeights,
  type ModelCase,
  modelCases,
  tensorsFor,
  writeModel,
} from "../support/models.ts";
import { uniform } from "../support/random.ts";

const idsFor = (seed: number, count: number) => {
  const next = uniform(seed);
  return Array.from({ length: count }, () => Math.floor(97 * next()));
};

/** Runs a model of a folder on rings of these sizes, one after the other. */
const onRings = (
  folder: string,
  device: DevicePlugin,
  rings: ReadonlyArray<number>,
  use: (session: Session, ring: number) => Effect.Effect<void, unknown>,
  rowsAtOnce?: number,
) =>
  Effect.scoped(Effect.gen(function* () {
    const found = yield* openModel(folder);
    const services = yield* Layer.build(inProcess(device, modelsIn([found])));
    for (const ring of rings) {
      yield* Effect.scoped(Effect.gen(function* () {
        const session = yield* openSession({
          ...{ model: found.hash, vocabulary: found.model.vocabulary, ring },
          ...(rowsAtOnce === undefined ? {} : { rowsAtOnce }),
        });
        yield* use(session, ring);
      })).pipe(Effect.provideContext(services));
    }
  })).pipe(Effect.runPromise);

/** The largest difference, as a share of the largest logit. */
const apart = (found: Float32Array, needed: ReadonlyArray<Float64Array>) => {
  const flat = needed.flatMap((row) => [...row]);
  assert.equal(found.length, flat.length);
  const largest = Math.max(...flat.map(Math.abs));
  return Math.max(...flat.map((x, i) => Math.abs(x - found[i]!))) / largest;
};

const referenceOf = (
  model: ModelCase,
  tensors: ReturnType<typeof tensorsFor>,
  ids: Array<number>,
) => decoderLogits(model.config, asWeights(tensors), ids, model.windowOf);

for (const [i, model] of modelCases.entries()) {
  inFolder(`${model.name}: logits are those of float64 for every ring`, async (folder) => {
    const tensors = tensorsFor(model, 1000 * i);
    await writeModel(folder, model, tensors, 1 + i % 3);
    const ids = idsFor(i, 61);
    const needed = referenceOf(model, tensors, ids);
    for (const device of [reference, cpu]) {
      await onRings(folder, device, [1, 2, 4, 5], (session, ring) =>
        Effect.gen(function* () {
          // All at once; in pieces that are multiples of nothing; and token by token at the end.
          const [all] = yield* session.extend([{ sequence: 0, ids, wanted: ids.length }]);
          assert.ok(
            apart(all!, needed) < 1e-5,
            `${device.name}, ring of ${ring}: ${apart(all!, needed)}`,
          );
          let at = 0;
          for (const count of [23, 1, 1, 1, 19, 7, 1, 1, 1, 1, 1, 4]) {
            const piece = ids.slice(at, at + count);
            const [some] = yield* session.extend([{ sequence: 1, ids: piece, wanted: count }]);
            const error = apart(some!, needed.slice(at, at + count));
            assert.ok(error < 1e-5, `${device.name}, ring of ${ring}, from ${at}: ${error}`);
            at += count;
          }
          assert.equal(session.lengthOf(1), ids.length);
        }));
    }
  });
}
