/** Texts that are kept beyond a process: what goes on from them has the logits of one that began anew, or is told why not. */
import { Context, Effect, Layer, type Scope } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { inProcess } from "../../plugins/memory.ts";
import { modelsIn, openModel } from "../../plugins/models.ts";
import { CacheFolder, keptIn, partFile, textFile } from "../../plugins/models/cache_folder.ts";
import { partsIn } from "../../plugins/models/cache_parts.ts";
import {
  alike,
  openSavedTexts,
  readText,
  type SavedTextsOptions,
} from "../../plugins/models/saved_texts.ts";
import { reference } from "../../plugins/reference.ts";
import { Cache } from "../../runtime/cache.ts";
import type { DType } from "../../runtime/dtype.ts";
import { Parts } from "../../runtime/parts.ts";
import { coversAll, placementOf } from "../../runtime/placement.ts";
import { openSession, type Session } from "../../runtime/session.ts";
import { contiguous } from "../../runtime/span.ts";
import { decodeTurn } from "../../runtime/turn.ts";
import { decoderLogits } from "../support/decoder.ts";
import { inFolder } from "../support/in_folder.ts";
import { asWeights, modelCases, tensorsFor, writeModel } from "../support/models.ts";
import { normals, uniform } from "../support/random.ts";
import { noSmallDisk, smallDisk } from "../support/small_disk.ts";

const model = modelCases.find(({ name }) => name === "Qwen3 with layer types")!;
const tensors = tensorsFor(model, 31);
const idsFor = (seed: number, count: number) => {
  const next = uniform(seed);
  return Array.from({ length: count }, () => Math.floor(97 * next()));
};
const ids = idsFor(1, 61);
const opened = (path: string, limit = Infinity) => CacheFolder.open(path, limit);

interface Here {
  readonly folder: CacheFolder;
  readonly hash: string;
  /** Opens a session of so many ranks, and what is kept, as a process of its own would. */
  readonly begin: (
    ring: number,
    more?: Partial<SavedTextsOptions> & { cache?: DType },
  ) => Effect.Effect<
    {
      readonly session: Session;
      readonly saved: Effect.Success<ReturnType<typeof openSavedTexts>>;
      readonly told: Array<string>;
    },
    unknown,
    Scope.Scope
  >;
}

/** A model, and a folder of its texts. */
const itKeeps = (
  name: string,
  test: (here: Here) => Effect.Effect<void, unknown, Scope.Scope>,
  { limit = Infinity, disk, needed }: { limit?: number; disk?: number; needed?: string } = {},
) =>
  inFolder(name, async (path) => {
    await writeModel(`${path}/model`, model, tensors);
    await using _ = disk === undefined
      ? { [Symbol.asyncDispose]: () => Promise.resolve() }
      : await smallDisk(`${path}/caches`, disk);
    await Effect.gen(function* () {
      const found = yield* openModel(`${path}/model`);
      const folder = yield* opened(`${path}/caches`, limit);
      const services = yield* Layer.build(
        inProcess(reference, Layer.mergeAll(modelsIn([found]), partsIn(folder))),
      );
      const begin: Here["begin"] = (ring, { cache = "f32", ...more } = {}) =>
        Effect.gen(function* () {
          const told: Array<string> = [];
          const session = yield* openSession({
            ...{ model: found.hash, shape: found.model, ring, cache, parts: true },
          });
          const saved = yield* openSavedTexts({
            ...{ folder, model: found.hash, shape: { ...found.model, dtype: cache } },
            ...{ apart: false, least: 8 },
            tell: (words) => Effect.sync(() => void told.push(words)),
            wrote: () => Effect.void,
            ...more,
          });
          return { session, saved, told };
        }).pipe(Effect.provideContext(services));
      yield* test({ folder, hash: found.hash, begin });
    }).pipe(Effect.scoped, Effect.runPromise);
  }, needed);

