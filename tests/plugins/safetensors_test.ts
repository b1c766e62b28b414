import assert from "node:assert/strict";
import { Deferred, Effect, Exit, Fiber, Result, type Scope } from "effect";
import fc from "fast-check";
import { createSafetensors, openSafetensors } from "../../plugins/safetensors.ts";
import { knownDtypes } from "../../plugins/safetensors/header.ts";
import {
  pieceBytes,
  pieces,
  worthReading,
  worthRewriting,
} from "../../plugins/safetensors/pieces.ts";
import { decode, type DType } from "../../runtime/dtype.ts";
import { FileInvalid } from "../../runtime/errors.ts";
import { layouts, shardsOf } from "../../runtime/layout.ts";
import { regions, type TokenArray } from "../../runtime/region.ts";

const scratch = Effect.acquireRelease(
  Effect.promise(() => Deno.makeTempDir()),
  (folder) => Effect.promise(() => Deno.remove(folder, { recursive: true })),
);

/** A test with a folder of its own. */
const inFolder = <E>(
  name: string,
  body: (folder: string) => Effect.Effect<void, E, Scope.Scope>,
  options: { readonly ignore?: boolean } = {},
) =>
  Deno.test({
    name,
    ...options,
    fn: () => scratch.pipe(Effect.flatMap(body), Effect.scoped, Effect.runPromise),
  });

const namesIn = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

/** Replaces a method for as long as `body` runs. */
const withMethod = <T extends object, K extends keyof T, A, E, R>(
  target: T,
  key: K,
  method: (original: T[K]) => T[K],
  body: Effect.Effect<A, E, R>,
) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const original = target[key];
      target[key] = method(original);
      return original;
    }),
    () => body,
    (original) => Effect.sync(() => void (target[key] = original)),
  );

/** Runs `body` and gives its result with the largest buffer that was allocated meanwhile. */
const largestAllocation = <A, E, R>(body: Effect.Effect<A, E, R>) => {
  let largest = 0;
  const watched = <T extends typeof Uint8Array | typeof ArrayBuffer>(type: T): T =>
    new Proxy(type, {
      construct: (target, args, self) => {
        if (typeof args[0] === "number") largest = Math.max(largest, args[0]);
        return Reflect.construct(target, args, self);
      },
    });
  return withMethod(
    globalThis,
    "Uint8Array",
    watched,
    withMethod(globalThis, "ArrayBuffer", watched, body),
  ).pipe(Effect.map((result) => ({ result, largest })));
};

/** A file with this header, given as text, bytes or JSON, and data. */
const fileOf = (header: unknown, data = new Uint8Array(0), length?: bigint) => {
  const text = header instanceof Uint8Array
    ? header
    : new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, length ?? BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.length);
  return bytes;
};

const random = (length: number) => {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = Math.random() * 256;
  return bytes;
};

const everything = (elements: number) => [{ offset: 0, length: elements }];

inFolder(
  "every dtype and shape comes back as it was written, with its metadata",
  (folder) =>
    Effect.gen(function* () {
      const path = `${folder}/all.safetensors`;
      const shapes = [[], [0], [3], [2, 0, 4], [5, 3, 7], [1, 1, 1, 9]];
      const tensors = shapes.flatMap((shape) =>
        knownDtypes.map((dtype) => ({ name: `${dtype} ${shape} "é"`, dtype, shape }))
      );
      const metadata = { made: "by a test", "with \n": "é" };
      const contents = new Map<string, Uint8Array>();
      yield* Effect.gen(function* () {
        const writer = yield* createSafetensors(path, tensors, metadata);
        for (const { name, dtype, shape } of tensors) {
          const elements = shape.reduce((a, b) => a * b, 1);
          const width = dtype === "BOOL" || dtype.includes("8")
            ? 1
            : Number(dtype.match(/\d+/)) / 8;
          contents.set(name, random(elements * width));
          yield* writer.write(name, everything(elements), contents.get(name)!);
        }
        yield* writer.commit;
      }).pipe(Effect.scoped);
      assert.deepEqual(namesIn(folder), ["all.safetensors"]);

      const file = yield* openSafetensors(path);
      assert.deepEqual([...file.metadata], Object.entries(metadata));
      assert.equal(file.tensors.size, tensors.length);
      for (const { name, dtype, shape } of tensors) {
        const tensor = file.tensor(name)!;
        assert.deepEqual([tensor.dtype, tensor.shape], [dtype, shape]);
        assert.equal(tensor.begin % tensor.elementBytes!, 0);
        assert.deepEqual(yield* file.read(name, everything(tensor.elements)), contents.get(name));
      }
      assert.equal(Math.min(...[...file.tensors.values()].map(({ begin }) => begin)) % 8, 0);
      assert.equal(file.tensor("q"), undefined);
    }),
);

