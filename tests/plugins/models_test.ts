/** Models on rings: logits are those of a float64 decoder, whatever the family, the ring and the device. */
import { Effect } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { reference } from "../../plugins/reference.ts";
import { webgpu } from "../../plugins/webgpu.ts";
import { decoderLogits } from "../support/decoder.ts";
import { inFolder } from "../support/in_folder.ts";
import { apart, devices, everything, mostLikelyAfter, onRings } from "../support/model_rings.ts";
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
    for (const { device, rings } of devices) {
      // Some of the families: `deno task models` has them all.
      if (device === webgpu && !everything && i % 3 !== 1) continue;
      await onRings(folder, device, rings, (session, ring) =>
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

inFolder("whatever the turns in which a text comes, its logits are the same", async (folder) => {
  const model = modelCases.find(({ name }) => name === "Qwen3 with layer types")!;
  const tensors = tensorsFor(model, 21);
  await writeModel(folder, model, tensors);
  const ids = idsFor(8, 67);
  const needed = referenceOf(model, tensors, ids);
  let sequence = 0;
  await onRings(folder, reference, [1, 3, 4], (session, ring) =>
    Effect.promise(() =>
      fc.assert(
        fc.asyncProperty(
          fc.uniqueArray(fc.integer({ min: 1, max: ids.length - 1 }), { maxLength: 12 }),
          async (cuts) => {
            const ends = [...cuts.toSorted((a, b) => a - b), ids.length];
            let at = 0;
            for (const end of ends) {
              const [found] = await Effect.runPromise(session.extend([
                { sequence, ids: ids.slice(at, end), wanted: end - at },
              ]));
              const error = apart(found!, needed.slice(at, end));
              assert.ok(error < 1e-5, `ring of ${ring}, ${at} to ${end}: ${error}`);
              at = end;
            }
            session.drop(sequence++);
          },
        ),
        { numRuns: 12 },
      )
    ));
});

inFolder(
  "a text that shares the begin of another has its own logits, wherever that is cut",
  async (folder) => {
    const model = modelCases.find(({ name }) => name === "Qwen3 with layer types")!;
    const tensors = tensorsFor(model, 22);
    await writeModel(folder, model, tensors);
    const [ids, others] = [idsFor(8, 61), idsFor(9, 61)];
    const needed = referenceOf(model, tensors, ids);
    await onRings(folder, reference, [1, 3, 4], (session, ring) =>
      Effect.gen(function* () {
        // In zigzag, token by token, and in zigzag again.
        let read = 0;
        for (const count of [23, 1, 1, 1, 1, 19, 1, 1]) {
          yield* session.extend([{ sequence: 0, ids: ids.slice(read, read + count) }]);
          read += count;
        }
        let sequence = 1;
        const check = (
          what: string,
          found: Float32Array,
          needed: ReadonlyArray<Float64Array>,
        ) => {
          const error = apart(found, needed);
          assert.ok(error < 1e-5, `ring of ${ring}, ${what}: ${error}`);
        };
        for (const cut of [1, 5, 11, 22, 23, 25, 27, 33, 46, 48]) {
          const own = [...ids.slice(0, cut), ...others.slice(cut)];
          const wanted = own.length - cut;
          session.share(sequence, 0, cut);
          // One that was shared is shared again, and the one between them is let go at once.
          session.share(sequence + 1, sequence, cut);
          session.drop(sequence);
          const shared = sequence + 1;
          assert.equal(session.lengthOf(shared), cut);
          const rest = own.slice(cut);
          const all = yield* Effect.forEach(
            [rest.slice(0, 1), rest.slice(1, 3), rest.slice(3)],
            (ids) => session.extend([{ sequence: shared, ids, wanted: ids.length }]),
          );
          const mine = referenceOf(model, tensors, own).slice(-wanted);
          check(`cut at ${cut}`, Float32Array.from(all.flatMap(([some]) => [...some!])), mine);
          session.drop(shared);
          sequence += 2;
        }
        const [last] = yield* session.extend([
          { sequence: 0, ids: ids.slice(read), wanted: ids.length - read },
        ]);
        check("the one that was shared", last!, needed.slice(read));
      }));
  },
);

for (
  const [what, limits] of [
    ["than a turn has", { rowsAtOnce: 8 }],
    ["than a turn gives", { logitsAtOnce: 5 }],
    ["than a turn has or gives", { rowsAtOnce: 11, logitsAtOnce: 7 }],
  ] as const
) {
  inFolder(`logits of more tokens ${what} come from several turns`, async (folder) => {
    const model = modelCases[0]!;
    const tensors = tensorsFor(model, 9);
    await writeModel(folder, model, tensors);
    const ids = idsFor(4, 75);
    const needed = referenceOf(model, tensors, ids);
    await onRings(folder, reference, [1, 3], (session, ring) =>
      Effect.gen(function* () {
        for (const wanted of [0, 1, 5, 33, 75]) {
          // Beside another one, which has tokens in the same turns.
          const [found, other] = yield* session.extend([
            { sequence: wanted, ids, wanted },
            { sequence: 100 + wanted, ids: ids.slice(0, 40), wanted: 3 },
          ]);
          if (wanted > 0) assert.ok(apart(found!, needed.slice(75 - wanted)) < 1e-5, `${ring}`);
          assert.ok(apart(other!, needed.slice(37, 40)) < 1e-5, `ring of ${ring}: the other one`);
        }
      }), limits);
  });
}

for (const [i, model] of modelCases.entries()) {
  // The others take as long, and `deno task models` has them all.
  if (!everything && i % 3 !== 1) continue;
  inFolder(
    `${model.name}: the most likely tokens are the same on every ring and device, 128 of 128`,
    async (folder) => {
      const tensors = tensorsFor(model, 1000 * i);
      await writeModel(folder, model, tensors);
      const prompt = idsFor(i, 19);
      const all: Array<ReadonlyArray<number>> = [];
      for (const { device, rings } of devices) {
        // Each token waits for the device several times.
        if (device === webgpu && !everything) continue;
        await onRings(
          folder,
          device,
          everything ? rings : rings.slice(-1),
          (session) =>
            Effect.map(mostLikelyAfter(session, prompt, 128), (said) => void all.push(said)),
        );
      }
      const [first] = all;
      for (const said of all) assert.deepEqual(said, first);
      assert.ok(all.length > 0);
      const needed = referenceOf(model, tensors, [...prompt, ...first!]);
      const chosen = needed.slice(prompt.length - 1, -1).map((row) =>
        row.indexOf(Math.max(...row))
      );
      assert.deepEqual(first, chosen);
    },
  );
}