/** Reads a text in turns of all kinds, and keeps it. */
const keep = Effect.fnUntraced(function* (
  { session, saved }: Effect.Success<ReturnType<Here["begin"]>>,
  text: ReadonlyArray<number> = ids,
  sequence = 0,
) {
  let at = 0;
  for (const count of [23, 1, 1, 1, 19, 2, 1, 1, text.length]) {
    const piece = text.slice(at, at += count);
    if (piece.length > 0) yield* session.extend([{ sequence, ids: piece }]);
  }
  const keeping = saved.offer(session, text);
  if (keeping === undefined) return false;
  yield* keeping(sequence);
  return true;
});

/** The rest of a text after its begin was found has its own logits. */
const goesOn = Effect.fnUntraced(function* (
  { session, saved }: Effect.Success<ReturnType<Here["begin"]>>,
  text: ReadonlyArray<number>,
  sequence: number,
  tolerance = 1e-5,
) {
  const found = yield* saved.find(session, text, 0);
  if (found === undefined || !(yield* saved.use(session, sequence, found))) return undefined;
  assert.equal(session.lengthOf(sequence), found.tokens);
  const rest = text.slice(found.tokens);
  const parts = yield* Effect.forEach(
    [rest.slice(0, 1), rest.slice(1, 3), rest.slice(3)].filter(({ length }) => length > 0),
    (ids) => session.extend([{ sequence, ids, wanted: ids.length }]),
  );
  const logits = parts.flatMap(([some]) => [...some!]);
  const needed = decoderLogits(model.config, asWeights(tensors), text, model.windowOf)
    .slice(found.tokens).flatMap((row) => [...row]);
  const largest = Math.max(...needed.map(Math.abs));
  const apart = Math.max(...needed.map((x, i) => Math.abs(x - logits[i]!))) / largest;
  assert.ok(apart < tolerance, `${found.tokens} tokens of a cache: ${apart}`);
  return found.tokens;
});

itKeeps(
  "a text goes on from what was kept of it or of one that begins like it",
  ({ begin }) =>
    Effect.gen(function* () {
      const others = idsFor(2, 61);
      let sequence = 1;
      for (const [ring, cache, tolerance] of [[1, "f32"], [3, "f32"], [4, "f16", 3e-3]] as const) {
        const first = yield* begin(ring, { cache });
        assert.equal(yield* keep(first), true);
        assert.deepEqual(first.told, []);
        const later = yield* begin(ring, { cache });
        for (const cut of [8, 22, 25, 46, 60, 61]) {
          const text = [...ids.slice(0, cut), ...others.slice(cut), 5];
          const common = alike(text, ids);
          assert.equal(yield* goesOn(later, text, sequence++, tolerance), common);
        }
        // One token must be read, and fewer than the least are not worth a file.
        assert.equal(yield* goesOn(later, ids, sequence++, tolerance), 60);
        assert.equal(yield* goesOn(later, [...ids.slice(0, 7), 1, 2, 3], sequence++), undefined);
        assert.deepEqual(later.told, []);
        // It is there, and so is most of what begins like it.
        assert.equal(later.saved.offer(later.session, ids), undefined);
        assert.equal(later.saved.offer(later.session, [...ids, 1, 2, 3, 4, 5, 6, 7]), undefined);
      }
    }),
);

itKeeps(
  "whichever rank has a part now, its tokens are there",
  ({ begin }) =>
    Effect.gen(function* () {
      yield* keep(yield* begin(3));
      const { session, saved, told } = yield* begin(3);
      const [name] = [...session.parts!.there[0]!.keys()];
      const there = (...parts: ReadonlyArray<ReadonlyArray<number>>) => ({
        ...session,
        parts: {
          ...session.parts!,
          there: parts.map((own) => new Map([[name!, new Set(own)]])),
        },
      });
      let sequence = 1;
      const text = [...ids.slice(0, 40), 1, 2, 3];
      for (const parts of [[[2], [0], [1]], [[0, 1], [0], [0, 2]], [[1, 2], [2, 1], [0, 1, 2]]]) {
        const moved = { session: there(...parts), saved, told };
        const found = yield* saved.find(moved.session, text, 0);
        for (const [rank, part] of found!.parts.entries()) assert.ok(parts[rank]!.includes(part));
        assert.equal(yield* goesOn(moved, text, sequence++), 40);
      }
      assert.deepEqual(told, []);
      const gone = { session: there([0], [0], [1, 2]), saved, told };
      assert.equal(yield* goesOn(gone, text, sequence), undefined);
      assert.match(told.join(), /the text is read again: its 3 parts must be there, each with/);
      // Ranks without a folder keep nothing.
      const none = { ...session, parts: { ...session.parts!, there: [undefined, new Map()] } };
      assert.equal(saved.offer(none, idsFor(5, 50)), undefined);
    }),
);

