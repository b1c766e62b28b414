/** Decoding: one round trip a layer, however many ranks there are, and caches that are as large as they must be. */
import { Clock, Effect, Layer } from "effect";
import assert from "node:assert/strict";
import { referenceKernel } from "../../kernels/reference.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { openModel } from "../../plugins/models.ts";
import { fillWeights } from "../../plugins/models/files.ts";
import { Cache, tokenBytesOf } from "../../runtime/cache.ts";
import { Crew } from "../../runtime/crew.ts";
import { Device } from "../../runtime/device.ts";
import type { Kind } from "../../runtime/frame.ts";
import { Models } from "../../runtime/model.ts";
import { placementOf, tokensIn } from "../../runtime/placement.ts";
import { openSession } from "../../runtime/session.ts";
import { contiguous } from "../../runtime/span.ts";
import { delayed } from "../support/delayed_links.ts";
import { inFolder } from "../support/in_folder.ts";
import { inProcess } from "../support/in_process.ts";
import { modelCases, tensorsFor, writeModel } from "../support/models.ts";
import { normals } from "../support/random.ts";
import { inVirtualTime } from "../support/virtual_time.ts";

const [milliseconds, layers] = [10, 3];

inFolder("a token takes one round trip a layer, and one to the driver", async (folder) => {
  const model = modelCases[0]!;
  await writeModel(folder, model, tensorsFor(model, 5));
  await Effect.gen(function* () {
    const found = yield* openModel(folder);
    const device = inProcess(referenceKernel());
    const programs = yield* device.programs!(found.model.weights);
    yield* fillWeights(found.model.weights, found.weights, programs, () => Effect.void);
    for (const ring of [1, 2, 5]) {
      const counted = new Map<Kind, number>();
      const links = delayed(milliseconds, counted).pipe(Layer.provide(memoryLinks()));
      const services = Crew.local().pipe(Layer.provideMerge(Layer.mergeAll(
        links,
        Layer.succeed(Device, device),
        Layer.succeed(
          Models,
          Models.of({ open: () => Effect.succeed({ model: found.model, programs }) }),
        ),
      )));
      const run = Effect.gen(function* () {
        const session = yield* openSession({ model: found.hash, shape: found.model, ring });
        const ids = Array.from({ length: 40 }, (_, i) => i);
        yield* session.extend([{ sequence: 0, ids }, { sequence: 1, ids: ids.slice(0, 23) }]);
        for (let i = 0; i < 7; i++) {
          counted.clear();
          const began = yield* Clock.currentTimeMillis;
          // Two texts at once, and still one round trip.
          yield* session.extend([{ sequence: 0, ids: [i] }, { sequence: 1, ids: [i] }]);
          const took = (yield* Clock.currentTimeMillis) - began;
          const trips = ring === 1 ? 1 : layers + 1;
          assert.equal(took, trips * 2 * milliseconds, `ring of ${ring}`);
          // Every rank with a token asks all others once a layer, and is answered once.
          const askers = new Set([(40 + i) % ring, (23 + i) % ring]).size;
          for (const kind of ["q", "o", "lse"] as const) {
            assert.equal(counted.get(kind) ?? 0, askers * (ring - 1) * layers, kind);
          }
          assert.equal(counted.get("kv"), undefined, "nothing goes around");
        }
      });
      yield* Effect.promise(() =>
        inVirtualTime(Effect.scoped(run).pipe(Effect.provide(services)) as Effect.Effect<void>)
      );
    }
  }).pipe(Effect.scoped, Effect.runPromise);
});

Deno.test("a cache has the bytes of its tokens, and twice the ranks half of them", () => {
  const shape = { layers: 3, kvHeads: 2, headDim: 12, dtype: "f16" } as const;
  assert.equal(tokenBytesOf(shape), 3 * 2 * 2 * 12 * 2);
  const bytesOf = (ring: number, rank: number) => {
    const cache = new Cache(shape);
    let past = 0;
    // A text, many single tokens, another text, and some more.
    for (const tokens of [4096, ...Array<number>(64).fill(1), 960, ...Array<number>(16).fill(1)]) {
      cache.extend(placementOf(past, tokens, ring)[rank]!);
      past += tokens;
    }
    assert.equal(past, 5136);
    return cache.bytes;
  };
  for (const ring of [1, 2, 4, 8]) {
    for (let rank = 0; rank < ring; rank++) {
      assert.equal(bytesOf(ring, rank), 5136 / ring * tokenBytesOf(shape), `${rank} of ${ring}`);
    }
  }
});