inFolder(
  "shards of any layout, written in parts, make the whole tensor, and are read back",
  (folder) =>
    Effect.gen(function* () {
      // Rows from 4 bytes, which share pieces, to 12 KiB, which do not.
      const shapes: ReadonlyArray<TokenArray & { readonly part: number }> = [
        { outer: 6, tokens: 200, inner: 1, part: 64 },
        { outer: 2, tokens: 150, inner: 12, part: 777 },
        { outer: 2, tokens: 70, inner: 3000, part: 100_000 },
      ];
      for (const { part, ...whole } of shapes) {
        for (const layout of layouts) {
          for (const weights of [[1], [1, 1, 1, 1], [3, 1, 2], Array<number>(40).fill(1)]) {
            const elements = whole.outer * whole.tokens * whole.inner;
            const values = Float32Array.from({ length: elements }, (_, i) => i + 0.5);
            const path = `${folder}/shards.safetensors`;
            const shards = shardsOf(layout, whole.tokens, weights).map((spans) => {
              const tokens = spans.reduce((sum, { count }) => sum + count, 0);
              const size = whole.outer * tokens * whole.inner;
              const own = new Float32Array(size);
              let at = 0;
              for (const { offset, length } of regions(whole, spans, 0, size)) {
                own.set(values.subarray(offset, offset + length), at);
                at += length;
              }
              return { spans, size, own };
            });
            yield* Effect.gen(function* () {
              const shape = [whole.outer, whole.tokens, whole.inner];
              const writer = yield* createSafetensors(path, [{ name: "o", dtype: "F32", shape }]);
              for (const { spans, size, own } of shards) {
                for (let from = 0; from < size; from += part) {
                  const to = Math.min(from + part, size);
                  const bytes = new Uint8Array(own.buffer, 4 * from, 4 * (to - from));
                  yield* writer.write("o", regions(whole, spans, from, to), bytes);
                }
              }
              yield* writer.commit;
              const file = yield* openSafetensors(path);
              assert.deepEqual(decode("f32", yield* file.read("o", everything(elements))), values);
              for (const { spans, size, own } of shards) {
                const cut = Math.floor(size / 3);
                const first = yield* file.read("o", regions(whole, spans, 0, cut));
                const rest = yield* file.read("o", regions(whole, spans, cut, size));
                assert.deepEqual(decode("f32", first), own.subarray(0, cut));
                assert.deepEqual(decode("f32", rest), own.subarray(cut));
              }
            }).pipe(Effect.scoped);
          }
        }
      }
    }),
);

Deno.test("pieces move every byte of the ranges, in order, and none is larger than 4 MiB", () => {
  const ranges = fc.array(
    fc.record({
      begin: fc.oneof(fc.nat(3e7), fc.nat(3000)),
      length: fc.oneof(fc.nat(12e6), fc.nat(300)),
    }),
    { maxLength: 40 },
  ).map((all) => all.map(({ begin, length }) => ({ begin, end: begin + length })));
  const worths = [worthReading, worthRewriting, () => true, () => false];
  fc.assert(
    fc.property(ranges, fc.constantFrom(...worths), (ranges, worth) => {
      let packed = 0;
      const parts: Array<{ begin: number; end: number }> = [];
      for (const piece of pieces(ranges, worth)) {
        assert.ok(piece.end - piece.begin <= pieceBytes);
        assert.equal(Math.min(...piece.parts.map(({ begin }) => begin)), piece.begin);
        assert.equal(Math.max(...piece.parts.map(({ end }) => end)), piece.end);
        const bytes = piece.parts.reduce((sum, { begin, end }) => sum + end - begin, 0);
        const { length } = piece.parts;
        assert.ok(length === 1 || worth(piece.end - piece.begin, bytes, length));
        for (const part of piece.parts) {
          assert.equal(part.packed, packed);
          packed += part.end - part.begin;
          const last = parts.at(-1);
          // A long range comes in several parts.
          if (last !== undefined && last.end === part.begin) last.end = part.end;
          else parts.push({ begin: part.begin, end: part.end });
        }
      }
      const expected: Array<{ begin: number; end: number }> = [];
      for (const { begin, end } of ranges.filter(({ begin, end }) => begin < end)) {
        const last = expected.at(-1);
        if (last !== undefined && last.end === begin) last.end = end;
        else expected.push({ begin, end });
      }
      assert.deepEqual(parts, expected);
    }),
    { numRuns: 500 },
  );
});

Deno.test("rows close together share a piece, rows far apart do not", () => {
  const rows = (length: number, stride: number) =>
    Array.from({ length: 10_000 }, (_, i) => ({ begin: i * stride, end: i * stride + length }));
  const count = (length: number, stride: number, worth: typeof worthReading) =>
    [...pieces(rows(length, stride), worth)].length;
  assert.equal(count(2048, 16 * 2048, worthReading), Math.ceil(10_000 / 128));
  assert.equal(count(2048, 32 * 2048, worthReading), 10_000);
  assert.equal(count(4, 64 * 4, worthRewriting), 1);
  assert.equal(count(2048, 16 * 2048, worthRewriting), 10_000);
});

const q = { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] };
const data = new Uint8Array(24);