itKeeps(
  "what is of another ring, format, version or model is not used, and said so",
  (here) =>
    Effect.gen(function* () {
      const { folder, begin } = here;
      const first = yield* begin(2);
      yield* keep(first);
      const refused = Effect.fnUntraced(function* (
        sentence: RegExp,
        ...args: Parameters<Here["begin"]>
      ) {
        const other = yield* begin(...args);
        assert.equal(yield* goesOn(other, [...ids, 1], 1), undefined);
        assert.equal(yield* goesOn(other, [...ids, 1], 2), undefined);
        // Once.
        assert.equal(other.told.length, sentence.source === "^$" ? 0 : 1, other.told.join());
        assert.match(other.told.join(), sentence);
      });
      yield* refused(/text is read again: a ring of 2 made it, and this is one of 3$/, 3);
      yield* refused(/it has 3 layers of 2 × 12 in f32: needed are .* in bf16$/, 2, {
        cache: "bf16",
      });
      // Another model's are nobody's business.
      yield* refused(/^$/, 2, { model: "another" });
      const [kept] = yield* Effect.promise(() => keptIn(folder.path));
      const { name } = kept!;
      const path = folder.pathOf(name, textFile);
      const { head } = yield* Effect.promise(() => readText(path, name));
      const idBytes = new Uint8Array(Uint32Array.from(ids).buffer);
      const write = (change: object) =>
        Effect.scoped(
          folder.write(name, textFile, JSON.stringify({ ...head, ...change }), [idBytes]),
        );
      yield* write({ version: "0.0.1" });
      yield* refused(/annulus 0\.0\.1 made it, and this is \d/, 2);
      yield* write({ placement: head.placement.toReversed().slice(1) });
      yield* refused(/its parts do not hold each of its tokens once$/, 2);
      yield* write({ placement: [head.placement[0], head.placement[0]] });
      yield* refused(/its parts do not hold each of its tokens once$/, 2);
      yield* write({ name: "fedcba9876543210-01234567" });
      yield* refused(/it is of fedcba9876543210-01234567$/, 2);
      yield* write({ hash: "0" });
      yield* refused(/its tokens are not those of its hash$/, 2);
      // Placements of another text: parts say what they are of.
      yield* write({ parts: head.parts.toReversed() });
      yield* refused(/rank 0: .*it is not the one that was kept with the rest$/, 2);
      yield* write({});
      assert.equal(yield* goesOn(yield* begin(2), [...ids, 1], 1), 61);
      yield* Effect.promise(() => Deno.remove(folder.pathOf(name, partFile(1))));
      yield* refused(/its 2 parts must be there/, 2);
    }),
);

itKeeps(
  "what is damaged after it was found is not used, and the text is kept anew",
  ({ folder, begin }) =>
    Effect.gen(function* () {
      yield* keep(yield* begin(2));
      const { session, saved, told } = yield* begin(2);
      const found = yield* saved.find(session, [...ids, 1], 0);
      const path = folder.pathOf(found!.text.head.name, partFile(1));
      const bytes = yield* Effect.promise(() => Deno.readFile(path));
      bytes[bytes.length >> 1]! ^= 1;
      yield* Effect.promise(() => Deno.writeFile(path, bytes));
      assert.equal(yield* saved.use(session, 5, found!), false);
      session.drop(5);
      assert.match(told.join(), /^cannot use cache .* with rank 1: .*its CRC-32 differs$/);
      // It is not found again, and the next one takes its place.
      assert.equal(yield* saved.find(session, [...ids, 1], 0), undefined);
      assert.equal(yield* keep({ session, saved, told }), true);
      assert.equal((yield* Effect.promise(() => keptIn(folder.path))).length, 1);
      assert.equal(yield* goesOn({ session, saved, told }, [...ids, 1], 6), 61);
    }),
);