Deno.test("every token of a sequence is with one rank, whatever its turns", () => {
  for (const ring of [1, 2, 3, 5]) {
    let past = 0;
    const seen = new Map<number, number>();
    for (const tokens of [17, 1, 1, 4, 1, 29, 2, 9]) {
      for (const spans of placementOf(past, tokens, ring)) {
        for (const span of spans) {
          const { first, run, stride, start } = span;
          for (let i = first; i < first + span.count; i++) {
            const position = start + Math.floor(i / run) * stride + i % run;
            seen.set(position, (seen.get(position) ?? 0) + 1);
          }
        }
      }
      const sizes = placementOf(past, tokens, ring).map(tokensIn);
      assert.ok(Math.max(...sizes) - Math.min(...sizes) <= 1, `${tokens} over ${ring}: ${sizes}`);
      past += tokens;
    }
    assert.deepEqual(
      [...seen.keys()].sort((a, b) => a - b),
      Array.from({ length: past }, (_, i) => i),
    );
    assert.ok([...seen.values()].every((times) => times === 1));
  }
});

Deno.test("a cache gives what was put into it, by stretches and by rows", () => {
  const shape = { layers: 2, kvHeads: 1, headDim: 4, dtype: "f32" } as const;
  const cache = new Cache(shape);
  const all: Array<{ k: Float32Array; v: Float32Array }> = [];
  const grow = (spans: Parameters<Cache["extend"]>[0]) => {
    cache.extend(spans);
    const rows = tokensIn(spans);
    for (let layer = 0; layer < 2; layer++) {
      const [k, v] = [normals(7 * all.length, 4 * rows), normals(7 * all.length + 1, 4 * rows)];
      all.push({ k, v });
      cache.put(layer, k, v);
    }
  };
  grow([contiguous(0, 5), contiguous(20, 3)]);
  const single = (start: number) => ({ start, run: 1, stride: 3, first: 0, count: 1 });
  // More than a piece that grows has room for.
  for (let i = 0; i < 70; i++) grow([single(40 + 3 * i)]);
  const rowsOf = (layer: number, which: "k" | "v") =>
    all.filter((_, i) => i % 2 === layer).flatMap((one) => [...one[which]]);
  for (const layer of [0, 1]) {
    const [k, v] = [rowsOf(layer, "k"), rowsOf(layer, "v")];
    const found = cache.stretches(layer).map(({ keyValues: { bytes } }) =>
      new Float32Array(bytes.slice().buffer)
    );
    assert.deepEqual(found.flatMap((both) => [...both.subarray(0, both.length / 2)]), k);
    assert.deepEqual(found.flatMap((both) => [...both.subarray(both.length / 2)]), v);
    // Across the end of a piece, within the single tokens.
    const part = new Float32Array(cache.rows(layer, 60, 15).slice().buffer);
    assert.deepEqual([...part], [...k.slice(240, 300), ...v.slice(240, 300)]);
  }
  assert.equal(cache.tokens, 78);
  // Its first tokens, whatever comes to either of them later.
  for (const count of [0, 3, 5, 7, 8, 50, 72, 78]) {
    const first = cache.first(count);
    assert.equal(first.tokens, count);
    const before = count === 0 ? [] : [...first.rows(1, 0, count)];
    assert.deepEqual(before, count === 0 ? [] : [...cache.rows(1, 0, count)]);
    first.extend([single(1000)]);
    first.put(1, normals(1, 4), normals(2, 4));
    assert.deepEqual([...first.rows(1, 0, Math.max(1, count))].slice(0, before.length), before);
  }
  assert.deepEqual([...new Float32Array(cache.rows(1, 0, 78).slice().buffer)], [
    ...rowsOf(1, "k"),
    ...rowsOf(1, "v"),
  ]);
  assert.throws(() => cache.first(79), /79 tokens were asked for, and 78 are there/);
  // What is full is not copied.
  const [own] = cache.first(5).stretches(0), [mine] = cache.stretches(0);
  assert.equal(own!.keyValues.bytes.buffer, mine!.keyValues.bytes.buffer);
  assert.equal(cache.bytes, 78 * tokenBytesOf(shape));
});