/** Files that must not be opened, and what is said of them. */
const hostile: Record<string, readonly [bytes: Uint8Array, sentence: RegExp]> = {
  "an empty file": [new Uint8Array(0), /the 8 bytes of its header's length: found 0 bytes$/],
  "seven bytes": [new Uint8Array(7), /found 7 bytes$/],
  "no header": [fileOf(""), /its header must begin with "{": found nothing$/],
  "a header that is longer than the file": [
    fileOf("{}", undefined, 3n),
    /its header must end within the file's 10 bytes: found a length of 3$/,
  ],
  "a header of 100 MB and a byte": [
    fileOf("{}", undefined, 100_000_001n),
    /at most 100000000 bytes: found a length of 100000001$/,
  ],
  "a header of 99 MB that is not there": [
    fileOf("{}", undefined, 99_000_000n),
    /must end within the file's 10 bytes/,
  ],
  "a header of 2^64 − 1 bytes": [
    fileOf("{}", undefined, 2n ** 64n - 1n),
    /found a length of 18446744073709551615$/,
  ],
  "bytes that are not UTF-8": [
    fileOf(new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])),
    /its header must be UTF-8: found other bytes$/,
  ],
  "a byte order mark": [fileOf("\ufeff{}"), /must begin with "{": found "\\u\{feff\}{}"$/],
  "a space first": [fileOf(" {}"), /must begin with "{": found " {}"$/],
  "half of a JSON text": [fileOf('{"q":'), /its header must be one JSON object: found "/],
  "two JSON texts": [fileOf("{}{}"), /its header must be one JSON object/],
  "zeros as padding": [fileOf("{}\0\0"), /its header must be one JSON object/],
  "a list": [fileOf("[]"), /must begin with "{": found "\[\]"$/],
  "a number": [fileOf("12"), /must begin with "{"/],
  "NaN as a dimension": [
    fileOf('{"q":{"dtype":"F32","shape":[NaN],"data_offsets":[0,24]}}', data),
    /must be one JSON object/,
  ],
  "metadata that are a list": [
    fileOf({ __metadata__: ["x"] }),
    /its "__metadata__" must map texts to texts: found a list of 1$/,
  ],
  "metadata that are null": [fileOf({ __metadata__: null }), /to texts: found null$/],
  "a number in the metadata": [
    fileOf({ __metadata__: { step: 3 } }),
    /its "__metadata__" must have a text under "step": found 3$/,
  ],
  "an object in the metadata": [fileOf({ __metadata__: { a: {} } }), /"a": found an object$/],
  "a tensor that is a list": [
    fileOf({ q: [] }),
    /tensor "q" must be described by an object: found a list of 0$/,
  ],
  "a tensor that is null": [fileOf({ q: null }), /tensor "q" must be .* object: found null$/],
  "no dtype": [
    fileOf({ q: { ...q, dtype: undefined } }, data),
    /tensor "q" must have a text as dtype: found nothing$/,
  ],
  "a number as dtype": [fileOf({ q: { ...q, dtype: 32 } }, data), /as dtype: found 32$/],
  "no shape": [
    fileOf({ q: { ...q, shape: undefined } }, data),
    /tensor "q" must have a list as shape: found nothing$/,
  ],
  "a text as shape": [fileOf({ q: { ...q, shape: "2" } }, data), /as shape: found "2"$/],
  "a negative dimension": [
    fileOf({ q: { ...q, shape: [-2, -3] } }, data),
    /tensor "q" must have whole numbers .* as shape: found -2 as its dimension 0$/,
  ],
  "half a dimension": [
    fileOf({ q: { ...q, shape: [4, 1.5] } }, data),
    /found 1.5 as its dimension 1$/,
  ],
  "a text as dimension": [fileOf({ q: { ...q, shape: ["6"] } }, data), /found "6" as its dim/],
  "a dimension of 2^53": [
    fileOf({ q: { ...q, shape: [0, 2 ** 53] } }),
    /found 9007199254740992 as its dimension 1$/,
  ],
  "a dimension beyond float64": [
    fileOf('{"q":{"dtype":"F32","shape":[1e999],"data_offsets":[0,24]}}', data),
    /found Infinity as its dimension 0$/,
  ],
  "a product beyond 2^53": [
    fileOf({ q: { ...q, shape: [2 ** 27, 2 ** 27] } }, data),
    /tensor "q" must have fewer than 2\^53 bytes: found a shape of more$/,
  ],
  "a product that would wrap to 24 bytes in 64 bits": [
    fileOf({ q: { ...q, shape: [6, 2 ** 32, 2 ** 32] } }, data),
    /fewer than 2\^53 bytes/,
  ],
  "bytes beyond 2^53, elements not": [
    fileOf({ q: { ...q, dtype: "F64", shape: [2 ** 51] } }, data),
    /fewer than 2\^53 bytes/,
  ],
  "a huge product times 0": [
    fileOf({ q: { ...q, shape: [2 ** 52, 2 ** 52, 0], data_offsets: [0, 0] } }),
    /fewer than 2\^53 bytes/,
  ],
  "no offsets": [
    fileOf({ q: { ...q, data_offsets: undefined } }, data),
    /tensor "q" must have two data_offsets: found nothing$/,
  ],
  "three offsets": [
    fileOf({ q: { ...q, data_offsets: [0, 24, 24] } }, data),
    /must have two data_offsets: found a list of 3$/,
  ],
  "negative offsets": [
    fileOf({ q: { ...q, data_offsets: [-24, 0] } }, data),
    /whole numbers .* as data_offsets: found -24 and 0$/,
  ],
  "fractional offsets": [fileOf({ q: { ...q, data_offsets: [0, 23.5] } }, data), /0 and 23.5$/],
  "texts as offsets": [fileOf({ q: { ...q, data_offsets: ["0", "24"] } }, data), /"0" and "24"$/],
  "offsets of 2^63": [
    fileOf('{"q":{"dtype":"F32","shape":[6],"data_offsets":[0,9223372036854775808]}}', data),
    /as data_offsets: found 0 and 9223372036854776000$/,
  ],
  "offsets that run backwards": [
    fileOf({ q: { ...q, data_offsets: [24, 0] } }, data),
    /tensor "q" must have data_offsets in ascending order: found 24 and 0$/,
  ],
  "data that are cut short": [
    fileOf({ q }, data.subarray(1)),
    /"q" must end within the file, at byte 24 of its data: found 23 bytes of data; the file is cut/,
  ],
  "data that are missing": [fileOf({ q }), /found 0 bytes of data/],
  "fewer bytes than the shape has": [
    fileOf({ q: { ...q, shape: [2, 4] } }, data),
    /"q" must have 32 bytes, as its dtype F32 and its shape say: found 24 bytes between/,
  ],
  "more bytes than the shape has": [
    fileOf({ q: { ...q, dtype: "F16" } }, data),
    /"q" must have 12 bytes, as its dtype F16 and its shape say: found 24 bytes/,
  ],
  "bytes for an empty tensor": [
    fileOf({ q: { ...q, shape: [0] } }, data),
    /"q" must have 0 bytes/,
  ],
  "tensors that overlap": [
    fileOf({ q, k: { dtype: "U8", shape: [8], data_offsets: [20, 28] } }, new Uint8Array(28)),
    /tensor "k" must begin where the one before it ends, at byte 24 of the data: found byte 20$/,
  ],
  "two tensors in one place": [
    fileOf({ q, k: q }, data),
    /tensor "k" must begin where the one before it ends, at byte 24 of the data: found byte 0$/,
  ],
  "a hole between tensors": [
    fileOf({ q, k: { dtype: "U8", shape: [8], data_offsets: [32, 40] } }, new Uint8Array(40)),
    /tensor "k" must begin .* at byte 24 of the data: found byte 32$/,
  ],
  "a hole before the first tensor": [
    fileOf({ k: { dtype: "U8", shape: [8], data_offsets: [8, 16] } }, new Uint8Array(16)),
    /tensor "k" must begin .* at byte 0 of the data: found byte 8$/,
  ],
  "bytes after the last tensor": [
    fileOf({ q }, new Uint8Array(25)),
    /its tensors must fill its 25 bytes of data: found 1 bytes after the last of them$/,
  ],
  "data of no tensor": [fileOf({}, new Uint8Array(5)), /found 5 bytes after the last/],
  "a tensor that comes twice": [
    fileOf(`{"q":${JSON.stringify(q)},"q":${JSON.stringify(q)}}`, data),
    /its header must have every key once: found "q" twice$/,
  ],
  "a tensor that comes twice, once with an escape": [
    fileOf(`{"q":${JSON.stringify(q)},"\\u0071" :${JSON.stringify(q)}}`, data),
    /every key once: found "q" twice$/,
  ],
  "a dtype that comes twice": [
    fileOf(
      '{"k":[{"dtype":1}],"q":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"dtype":"U32"}}',
    ),
    /"q" of its header must have every key once: found "dtype" twice$/,
  ],
  "metadata that come twice": [
    fileOf('{"__metadata__":{"a":"\\"{"},"__metadata__":{}}'),
    /every key once: found "__metadata__" twice$/,
  ],
  "a key of the metadata that comes twice": [
    fileOf('{"__metadata__":{"a":"b","a":"b"}}'),
    /"__metadata__" of its header must have every key once: found "a" twice$/,
  ],
  "a shape of a million nested lists": [
    fileOf(`{"q":{"dtype":"F32","shape":${"[".repeat(1e6)}${"]".repeat(1e6)}}}`),
    /found a list of 1 as its dimension 0$/,
  ],
  "a name that would clear the terminal": [
    fileOf({ "\x1b[2J\u009b\u202e": 1 }),
    /tensor "\\u\{1b\}\[2J\\u\{9b\}\\u\{202e\}" must be described/,
  ],
  "a name of a million letters": [fileOf({ ["x".repeat(1e6)]: 1 }), /tensor "x{60}…" must be/],
};

