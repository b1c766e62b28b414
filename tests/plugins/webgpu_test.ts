import { Effect } from "effect";
import assert from "node:assert/strict";
import { webgpu, webgpuWith } from "../../plugins/webgpu.ts";
import {
  type AdapterInfo,
  describe,
  findAdapter,
  isSoftware,
} from "../../plugins/webgpu/adapter.ts";
import { Gpu } from "../../plugins/webgpu/gpu.ts";
import { WebgpuAttention, type WebgpuLimits } from "../../plugins/webgpu/kernel.ts";
import { type KeysIn, program } from "../../plugins/webgpu/program.ts";
import { Device } from "../../runtime/device.ts";
import { encode } from "../../runtime/dtype.ts";
import type { KeyValues, Queries, Tile } from "../../runtime/kernel.ts";
import { bandOf } from "../../runtime/mask.ts";
import { contiguous } from "../../runtime/span.ts";
import { testDevice } from "../contract/device.ts";
import { maxAbs, relativeL2, sameNumbers } from "../support/closeness.ts";
import { attend, begin, check, stretch, stretches } from "../support/cut.ts";
import { normals } from "../support/random.ts";

const adapter = await findAdapter();
const missing = "there is no WebGPU adapter";

const bound = { o: 2e-6, lse: 1e-5 };
const ignored = adapter === undefined ? { ignore: missing } : {};
const own: KeysIn = adapter !== undefined && isSoftware(adapter.info) ? "texture" : "buffer";
const other: KeysIn = own === "texture" ? "buffer" : "texture";

testDevice(webgpu, { bound, ...ignored });

const long = "its program compiles long and differs only in a length";
testDevice({ ...webgpuWith({ keysIn: other }), name: `webgpu with K/V in a ${other}` }, {
  bound,
  skip: Object.fromEntries([16, 96, 128, 256].map((headDim) => [`head dim ${headDim}`, long])),
  ...ignored,
});

/** A test that needs an adapter. */
const onAdapter = (name: string, fn: () => Promise<void>): void =>
  Deno.test({
    name: adapter === undefined ? `${name} (not here: ${missing})` : name,
    ignore: adapter === undefined,
    fn,
  });

// --- What an adapter is -------------------------------------------------------------------------

const nameless = { vendor: "", architecture: "", device: "", description: "" };

Deno.test("an adapter that computes on the CPU is never taken for a GPU", () => {
  const cases: ReadonlyArray<readonly [Partial<AdapterInfo>, boolean]> = [
    [{ vendor: "65541", description: "llvmpipe (LLVM 15.0.6, 256 bits)" }, true],
    [{ description: "Mesa lavapipe" }, true],
    [{ vendor: "google", architecture: "swiftshader" }, true],
    [{ description: "SwiftShader Device (Subzero)" }, true],
    [{ description: "Microsoft Basic Render Driver" }, true],
    [{ description: "WARP" }, true],
    [{ description: "Apple Software Renderer" }, true],
    [{ vendor: "nvidia", description: "some new name", isFallbackAdapter: true }, true],
    [{ vendor: "nvidia", architecture: "hopper", isFallbackAdapter: false }, false],
    [{ vendor: "4318", description: "NVIDIA GeForce RTX 4090" }, false],
    [{ description: "AMD Radeon RX 7900 XTX (RADV NAVI31)" }, false],
    [{ description: "Intel(R) Arc(tm) A770 Graphics (DG2)" }, false],
    [{ vendor: "apple", description: "Apple M3 Max" }, false],
    [{ description: "NVIDIA Warpdrive 9" }, false],
  ];
  for (const [info, software] of cases) {
    assert.equal(isSoftware({ ...nameless, ...info }), software, JSON.stringify(info));
  }
});

Deno.test("an adapter without a description is described by its other names", () => {
  assert.equal(describe({ ...nameless, vendor: "a", device: "b" }), "WebGPU on a b");
  assert.equal(describe(nameless), "WebGPU on an adapter without a name");
});

onAdapter("the device says what it is, and asked for no optional feature", async () => {
  const info = await Device.use(({ info }) => Effect.succeed(info)).pipe(
    Effect.provide(webgpu.layer),
    Effect.runPromise,
  );
  const software = isSoftware(adapter!.info);
  assert.equal(info.name, "webgpu");
  assert.equal(info.software, software);
  assert.match(info.backend, /^WebGPU on /);
  assert.deepEqual(info.features, []);
  assert.equal(info.largestTensor, adapter!.limits.maxStorageBufferBindingSize);
  assert.equal(await Effect.runPromise(webgpu.score), software ? 10 : 100);
});