itKeeps(
  "a text takes the place of what it begins with; beyond the limit what was used longest ago goes",
  ({ folder, begin }) =>
    Effect.gen(function* () {
      const here = yield* begin(2);
      const names = () =>
        Effect.map(
          Effect.promise(() => keptIn(folder.path)),
          (all) => all.map(({ name }) => name),
        );
      yield* keep(here, ids.slice(0, 40));
      const [short] = yield* names();
      assert.equal(yield* keep(here, ids, 1), true);
      const [long, ...more] = yield* names();
      assert.ok(long !== short && more.length === 0);
      // Too little is new.
      assert.equal(yield* keep(here, [...ids, 1, 2, 3], 2), false);
      // Room for two of them.
      const other = idsFor(3, 61);
      yield* keep(here, other, 3);
      const [, second] = yield* names();
      assert.equal(yield* goesOn(here, [...ids, 1], 4), 61);
      assert.deepEqual(yield* names(), [second, long]);
      yield* keep(here, idsFor(4, 61), 5);
      const left = yield* names();
      assert.equal(left.length, 2);
      assert.ok(left.includes(long!) && !left.includes(second!), left.join());
      assert.equal(yield* goesOn(here, [...other, 1], 6), undefined);
      assert.deepEqual(here.told, []);
      // More than there may be at all.
      assert.equal(yield* keep(here, idsFor(6, 200), 7), true);
      assert.match(
        here.told.join(),
        /^no cache of 200 tokens is kept: it has \d+ bytes, and --caches-limit is 100000$/,
      );
      assert.deepEqual(yield* names(), left);
    }),
  { limit: 100_000 },
);

inFolder("room is never made of what is being written", async (path) => {
  const names = ["0123456789abcdef-00000000", "0123456789abcdef-00000001"] as const;
  await Effect.gen(function* () {
    const folder = yield* opened(path, 100);
    for (const [i, name] of names.entries()) {
      yield* Effect.promise(async () => {
        await Deno.mkdir(`${path}/${name}`);
        await Deno.writeTextFile(`${path}/${name}/${textFile}`, "x".repeat(40));
        await Deno.utime(`${path}/${name}`, i, i);
      });
    }
    const makeRoom = (bytes: number, but: string) =>
      Effect.promise(() => folder.makeRoom(bytes, but).catch(String));
    assert.deepEqual(yield* makeRoom(20, names[0]), []);
    assert.match(String(yield* makeRoom(61, names[0])), /it has 101 bytes, and .* is 100$/);
    assert.deepEqual(yield* makeRoom(60, names[0]), [names[1]]);
  }).pipe(Effect.scoped, Effect.runPromise);
});

itKeeps(
  "what a driver is about to have made has its mark, which goes when all is there",
  ({ folder, begin }) =>
    Effect.gen(function* () {
      const { session, saved, told } = yield* begin(2);
      const all = () => Effect.promise(() => keptIn(folder.path));
      const seen: Array<boolean> = [];
      const parts: NonNullable<Session["parts"]> = {
        ...session.parts!,
        keep: (...of) =>
          Effect.gen(function* () {
            seen.push(...(yield* all()).map(({ begun }) => begun));
            return yield* session.parts!.keep(...of);
          }),
      };
      assert.equal(yield* keep({ session: { ...session, parts }, saved, told }), true);
      assert.deepEqual(seen, [true]);
      assert.deepEqual((yield* all()).map(({ begun, finished }) => [begun, finished]), [
        [false, true],
      ]);
    }),
);

itKeeps(
  "a disk that is full costs what would be kept, not the text",
  ({ folder, begin }) =>
    Effect.gen(function* () {
      const here = yield* begin(2);
      yield* keep(here, idsFor(3, 61));
      assert.match(here.told.join(), /^no cache of 61 tokens is kept: .*No space left/);
      assert.deepEqual(yield* Effect.promise(() => keptIn(folder.path)), []);
      const [logits] = yield* here.session.extend([{ sequence: 0, ids: [1] }]);
      assert.equal(logits!.length, 97);
    }),
  { disk: 32, ...(noSmallDisk === undefined ? {} : { needed: noSmallDisk }) },
);