inFolder(
  "a hostile file is refused in one sentence, before its claims are allocated",
  (folder) =>
    Effect.forEach(Object.entries(hostile), ([name, [bytes, sentence]]) =>
      Effect.gen(function* () {
        const path = `${folder}/hostile`;
        Deno.writeFileSync(path, bytes);
        const { result, largest } = yield* openSafetensors(path).pipe(
          Effect.scoped,
          Effect.result,
          largestAllocation,
        );
        assert.ok(Result.isFailure(result), `${name}: was opened`);
        assert.ok(result.failure instanceof FileInvalid, name);
        assert.match(result.failure.message, sentence, name);
        assert.ok(result.failure.message.startsWith(`Cannot open "${path}": `), name);
        // deno-lint-ignore no-control-regex
        assert.doesNotMatch(result.failure.message, /[\x00-\x1f\x7f-\x9f]/, name);
        assert.ok(result.failure.message.length < 400, name);
        assert.ok(largest <= bytes.length + 8, `${name}: ${largest} bytes were allocated`);
      }), { discard: true }),
);

inFolder("odd files that keep the rules are opened", (folder) =>
  Effect.gen(function* () {
    const path = `${folder}/odd`;
    const open = (bytes: Uint8Array) => {
      Deno.writeFileSync(path, bytes);
      return openSafetensors(path);
    };
    assert.equal((yield* open(fileOf("{}"))).tensors.size, 0);
    assert.equal((yield* open(fileOf("{}      "))).tensors.size, 0);

    // Data in another order than the header, and empty tensors wherever one ends.
    const empty = { dtype: "F64", shape: [3, 0] };
    const shuffled = yield* open(fileOf({
      c: { ...empty, data_offsets: [32, 32] },
      k: { dtype: "I64", shape: [], data_offsets: [24, 32] },
      b: { ...empty, data_offsets: [24, 24] },
      q,
      a: { ...empty, data_offsets: [0, 0] },
    }, new Uint8Array(32).fill(7)));
    assert.deepEqual([...shuffled.tensors.keys()], ["a", "q", "b", "k", "c"]);
    assert.deepEqual(yield* shuffled.read("k", everything(1)), new Uint8Array(8).fill(7));
    assert.deepEqual(yield* shuffled.read("c", everything(0)), new Uint8Array(0));

    const proto = `{"__proto__":${JSON.stringify(q)}}`;
    assert.deepEqual((yield* open(fileOf(proto, data))).tensor("__proto__")?.shape, [2, 3]);

    // A dtype of tomorrow does not make the others unreadable.
    const f4 = { dtype: "F4", shape: [4], data_offsets: [24, 26] };
    const tomorrow = yield* open(fileOf({ q, f4 }, new Uint8Array(26)));
    assert.equal((yield* tomorrow.read("q", everything(6))).length, 24);
    const refused = yield* Effect.flip(tomorrow.read("f4", everything(4)));
    assert.match(refused.message, /tensor "f4" must have one of BOOL, .* as dtype: found "F4"$/);
  }));