// --- Splitting ----------------------------------------------------------------------------------

onAdapter("what exceeds a buffer is split, and computes the same", () => {
  const shape = { batch: 2, tokens: 131, heads: 4, kvHeads: 2, headDim: 64, scale: 0.125 };
  const count = shape.batch * shape.tokens * shape.headDim;
  const cut = {
    problem: { ...shape, mask: { kind: "window", window: 70 } as const },
    inputs: {
      q: normals(1, count * shape.heads),
      k: normals(2, count * shape.kvHeads),
      v: normals(3, count * shape.kvHeads),
    },
    // Tiles that begin and end inside of pieces.
    queries: [stretch(0, 50), stretch(50, 131)],
    blocks: stretches([29, 62, 40]),
  };
  // Both batch entries have 2048 bytes a query token and 1024 a key token: pieces of up to 9 and 33, 18 and 66 tokens.
  return Effect.gen(function* () {
    const whole = yield* attend(cut).pipe(Effect.provide(webgpu.layer));
    for (const largestBuffer of [9 * 2048 + 12, 33 * 2048]) {
      yield* Effect.gen(function* () {
        assert.equal((yield* Device).info.largestTensor, largestBuffer);
        yield* check(cut);
        const split = yield* attend(cut);
        assert.ok(relativeL2(split.o, whole.o) <= 2e-6);
        assert.ok(maxAbs(split.lse, whole.lse) <= 1e-5);
        assert.ok(sameNumbers(split.o, (yield* attend(cut)).o), "the same calls gave other bits");
      }).pipe(Effect.provide(webgpuWith({ largestBuffer }).layer));
    }
    const error = yield* Effect.flip(begin(cut)).pipe(
      Effect.scoped,
      Effect.provide(webgpuWith({ largestBuffer: 1024 }).layer),
    );
    assert.match(error.message, /one token has 2048 bytes, and a buffer at most 1024/);
  }).pipe(Effect.runPromise);
});

onAdapter("a block of many keys, added chunk by chunk, is exact", () => {
  const shape = { batch: 1, tokens: 1000, heads: 1, kvHeads: 1, headDim: 64, scale: 0.125 };
  const [q, k, v] = [1, 2, 3].map((seed) => normals(seed, shape.tokens * shape.headDim));
  return check({
    problem: { ...shape, mask: { kind: "window", window: 700 } },
    inputs: { q: q!, k: k!, v: v! },
    queries: [stretch(0, 1000)],
    blocks: stretches([999, 1]),
  }).pipe(Effect.provide(webgpu.layer), Effect.runPromise);
});

// --- Errors, on this thread ---------------------------------------------------------------------

const queries: Queries = {
  batch: 1,
  heads: 2,
  kvHeads: 1,
  headDim: 64,
  scale: 0.125,
  tokens: 40,
  dtype: "f32",
  bytes: encode("f32", normals(1, 40 * 2 * 64)),
};
const block: KeyValues = {
  tokens: 40,
  dtype: "f32",
  bytes: encode("f32", normals(2, 2 * 40 * 64)),
};
const tile: Tile = {
  row: 0,
  queries: contiguous(0, 40),
  column: 0,
  keys: contiguous(0, 40),
  full: false,
};
const causal = bandOf({ kind: "causal" });

/** Opens attention on a device of its own, for as long as `use` runs. */
const withAttention = async (
  use: (attention: WebgpuAttention, device: GPUDevice) => Promise<void>,
  { text, ...limits }: Partial<WebgpuLimits> & { readonly text?: typeof program } = {},
): Promise<void> => {
  const device = await (await findAdapter())!.requestDevice();
  const all = { keysIn: own, largestBuffer: 2 ** 27, tallestTexture: 8192, ...limits };
  try {
    await use(new WebgpuAttention(new Gpu(device), all, text), device);
  } finally {
    device.destroy();
    await device.lost;
  }
};

onAdapter("no buffer is larger than the limit", () =>
  withAttention(async (attention, device) => {
    const sizes: Array<number> = [];
    const createBuffer = device.createBuffer.bind(device);
    device.createBuffer = (descriptor) => {
      if (descriptor.label !== "tasks") sizes.push(descriptor.size);
      return createBuffer(descriptor);
    };
    const accumulation = await attention.begin(queries);
    await accumulation.absorb(block, [tile], causal);
    await accumulation.finish();
    accumulation.close();
    assert.equal(Math.max(...sizes), 10 * 512); // ten tokens in each of four pieces
  }, { keysIn: "buffer", largestBuffer: 11 * 512 }));