inFolder("what was begun is tidied up by whoever is alone with the folder", async (path) => {
  const name = "0123456789abcdef-01234567";
  const names = async () =>
    (await Array.fromAsync(Deno.readDir(`${path}/${name}`), ({ name }) => name)).sort();
  const fill = async () => {
    await Deno.mkdir(`${path}/${name}`, { recursive: true });
    for (const file of [partFile(0), ".rank-1.cache.0123abcd.part", "notes.txt"]) {
      await Deno.writeTextFile(`${path}/${name}/${file}`, "x");
    }
  };
  const parts = ["notes.txt", partFile(0)];
  await fill();
  // A node has parts alone, and they stay whoever opens its folder, and what another one may be writing does too.
  await Effect.runPromise(Effect.scoped(Effect.gen(function* () {
    const folder = yield* opened(path);
    assert.deepEqual(yield* Effect.promise(names), parts);
    yield* Effect.promise(fill);
    yield* Effect.promise(() => folder.begin(name));
    yield* opened(path);
    assert.equal((yield* Effect.promise(names)).length, 4);
    // What has its text is finished, whatever else is said of it.
    yield* folder.write(name, textFile, "{}", []);
  })));
  const open = () => Effect.runPromise(Effect.scoped(opened(path)));
  await open();
  assert.deepEqual(await names(), [...parts, "text.begun", textFile]);
  await Deno.remove(`${path}/${name}/${textFile}`);
  await open();
  assert.deepEqual(await names(), ["notes.txt"]);
  const refused = await Effect.runPromise(
    Effect.flip(Effect.scoped(CacheFolder.open(`${path}/${name}/notes.txt`, 1))),
  );
  assert.match(refused.message, /notes\.txt": it must be a folder that may be written to: found/);
});

itKeeps(
  "what cannot be read of a folder is said once, and in nobody's way",
  ({ folder, begin }) =>
    Effect.gen(function* () {
      yield* keep(yield* begin(2));
      const odd = "0123456789abcdef-01234567";
      yield* Effect.promise(() => Deno.writeTextFile(`${folder.path}/${odd}`, "no folder"));
      const { session, saved, told } = yield* begin(2);
      assert.equal(told.length, 1, told.join());
      assert.match(told.join(), /^cannot use cache 0123456789abcdef-01234567: ".*": Not a dir/);
      assert.equal(yield* goesOn({ session, saved, told }, [...ids, 1], 1), 61);
      // Room is made of what can be.
      assert.deepEqual((yield* Effect.promise(() => folder.makeRoom(1, odd))).length, 0);
      yield* Effect.promise(() => Deno.remove(folder.path, { recursive: true }));
      const gone = yield* begin(2);
      assert.match(gone.told.join(), /^cannot use ".*caches": No such file/);
      assert.equal(yield* gone.saved.find(gone.session, [...ids, 1], 0), undefined);
    }),
  { limit: 1_000_000 },
);

inFolder("what cannot be tidied up is left alone", async (path) => {
  const own = `${path}/0123456789abcdef-01234567`;
  // A folder where a file should be, which is not empty.
  await Deno.mkdir(`${own}/.rank-1.cache.0123abcd.part/more`, { recursive: true });
  await Effect.runPromise(Effect.scoped(opened(path)));
  assert.ok(Deno.statSync(`${own}/.rank-1.cache.0123abcd.part/more`).isDirectory);
});

inFolder("whatever becomes of a part's file, it is whole or refused", async (outer) => {
  const path = `${outer}/caches`;
  const shape = { layers: 2, kvHeads: 1, headDim: 4, dtype: "f32" } as const;
  const spans = [contiguous(0, 9), contiguous(20, 4)];
  const full = (fill: boolean, tokens = 13) => {
    const cache = new Cache(shape);
    cache.extend(spans);
    for (let layer = 0; layer < 2 && fill; layer++) {
      cache.put(layer, normals(layer, 52), normals(9 + layer, 52));
    }
    return cache.first(tokens);
  };
  const head = {
    ...{ name: "0123456789abcdef-01234567", part: 1, ring: 2, model: "m", shape, tokens: 13 },
  };
  const contentOf = (cache: Cache) =>
    [0, 1].map((layer) => [...cache.rows(layer, 0, cache.tokens)]);
  await Effect.gen(function* () {
    const folder = yield* opened(path);
    const parts = Context.get(yield* Layer.build(partsIn(folder)), Parts);
    const { sum } = yield* parts.keep(head, full(true));
    const file = folder.pathOf(head.name, partFile(1));
    assert.deepEqual(yield* parts.there, [{ name: head.name, part: 1 }]);
    for (const tokens of [0, 1, 9, 11, 13]) {
      const cache = new Cache(shape);
      cache.extend(tokens < 10 ? [contiguous(0, tokens)] : [spans[0]!, contiguous(20, tokens - 9)]);
      yield* parts.read(head, sum, cache);
      if (tokens > 0) assert.deepEqual(contentOf(cache), contentOf(full(true, tokens)));
    }
    for (const change of [{ model: "n" }, { tokens: 12 }, { ring: 3 }, { part: 0 }]) {
      const error = yield* Effect.flip(parts.read({ ...head, ...change }, sum, full(false)));
      assert.match(error.message, /it is of another text, model, format or ring|no such file/);
    }
    const other = { ...head, shape: { ...shape, headDim: 8 } };
    assert.match(
      (yield* Effect.flip(parts.read(other, sum, full(false)))).message,
      /it is of another text, model, format or ring$/,
    );
    const whole = yield* Effect.promise(() => Deno.readFile(file));
    const odd = fc.tuple(
      fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 255 })), { maxLength: 3 }),
      fc.integer({ min: -20, max: 20 }),
    ).map(([changes, more]) => {
      const bytes = new Uint8Array(whole.length + more);
      bytes.set(whole.subarray(0, bytes.length));
      for (const [at, value] of changes) bytes[at % bytes.length]! ^= value;
      return bytes;
    });
    yield* Effect.promise(() =>
      fc.assert(
        fc.asyncProperty(odd, async (bytes) => {
          await Deno.writeFile(file, bytes);
          const cache = full(false);
          const read = await Effect.runPromise(Effect.result(parts.read(head, sum, cache)));
          const same = bytes.length === whole.length && bytes.every((byte, i) => byte === whole[i]);
          assert.equal(read._tag, same ? "Success" : "Failure");
          if (same) assert.deepEqual(contentOf(cache), contentOf(full(true)));
        }),
        { numRuns: 200, examples: [[whole], [new Uint8Array(0)], [whole.subarray(0, 40)]] },
      )
    );
    yield* Effect.promise(() => Deno.remove(path, { recursive: true }));
    assert.deepEqual(yield* parts.there, []);
  }).pipe(Effect.scoped, Effect.runPromise);
});

Deno.test("no name of a cache is a path", () => {
  const turn = (name: string) => ({
    ...{ sequences: [], shared: [], dropped: [] },
    orders: [{ order: "forget", op: 0, name }],
  });
  const decoded = (name: string) =>
    decodeTurn(new TextEncoder().encode(JSON.stringify(turn(name))))._tag;
  assert.equal(decoded("0123456789abcdef-01234567"), "Success");
  for (const name of ["../../etc/passwd-01234567", "..", "", "0123456789abcdef-01234567/../x"]) {
    assert.equal(decoded(name), "Failure", name);
  }
});

Deno.test("a placement has each token once, in the order of its rows", () => {
  const whole = placementOf(0, 30, 3).map((spans) => spans.filter(({ count }) => count > 0));
  assert.ok(coversAll(whole, 30));
  assert.ok(coversAll([[], []], 0));
  for (
    const odd of [
      whole.slice(1),
      [whole[0]!, whole[0]!, whole[2]!],
      whole.map((spans) => spans.toReversed()),
      [[contiguous(1, 30)]],
    ]
  ) assert.equal(coversAll(odd, 30), false);
});