inFolder(
  "what is not a regular file is not opened, and nothing waits for a pipe",
  (folder) =>
    Effect.gen(function* () {
      const failure = (path: string) => openSafetensors(path).pipe(Effect.scoped, Effect.flip);
      assert.match((yield* failure(`${folder}/none`)).message, /readable: found No such file/);
      assert.match((yield* failure(folder)).message, /must be a regular file: found a folder$/);
      if (Deno.build.os === "windows") return;
      const made = yield* Effect.promise(() =>
        new Deno.Command("mkfifo", { args: [`${folder}/pipe`] }).output()
      );
      assert.ok(made.success);
      assert.match(
        (yield* failure(`${folder}/pipe`)).message,
        /regular file: found something else$/,
      );
    }),
);

/** One damage to a file; `at` and `value` are anything. */
const mutate = (bytes: Uint8Array, kind: number, at: number, value: number): Uint8Array => {
  const i = bytes.length === 0 ? 0 : at % bytes.length;
  const copy = bytes.slice();
  const text = () => new TextDecoder().decode(bytes.subarray(8));
  const rewritten = (pattern: RegExp, tokens: ReadonlyArray<string>) => {
    const places = [...text().matchAll(pattern)];
    const place = places[at % Math.max(places.length, 1)];
    if (place === undefined) return copy;
    const token = tokens[value % tokens.length]!;
    const json = text().slice(0, place.index) + token + text().slice(place.index + place[0].length);
    const length = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
    return fileOf(json, undefined, length + BigInt(token.length - place[0].length));
  };
  if (bytes.length < 8) return copy;
  switch (kind) {
    case 0: // a bit
      copy[i]! ^= 1 << value % 8;
      return copy;
    case 1: // a byte
      copy[i] = value;
      return copy;
    case 2: // the end
      return copy.slice(0, i);
    case 3: // a stretch out
      return Uint8Array.from([...bytes.subarray(0, i), ...bytes.subarray(i + value % 30)]);
    case 4: // a stretch twice
      return Uint8Array.from([...bytes.subarray(0, i + value % 60), ...bytes.subarray(i)]);
    case 5: // the length
      new DataView(copy.buffer).setBigUint64(0, BigInt(value) << BigInt(at % 60), true);
      return copy;
    case 6: // a number of the header
      return rewritten(/\d+/g, ["0", "-1", "1e9", "9007199254740993", "1e400", "null", "[]", "2"]);
    default: // a name or a bracket
      return rewritten(/"\w+"|[[\]{}:,]/g, [
        '"q"',
        '"shape"',
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "[[]]",
      ]);
  }
};

inFolder(
  "no damage to a file makes it do anything but open or fail with FileInvalid",
  (folder) =>
    Effect.promise(() => {
      const path = `${folder}/damaged`;
      const valid = fileOf({
        __metadata__: { seed: "3" },
        q,
        k: { dtype: "BF16", shape: [2, 2, 3], data_offsets: [24, 48] },
        e: { dtype: "U8", shape: [0, 5], data_offsets: [48, 48] },
        v: { dtype: "I64", shape: [], data_offsets: [48, 56] },
      }, new Uint8Array(56));
      let opened = 0;
      const damage = fc.array(fc.tuple(fc.nat(7), fc.nat(), fc.nat()), {
        minLength: 1,
        maxLength: 3,
      });
      return fc.assert(
        fc.asyncProperty(damage, async (damages) => {
          const bytes = damages.reduce<Uint8Array>((all, damage) => mutate(all, ...damage), valid);
          Deno.writeFileSync(path, bytes);
          const use = Effect.gen(function* () {
            const file = yield* openSafetensors(path);
            opened++;
            for (const tensor of file.tensors.values()) {
              if (tensor.elementBytes === undefined) continue;
              const read = yield* file.read(tensor.name, everything(tensor.elements));
              assert.equal(read.length, tensor.end - tensor.begin);
            }
          });
          const { result, largest } = await use.pipe(
            Effect.scoped,
            Effect.result,
            largestAllocation,
            Effect.runPromise, // rejects on a defect
          );
          if (Result.isFailure(result)) assert.ok(result.failure instanceof FileInvalid);
          assert.ok(largest <= bytes.length + 8, `${largest} bytes were allocated`);
        }),
        { numRuns: 2000 },
      ).then(() => assert.ok(opened > 20, `only ${opened} files were opened at all`));
    }),
);