onAdapter("no texture is higher than the limit", async () => {
  const tokens = 300; // 256 heads of 64 components lie side by side
  const many = { tokens, dtype: "f32", bytes: encode("f32", normals(2, 2 * tokens * 64)) } as const;
  const results: Array<Float32Array> = [];
  for (const tallestTexture of [1, 2]) {
    const heights: Array<number> = [];
    await withAttention(async (attention, device) => {
      await attention.prepare("f32", 64);
      const createTexture = device.createTexture.bind(device);
      device.createTexture = (descriptor) => {
        const texture = createTexture(descriptor);
        heights.push(texture.height);
        return texture;
      };
      const accumulation = await attention.begin(queries);
      await accumulation.absorb(
        many,
        [{ ...tile, keys: contiguous(0, tokens), full: true }],
        causal,
      );
      results.push((await accumulation.finish()).o);
      accumulation.close();
    }, { keysIn: "texture", tallestTexture });
    assert.ok(heights.every((height) => height <= tallestTexture), `heights ${heights}`);
  }
  assert.ok(relativeL2(results[0]!, results[1]!) <= 2e-6);
});

onAdapter("a program that does not compile is refused", () =>
  withAttention(
    (attention) =>
      assert.rejects(attention.prepare("f32", 8), (error: Error) => {
        assert.match(error.message, /nonsense/);
        return true;
      }),
    { text: (...of) => program(...of).replace("let keyToken =", "let keyToken = nonsense +") },
  ));

onAdapter("a program that computes wrong results is refused, at every use", () =>
  withAttention(
    async (attention) => {
      for (const dtype of ["f32", "f32", "bf16"] as const) {
        await assert.rejects(attention.prepare(dtype, 8), /its driver computes wrong results/);
      }
    },
    // A state that is not rescaled is wrong as soon as a second group of keys has a new maximum.
    { text: (...of) => program(...of).replaceAll(" * keep0 +", " +") },
  ));

onAdapter(
  "a call that WebGPU refuses fails, and does not go on with memory never written",
  () =>
    withAttention(async (attention, device) => {
      await attention.prepare("f32", 64);
      const createBuffer = device.createBuffer.bind(device);
      const without = (usage: number) => {
        device.createBuffer = (descriptor) =>
          createBuffer({ ...descriptor, usage: descriptor.usage & ~usage });
      };
      without(GPUBufferUsage.COPY_DST);
      await assert.rejects(async () => await attention.begin(queries), /queries/);
      without(GPUBufferUsage.COPY_SRC);
      const accumulation = await attention.begin(queries);
      await accumulation.absorb(block, [tile], causal);
      await assert.rejects(async () => await accumulation.finish(), /outputs/);
      accumulation.close();
      without(GPUBufferUsage.STORAGE);
      const blind = await attention.begin(queries);
      await assert.rejects(async () => await blind.absorb(block, [tile], causal), /usage/i);
      blind.close();
    }),
);

onAdapter(
  "nothing works after the device is lost",
  () =>
    withAttention(async (attention, device) => {
      const accumulation = await attention.begin(queries);
      await accumulation.absorb(block, [tile], causal);
      device.destroy();
      const lost = /lost/;
      await assert.rejects(async () => await accumulation.finish(), lost);
      await assert.rejects(async () => await accumulation.absorb(block, [tile], causal), lost);
      await assert.rejects(attention.begin(queries), lost);
      accumulation.close();
    }),
);

onAdapter(
  "an error that no call asked about spoils what follows",
  () =>
    withAttention(async (attention, device) => {
      const accumulation = await attention.begin(queries);
      device.createBuffer({ label: "huge", size: 2 ** 40, usage: GPUBufferUsage.STORAGE });
      await assert.rejects(async () => {
        await accumulation.absorb(block, [tile], causal);
        await accumulation.finish();
      }, /size/);
      accumulation.close();
    }),
);

onAdapter(
  "a block of another size, and positions too far, are refused",
  () =>
    withAttention(async (attention) => {
      const accumulation = await attention.begin(queries);
      await assert.rejects(
        async () => await accumulation.absorb({ ...block, tokens: 39 }, [tile], causal),
        /a block of 19968 bytes was announced, 20480 came/,
      );
      const keys = contiguous(2 ** 30 - 39, 40);
      await assert.rejects(
        async () => await accumulation.absorb(block, [{ ...tile, keys }], causal),
        /its positions end before 1073741824/,
      );
      accumulation.close();
      await assert.rejects(
        attention.begin({ ...queries, heads: 65536, tokens: 0, bytes: new Uint8Array() }),
        /65536 heads in 1 batch entries are more than its 65535/,
      );
    }),
);