/** A file with one tensor "q" of U8, at `path`. */
const makeFile = (path: string, elements: number) => {
  const file = Deno.openSync(path, { write: true, create: true, truncate: true });
  const tensor = { dtype: "U8", shape: [elements], data_offsets: [0, elements] };
  const head = fileOf({ q: tensor });
  file.writeSync(head);
  file.truncateSync(head.length + elements);
  file.close();
};

inFolder(
  "a file that shrinks while it is read fails the read",
  (folder) =>
    Effect.gen(function* () {
      const path = `${folder}/shrinks`;
      makeFile(path, 1000);
      const { size } = Deno.statSync(path);
      const file = yield* openSafetensors(path);
      Deno.truncateSync(path, size - 500);
      assert.equal((yield* file.read("q", [{ offset: 0, length: 500 }])).length, 500);
      for (const wanted of [[{ offset: 499, length: 2 }], everything(1000)]) {
        const { message } = yield* Effect.flip(file.read("q", wanted));
        assert.equal(
          message,
          `Cannot read tensor "q" of "${path}": it must keep its ${size} bytes while it is read: ` +
            `found its end after ${size - 500} bytes`,
        );
      }
    }),
);

inFolder("a wrong name or region fails the read", (folder) =>
  Effect.gen(function* () {
    const path = `${folder}/small`;
    makeFile(path, 10);
    const file = yield* openSafetensors(path);
    const absent = yield* Effect.flip(file.read("k", everything(1)));
    assert.match(absent.message, /Cannot read tensor "k" of .*: the file must have it: found "q"$/);
    for (
      const [offset, length] of [[0, 11], [10, 1], [-1, 2], [0, -1], [0.5, 1], [0, NaN], [
        2 ** 60,
        1,
      ]]
    ) {
      const { message } = yield* Effect.flip(
        file.read("q", [{ offset: offset!, length: length! }]),
      );
      assert.match(message, /the 10 elements of tensor "q" must hold every region: found/);
    }
  }));

inFolder(
  "reads and writes that the system cuts short go on until all is done",
  (folder) =>
    Effect.gen(function* () {
      const path = `${folder}/short`;
      const bytes = random(1000);
      const few = (method: (into: Uint8Array) => number | null) =>
        function (this: Deno.FsFile, buffer: Uint8Array) {
          return method.call(this, buffer.subarray(0, 7));
        };
      const written = Effect.gen(function* () {
        const writer = yield* createSafetensors(path, [{ name: "q", dtype: "U8", shape: [1000] }]);
        yield* writer.write("q", everything(1000), bytes);
        yield* writer.commit;
      }).pipe(Effect.scoped);
      const file = Deno.FsFile.prototype;
      yield* withMethod(file, "writeSync", (all) => few(all) as typeof all, written);
      const read = Effect.gen(function* () {
        return yield* (yield* openSafetensors(path)).read("q", everything(1000));
      }).pipe(Effect.scoped);
      assert.deepEqual(yield* withMethod(file, "readSync", few, read), bytes);

      const stuck = yield* withMethod(file, "writeSync", () => () => 0, Effect.flip(written));
      assert.match(
        stuck.message,
        /its disk must take \d+ bytes: found a device that takes no more/,
      );
    }),
);

inFolder(
  "other fibers run while a large tensor is read or written",
  (folder) =>
    Effect.gen(function* () {
      const path = `${folder}/large`;
      const size = 5 * pieceBytes;
      let turns = 0;
      yield* Effect.yieldNow.pipe(
        Effect.andThen(Effect.sync(() => turns++)),
        Effect.forever,
        Effect.forkScoped,
      );
      makeFile(path, size);
      const file = yield* openSafetensors(path);
      turns = 0;
      const bytes = yield* file.read("q", everything(size));
      assert.ok(turns >= 2, `${turns} turns during the read`);
      const writer = yield* createSafetensors(`${path}2`, [{
        name: "q",
        dtype: "U8",
        shape: [size],
      }]);
      turns = 0;
      yield* writer.write("q", everything(size), bytes);
      assert.ok(turns >= 2, `${turns} turns during the write`);
    }),
);

inFolder("reads of several fibers do not mix", (folder) =>
  Effect.gen(function* () {
    const path = `${folder}/shared`;
    makeFile(path, 3 * pieceBytes);
    const content = random(3 * pieceBytes);
    const headerBytes = Deno.statSync(path).size - content.length;
    const raw = Deno.openSync(path, { write: true });
    raw.seekSync(headerBytes, Deno.SeekMode.Start);
    raw.writeSync(content);
    raw.close();
    const file = yield* openSafetensors(path);
    const strided = (first: number) =>
      Array.from({ length: 3 * 2 ** 14 }, (_, i) => ({ offset: i * 256 + first, length: 64 }));
    const firsts = [0, 64, 128];
    const all = yield* Effect.all(firsts.map((first) => file.read("q", strided(first))), {
      concurrency: "unbounded",
    });
    all.forEach((bytes, i) => {
      strided(firsts[i]!).forEach(({ offset }, row) => {
        for (const x of [0, 63]) assert.equal(bytes[row * 64 + x], content[offset + x]);
      });
    });
  }));

const o = { name: "o", dtype: "F32", shape: [4] };
const four = new Uint8Array(Float32Array.of(1, 2, 3, 4).buffer);

inFolder(
  "the file appears with the commit; until then the old one stays",
  (folder) =>
    Effect.gen(function* () {
      const path = `${folder}/out.safetensors`;
      Deno.writeTextFileSync(path, "old");
      yield* Effect.gen(function* () {
        const writer = yield* createSafetensors(path, [o]);
        const [part, ...more] = namesIn(folder).filter((name) => name !== "out.safetensors");
        assert.match(part!, /^\.out\.safetensors\.[0-9a-f]{8}\.part$/);
        assert.deepEqual(more, []);
        assert.equal(Deno.statSync(`${folder}/${part}`).size % 8, 0);
        // Bytes that others share are taken, too.
        const shared = new Uint8Array(new SharedArrayBuffer(16));
        shared.set(four);
        yield* writer.write("o", everything(4), shared);
        assert.equal(Deno.readTextFileSync(path), "old");
        yield* writer.commit;
        assert.deepEqual(namesIn(folder), ["out.safetensors"]);
        for (const late of [writer.write("o", everything(4), four), writer.commit]) {
          assert.match((yield* Effect.flip(late)).message, /not be finished yet: found a finished/);
        }
      }).pipe(Effect.scoped);
      const file = yield* openSafetensors(path);
      assert.deepEqual(yield* file.read("o", everything(4)), four);
    }),
);

inFolder(
  "a scope that ends without a commit leaves nothing behind",
  (folder) =>
    Effect.gen(function* () {
      const path = `${folder}/out.safetensors`;
      const begun = Effect.gen(function* () {
        const writer = yield* createSafetensors(path, [o]);
        yield* writer.write("o", everything(4), four);
        assert.equal(namesIn(folder).length, 1);
        return writer;
      });
      yield* begun.pipe(Effect.scoped);
      assert.deepEqual(namesIn(folder), []);
      yield* begun.pipe(Effect.andThen(Effect.fail("no")), Effect.scoped, Effect.flip);
      assert.deepEqual(namesIn(folder), []);
      yield* begun.pipe(Effect.andThen(Effect.die("bug")), Effect.scoped, Effect.exit);
      assert.deepEqual(namesIn(folder), []);

      const large = 16 * pieceBytes;
      const ready = yield* Deferred.make<void>();
      const fiber = yield* Effect.gen(function* () {
        const tensors = [{ name: "o", dtype: "U8", shape: [large] }];
        const writer = yield* createSafetensors(path, tensors);
        yield* Deferred.succeed(ready, undefined);
        yield* writer.write("o", everything(large), new Uint8Array(large));
        return yield* Effect.never;
      }).pipe(Effect.scoped, Effect.forkChild({ startImmediately: true }));
      yield* Deferred.await(ready);
      yield* Effect.yieldNow;
      assert.equal(namesIn(folder).length, 1);
      yield* Fiber.interrupt(fiber);
      assert.deepEqual(namesIn(folder), []);
    }),
);

inFolder(
  "a commit that cannot rename fails and leaves nothing behind",
  (folder) =>
    Effect.gen(function* () {
      const path = `${folder}/out.safetensors`;
      const failure = yield* Effect.gen(function* () {
        const writer = yield* createSafetensors(path, [o]);
        yield* writer.write("o", everything(4), four);
        Deno.mkdirSync(path); // somebody was faster
        yield* writer.commit;
      }).pipe(Effect.scoped, Effect.flip);
      assert.match(failure.message, /^Cannot finish ".*": its folder must be there and writable/);
      assert.deepEqual(namesIn(folder), ["out.safetensors"]);
    }),
);

inFolder(
  "a tensor that was not written in full cannot be committed",
  (folder) =>
    Effect.gen(function* () {
      const path = `${folder}/out.safetensors`;
      const writer = yield* createSafetensors(path, [o, { ...o, name: "lse" }]);
      yield* writer.write("lse", everything(4), four);
      yield* writer.write("o", [{ offset: 0, length: 3 }], four.subarray(0, 12));
      const { message } = yield* Effect.flip(writer.commit);
      assert.match(message, /all 16 bytes of tensor "o" must have been written: found 12$/);
      assert.throws(() => Deno.statSync(path), Deno.errors.NotFound);
      yield* writer.write("o", [{ offset: 3, length: 1 }], four.subarray(12));
      yield* writer.commit;
    }),
);

inFolder(
  "a write of a wrong name, region or number of bytes fails",
  (folder) =>
    Effect.gen(function* () {
      const writer = yield* createSafetensors(`${folder}/out.safetensors`, [o]);
      const failures = {
        'the file must have been created with it: found "o"': writer.write("x", [], four),
        'the 4 elements of tensor "o" must hold every region': writer.write(
          "o",
          [{ offset: 1, length: 4 }],
          four,
        ),
        "its regions must have 16 bytes, as was given: found 12": writer.write(
          "o",
          everything(3),
          four,
        ),
      };
      for (const [sentence, write] of Object.entries(failures)) {
        const { message } = yield* Effect.flip(write);
        assert.ok(message.includes(sentence), message);
      }
    }),
);

inFolder(
  "what cannot be written is refused when the file is created",
  (folder) =>
    Effect.gen(function* () {
      const failure = (path: string, tensors = [o]) =>
        createSafetensors(path, tensors).pipe(Effect.scoped, Effect.flip);
      Deno.writeTextFileSync(`${folder}/file`, "");
      const places = [`${folder}/none/out`, `${folder}/file/out`, "/proc/out"];
      for (const path of places) {
        assert.match(
          (yield* failure(path)).message,
          /its folder must be there and writable: found/,
        );
      }
      assert.match((yield* failure(folder)).message, /must be a regular file .*: found a folder$/);
      assert.match((yield* failure("/dev/null")).message, /regular file .*: found something else$/);
      assert.ok(Deno.statSync("/dev/null").isCharDevice);

      const path = `${folder}/out`;
      const tensors: ReadonlyArray<readonly [Array<typeof o>, RegExp]> = [
        [[o, o], /its header must have every key once: found "o" twice$/],
        [
          [{ ...o, name: "__metadata__" }],
          /its "__metadata__" must have a text under "shape"|"dtype"/,
        ],
        [[{ ...o, dtype: "f32" }], /must have one of BOOL, .* as dtype: found "f32"$/],
        [[{ ...o, shape: [-1] }], /found -1 as its dimension 0$/],
        [[{ ...o, shape: [NaN] }], /found null as its dimension 0$/],
        [[{ ...o, shape: [2 ** 30, 2 ** 30] }], /Cannot create/],
      ];
      for (const [declared, sentence] of tensors) {
        assert.match((yield* failure(path, declared)).message, sentence);
      }
      // Such a header itself takes seconds to make.
      const long = () => () => new Uint8Array(100_000_001);
      const { message } = yield* withMethod(TextEncoder.prototype, "encode", long, failure(path));
      assert.match(message, /header must have at most 100000000 bytes: found 100000008 bytes$/);
      assert.deepEqual(namesIn(folder), ["file"]);
    }),
);

/** A file system of 64 KiB, where this user may mount one. */
const tiny = (folder: string) =>
  Effect.acquireRelease(
    Effect.promise(() =>
      new Deno.Command("mount", {
        args: ["-t", "tmpfs", "-o", "size=64k", "annulus-test", folder],
      }).output()
    ),
    () => Effect.promise(() => new Deno.Command("umount", { args: [folder] }).output()),
  );

const mayMount = await Effect.gen(function* () {
  if (Deno.build.os !== "linux" || Deno.uid() !== 0) return false;
  return (yield* tiny(yield* scratch)).success;
}).pipe(Effect.scoped, Effect.runPromise);

inFolder(
  `a full disk fails the write and leaves nothing behind${
    mayMount ? "" : " (needs leave to mount)"
  }`,
  (folder) =>
    Effect.gen(function* () {
      yield* tiny(folder);
      const tensors = [{ name: "o", dtype: "U8", shape: [2 ** 20] }];
      const exit = yield* Effect.gen(function* () {
        const writer = yield* createSafetensors(`${folder}/out`, tensors);
        yield* writer.write("o", everything(2 ** 20), new Uint8Array(2 ** 20));
        yield* writer.commit;
      }).pipe(Effect.scoped, Effect.flip, Effect.exit);
      assert.ok(Exit.isSuccess(exit));
      assert.match(
        exit.value.message,
        /^Cannot write tensor "o" of ".*": its disk must take \d+ bytes: found No space left/,
      );
      assert.deepEqual(namesIn(folder), []);
    }),
  { ignore: !mayMount },
);

const hasPython = await new Deno.Command("python3", { args: ["--version"], stdout: "null" })
  .output().then(({ success }) => success, () => false);

inFolder(
  `the file of another program is read as it means it${hasPython ? "" : " (needs python3)"}`,
  (folder) =>
    Effect.gen(function* () {
      for (const dtype of ["f32", "f16", "bf16"] satisfies ReadonlyArray<DType>) {
        for (const numpy of [[], ["--no-numpy"]]) {
          const path = `${folder}/other.safetensors`;
          const script = new URL("../support/make_safetensors.py", import.meta.url).pathname;
          const size = "--batch 2 --tokens 203 --heads 6 --kv-heads 3 --head-dim 36 --seed 5";
          const made = yield* Effect.promise(() =>
            new Deno.Command("python3", {
              args: [script, path, ...size.split(" "), "--dtype", dtype, ...numpy],
              stderr: "inherit",
            }).output()
          );
          assert.ok(made.success);
          const report: Record<
            string,
            { dtype: string; shape: Array<number>; elements: Record<string, number> }
          > = JSON.parse(new TextDecoder().decode(made.stdout));
          const file = yield* openSafetensors(path);
          assert.equal(file.metadata.get("seed"), "5");
          assert.deepEqual([...file.tensors.keys()], ["q", "k", "v"]);
          for (const [name, said] of Object.entries(report)) {
            const tensor = file.tensor(name)!;
            assert.deepEqual([tensor.dtype, tensor.shape], [said.dtype, said.shape]);
            const indices = Object.keys(said.elements).map(Number);
            assert.equal(indices.length, 6);
            const wanted = indices.map((offset) => ({ offset, length: 1 }));
            const values = [...decode(dtype, yield* file.read(name, wanted))];
            assert.deepEqual(values, Object.values(said.elements));
            // Standard normal: the mean of n has deviation 1/√n, their mean square √(2/n).
            const all = decode(dtype, yield* file.read(name, everything(tensor.elements)));
            const mean = all.reduce((a, b) => a + b, 0) / all.length;
            const square = all.reduce((a, b) => a + b * b, 0) / all.length;
            assert.ok(Math.abs(mean) < 6 / Math.sqrt(all.length), `mean ${mean}`);
            assert.ok(Math.abs(square - 1) < 9 / Math.sqrt(all.length), `mean square ${square}`);
          }
        }
      }
    }),
  { ignore: !hasPython },
);
