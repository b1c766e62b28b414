import { Effect } from "effect";
import assert from "node:assert/strict";
import { denseAttention } from "../../kernels/oracle.ts";
import { referenceKernel } from "../../kernels/reference.ts";
import { webgpu, webgpuWith } from "../../plugins/webgpu.ts";
import {
  type AdapterInfo,
  describe,
  findAdapter,
  isSoftware,
} from "../../plugins/webgpu/adapter.ts";
import { Gpu } from "../../plugins/webgpu/gpu.ts";
import { type AttentionOptions, WebgpuAttention } from "../../plugins/webgpu/kernel.ts";
import { type Choice, ladder, versionNamed } from "../../plugins/webgpu/ladder.ts";
import { rowsWithin } from "../../plugins/webgpu/key_memory.ts";
import { openWebgpu } from "../../plugins/webgpu/open.ts";
import { program } from "../../plugins/webgpu/program.ts";
import { checkSubgroups, countSubgroup } from "../../plugins/webgpu/subgroups.ts";
import { Device } from "../../runtime/device.ts";
import { bytesOf, encode } from "../../runtime/dtype.ts";
import type { AttentionKernel, KeyValues, Queries, Tile } from "../../runtime/kernel.ts";
import { unbounded } from "../../runtime/mask.ts";
import { contiguous } from "../../runtime/span.ts";
import { deviceCases, problem, testDevice, whole } from "../contract/device.ts";
import { maxAbs, relativeL2, sameNumbers } from "../support/closeness.ts";
import { attend, begin, check, stretch, stretches } from "../support/cut.ts";
import { normals } from "../support/random.ts";
import { bandOf, causal, judged, window } from "../support/masks.ts";

const adapter = await findAdapter();
const missing = "there is no WebGPU adapter";

const bound = { o: 2e-6, lse: 1e-5 };
const ignored = adapter === undefined ? { ignore: missing } : {};
const software = adapter !== undefined && isSoftware(adapter.info);

testDevice(webgpu, { bound, ...ignored });

/**
 * The other versions differ in how they read keys and how they cut up the work; a case each for these, since every
 * head dimension and number format is a program that compiles for seconds.
 */
const somewhat: ReadonlyArray<string> = [
  "8 query heads share 2 key heads",
  "head dim 80",
  "batch 3 of 1 tokens",
  "batch 3 of 62 tokens",
  "bidirectional over blocks of 29",
  "window(size: 28) over blocks of 29",
  "one block of many keys",
  "every rank of a ring of 3, weighted striped",
  "a shard without tokens",
  "a block of which no pair counts",
  "a row that sees no key is 0, and its log-sum-exp −∞",
  "all logits near -60000",
  "a row of logits near the lowest float32, among others",
  "a score of no number is computed or refused, and never lost among blocks",
  "the same calls give the same bits",
  "two accumulators do not disturb each other",
];
const part = {
  name: "what of the contract a version may break",
  cases: deviceCases.filter(({ name }) => somewhat.includes(name)),
};
assert.equal(part.cases.length, somewhat.length);
for (const { number, name, subgroups, file } of ladder) {
  if (subgroups && software) continue; // which is what `auto` took
  const none = subgroups && !software ? { ignore: "its workgroups are subgroups on llvmpipe" } : {};
  const formats = deviceCases.filter(({ name }) => /^b?f16 inputs/.test(name));
  testDevice({ ...webgpuWith({ kernel: name }), name: `webgpu with kernel ${number}, ${name}` }, {
    bound,
    contract: file === "attend" ? part : { ...part, cases: [...part.cases, ...formats] },
    ...none,
    ...ignored,
  });
}

/** A test that needs an adapter. */
const onAdapter = (name: string, fn: () => Promise<void>): void =>
  Deno.test({
    name: adapter === undefined ? `${name} (not here: ${missing})` : name,
    ignore: adapter === undefined,
    fn,
  });

onAdapter(
  "no version leaves keys out, however many a block has that only some rows see",
  async () => {
    // llvmpipe ends loops after 65,535 turns, and the first row, which sees nothing, keeps all keys from being clear.
    const keys = 140_000;
    const shape = { batch: 1, heads: 1, kvHeads: 1, headDim: 4, scale: 0.5, dtype: "f32" } as const;
    const kv = normals(2, 2 * keys * shape.headDim);
    const attended = async (kernel: AttentionKernel) => {
      const bytes = bytesOf(normals(1, 2 * shape.headDim));
      const accumulation = await kernel.begin({ ...shape, tokens: 2, bytes });
      const tile = {
        row: 0,
        queries: { start: 0, run: 1, stride: 200_000, first: 0, count: 2 },
        column: 0,
        keys: contiguous(1, keys),
        full: false,
      };
      const block = { tokens: keys, dtype: "f32", bytes: bytesOf(kv) } as const;
      await accumulation.absorb(block, [tile], { back: unbounded, ahead: 0 });
      const { o, lse } = await accumulation.finish();
      accumulation.close();
      assert.deepEqual([lse[0], ...o.subarray(0, 4)], [-Infinity, 0, 0, 0, 0]);
      return [lse[1]!, ...o.subarray(4)];
    };
    const wanted = await attended(referenceKernel());
    for (const { name, subgroups } of ladder) {
      if (subgroups && !software) continue;
      const kernel = await openWebgpu({ kernel: name });
      const found = await attended(kernel);
      await kernel.close!();
      found.forEach((x, i) => assert.ok(Math.abs(x - wanted[i]!) <= 1e-5, `${name}: ${x}`));
    }
  },
);

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

onAdapter("the device says what it is, and asked for subgroups alone", async () => {
  const info = await Device.use(({ info }) => Effect.succeed(info)).pipe(
    Effect.provide(webgpu.layer),
    Effect.runPromise,
  );
  assert.equal(info.name, "webgpu");
  assert.equal(info.software, software);
  assert.match(info.backend, /^WebGPU on /);
  assert.deepEqual(info.features, software ? ["subgroups"] : []);
  assert.deepEqual(info.notes, []);
  assert.equal(info.largestTensor, adapter!.limits.maxStorageBufferBindingSize);
  assert.equal(await Effect.runPromise(webgpu.score), software ? 10 : 100);
});

// --- Splitting ----------------------------------------------------------------------------------

onAdapter("what exceeds a buffer is split, and computes the same", () => {
  const shape = { batch: 2, tokens: 131, heads: 4, kvHeads: 2, headDim: 64, scale: 0.125 };
  const count = shape.batch * shape.tokens * shape.headDim;
  const cut = {
    problem: { ...shape, attention: window(70) },
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
    problem: { ...shape, attention: window(700) },
    inputs: { q: q!, k: k!, v: v! },
    queries: [stretch(0, 1000)],
    blocks: stretches([999, 1]),
  }).pipe(Effect.provide(webgpu.layer), Effect.runPromise);
});

onAdapter("f16 and bf16 storage costs its rounding alone, however many blocks come", () => {
  const tokens = 640;
  const shape = { batch: 1, tokens, heads: 2, kvHeads: 1, headDim: 64, scale: 0.125 };
  const [q, k, v] = [2, 1, 1].map((heads, i) => normals(i + 1, tokens * heads * 64)) as [
    Float32Array,
    Float32Array,
    Float32Array,
  ];
  const problem = { ...shape, attention: causal };
  const exact = denseAttention(judged(problem), q, k, v);
  return Effect.gen(function* () {
    for (const [dtype, bound] of [["f16", 5e-4], ["bf16", 4e-3]] as const) {
      const errors = [];
      for (const blocks of [1, 4, 64]) {
        const { o } = yield* attend({
          ...{ problem, inputs: { q, k, v }, dtype },
          queries: [stretch(0, tokens)],
          blocks: stretches(Array(blocks).fill(tokens / blocks)),
        });
        errors.push(relativeL2(o, exact.o));
      }
      assert.ok(errors.every((error) => error <= bound), `${dtype}: ${errors}`);
      assert.ok(errors[0]! > bound / 100, "nothing was rounded");
      assert.ok(Math.max(...errors) / errors[0]! <= 1.5, `${dtype}: ${errors}`);
    }
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
const before = bandOf(causal);

/** What an adapter runs as one. */
const vector = adapter?.info.subgroupMaxSize ?? 1;

/** A version with sizes that compile fast. */
const choice = (name: string): Choice => ({
  version: versionNamed(name)!,
  blocking: { rows: 2, keys: 4, lanes: vector },
});

/** Opens attention on a device of its own, for as long as `use` runs. */
const withAttention = async (
  use: (attention: WebgpuAttention, device: GPUDevice) => Promise<void>,
  { kernels = ["textures"], text, ...changes }:
    & Partial<AttentionOptions>
    & { readonly kernels?: ReadonlyArray<string>; readonly text?: typeof program } = {},
): Promise<void> => {
  const device = await (await findAdapter())!.requestDevice();
  const options = {
    choices: () => kernels.map(choice),
    directive: "",
    warn: assert.fail,
    largestBuffer: 2 ** 27,
    tallestTexture: 8192,
    ...changes,
  };
  const gpu = new Gpu(device);
  try {
    await use(new WebgpuAttention(gpu, options, text), device);
  } finally {
    await gpu.close();
  }
};

onAdapter("no buffer is larger than the limit", () =>
  withAttention(async (attention, device) => {
    await attention.prepare("f32", 64);
    const sizes: Array<number> = [];
    const createBuffer = device.createBuffer.bind(device);
    device.createBuffer = (descriptor) => {
      if (descriptor.label !== "tasks") sizes.push(descriptor.size);
      return createBuffer(descriptor);
    };
    const accumulation = await attention.begin(queries);
    await accumulation.absorb(block, [tile], before);
    await accumulation.finish();
    accumulation.close();
    assert.equal(Math.max(...sizes), 10 * 512); // ten tokens in each of four pieces
  }, { kernels: ["registers"], largestBuffer: 11 * 512 }));

onAdapter("no texture is higher than the limit", async () => {
  const tokens = 1100; // 256 heads of 64 components lie side by side
  const many = { tokens, dtype: "f32", bytes: encode("f32", normals(2, 2 * tokens * 64)) } as const;
  const results: Array<Float32Array> = [];
  for (const tallestTexture of [4, 5]) {
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
        before,
      );
      results.push((await accumulation.finish()).o);
      accumulation.close();
    }, { tallestTexture });
    assert.ok(heights.every((height) => height <= tallestTexture), `heights ${heights}`);
  }
  assert.ok(relativeL2(results[0]!, results[1]!) <= 2e-6);
});

/** A program that does not compile. */
const nonsense: typeof program = (of) =>
  program(of).replace("let keyToken =", "let keyToken = nonsense +");

/** A state that is not rescaled is wrong as soon as a second group of keys has a new maximum. */
const forgetful: typeof program = (of) => program(of).replaceAll(" * keep0 +", " +");

onAdapter("a program that does not compile is refused", () =>
  withAttention(
    (attention) => assert.rejects(attention.prepare("f32", 8), /nonsense/),
    { text: nonsense },
  ));

onAdapter("a program that computes wrong results is refused, at every use", () =>
  withAttention(
    async (attention) => {
      for (const dtype of ["f32", "f32", "bf16"] as const) {
        await assert.rejects(attention.prepare(dtype, 8), /its driver computes wrong results/);
      }
    },
    { text: forgetful },
  ));

onAdapter("a wrong program in one of its variants alone is refused", async () => {
  for (const wrong of ["clear", "masked"]) {
    await withAttention(
      (attention) => assert.rejects(attention.prepare("f32", 8), /its driver computes wrong/),
      { text: (of) => (of.variant === wrong ? forgetful : program)(of) },
    );
  }
});

onAdapter("a wrong program for any but the first workgroup is refused", () =>
  withAttention(
    (attention) => assert.rejects(attention.prepare("f32", 8), /its driver computes wrong results/),
    { text: (of) => program(of).replace("stretchOf(group.x, groups.x)", "0u") },
  ));

// --- Choosing a version -------------------------------------------------------------------------

onAdapter(
  "where there is a choice, a version that does not work makes way, with a warning",
  async () => {
    for (const [text, reason] of [[nonsense, /nonsense/], [forgetful, /wrong results/]] as const) {
      const warnings: Array<string> = [];
      await withAttention(async (attention) => {
        const accumulation = await attention.begin(queries);
        // Both at once: each finds the same version out.
        await Promise.all([
          accumulation.absorb(block, [tile], before),
          accumulation.absorb(block, [tile], before),
        ]);
        const { lse } = await accumulation.finish();
        assert.ok(lse.every(Number.isFinite));
        accumulation.close();
        await assert.rejects(attention.prepare("f32", 8), /nonsense/); // the last has no way out
      }, {
        kernels: ["registers", "textures"],
        text: (of) =>
          of.headDim === 8 ? nonsense(of) : (of.version.name === "registers" ? text : program)(of),
        warn: (sentence) => warnings.push(sentence),
      });
      assert.equal(warnings.length, 2);
      assert.match(
        warnings[0]!,
        /^kernel "registers" .* for f32 and head dim 64, but kernel "text/,
      );
      assert.match(warnings[0]!, reason);
      assert.match(warnings[1]!, /for f32 and head dim 8/);
    }
  },
);

/** What the device says when it is opened so. */
const openedWith = (options: Parameters<typeof webgpuWith>[0]) =>
  Device.use(({ info }) => Effect.succeed(info)).pipe(
    Effect.provide(webgpuWith(options).layer),
    Effect.runPromise,
  );

onAdapter("a kernel that nobody knows is refused, with those that are known", async () => {
  await assert.rejects(
    openedWith({ kernel: "fastest" }),
    /needs the kernel to be "auto" or one of "rows" \(1\), .*"wide" \(6\): found "fastest"/,
  );
  assert.equal(versionNamed(4), versionNamed("4"));
  assert.equal(versionNamed(4)!.name, "broadcast");
});

onAdapter("a blocking that no program can have is refused, with what it may be", async () => {
  for (
    const changes of [{ rows: 0 }, { rows: 2.5 }, { keys: 3 }, { rows: 16, keys: 8 }, {
      lanes: 257,
    }]
  ) {
    const blocking = { rows: 2, keys: 4, lanes: vector, ...changes };
    await assert.rejects(openedWith({ blocking }), ({ message }) => {
      assert.match(message, /needs the blocking to have rows from 1 to 16, keys 1, 2, 4, 8 or 16/);
      assert.ok(message.endsWith(`: found ${JSON.stringify(blocking)}`), message);
      return true;
    });
  }
});

onAdapter("more rows than a program of that head dim compiles with are refused", async () => {
  const blocking = { rows: 16, keys: 4, lanes: vector };
  const error = await Effect.flip(begin(whole(problem({ headDim: 256 })))).pipe(
    Effect.scoped,
    Effect.provide(webgpuWith({ kernel: "registers", blocking }).layer),
    Effect.runPromise,
  );
  assert.match(error.message, /a blocking of 16 rows is too large for head dim 256: at most 4/);
});

Deno.test("memory without a limit has room for any number of rows", () => {
  assert.deepEqual([1, 2, 9, 10, Infinity].map(rowsWithin), [1, 1, 9, 9, Infinity]);
});

onAdapter("a workgroup that is not one subgroup is noticed", async () => {
  const blocking = { rows: 2, keys: 4, lanes: 2 * vector };
  await assert.rejects(
    openedWith({ kernel: "broadcast", blocking }),
    /needs subgroups for the kernel "broadcast": found a workgroup of \d+ is no subgroup of/,
  );
  const { notes } = await openedWith({ blocking });
  if (software) {
    assert.match(notes![0]!, /^kernel "broadcast" is not used, since it needs subgroups: /);
  }
});

onAdapter("subgroups are counted, by whichever directive compiles", async () => {
  const device = await (await findAdapter())!.requestDevice({
    requiredFeatures: software ? ["subgroups" as GPUFeatureName] : [],
  });
  const gpu = new Gpu(device);
  try {
    if (software) {
      assert.deepEqual(await checkSubgroups(gpu, vector), { size: vector, directive: "" });
      const late = checkSubgroups(
        gpu,
        vector,
        (lanes) =>
          countSubgroup(lanes).replace("vec2u(subgroupAdd(1u), place)", "vec2u(1u, place)"),
      );
      await assert.rejects(late, /invocation 0 found 1 in its own/);
    }
    await assert.rejects(checkSubgroups(gpu, vector, () => "nonsense"), /nonsense/);
    for (const size of [1, 2, 12]) {
      await assert.rejects(checkSubgroups(gpu, size), /where a power of two from 4 on is needed/);
    }
  } finally {
    await gpu.close();
  }
});

// --- Two blocks at a time -----------------------------------------------------------------------

onAdapter(
  "a block is queued while the one before is computed, and their order is kept",
  async () => {
    const texts = [1, 2, 3].map((seed) => ({
      ...block,
      bytes: encode("f32", normals(seed + 1, 2 * 40 * 64)),
    }));
    const inTurn = async (attention: WebgpuAttention, atOnce: boolean): Promise<Float32Array> => {
      const accumulation = await attention.begin(queries);
      const calls = [];
      for (const each of texts) {
        const call = accumulation.absorb(each, [tile], before);
        if (!atOnce) await call;
        calls.push(call);
      }
      await Promise.all(calls);
      const { o } = await accumulation.finish();
      accumulation.close();
      return o;
    };
    await withAttention(async (attention, device) => {
      const events: Array<string> = [];
      // The first call has to compile, and the others are there before that is over.
      const together = await inTurn(attention, true);
      const writeBuffer = device.queue.writeBuffer.bind(device.queue);
      device.queue.writeBuffer = (buffer, ...of) => {
        if (buffer.label === "tasks") events.push("block");
        return writeBuffer(buffer, ...of);
      };
      const { mapAsync } = GPUBuffer.prototype;
      GPUBuffer.prototype.mapAsync = function (...of) {
        events.push("wait");
        return mapAsync.apply(this, of);
      };
      try {
        assert.ok(sameNumbers(await inTurn(attention, true), together));
      } finally {
        GPUBuffer.prototype.mapAsync = mapAsync;
      }
      const atOnce = events.slice(0, events.indexOf("wait"));
      assert.ok(atOnce.length >= 2, `the second block waited: ${events.join(", ")}`);
      assert.ok(sameNumbers(await inTurn(attention, false), together), "the order changed");
    });
  },
);

onAdapter(
  "after a block that failed nothing goes on",
  () =>
    withAttention(async (attention, device) => {
      await attention.prepare("f32", 64);
      const accumulation = await attention.begin(queries);
      const createBindGroup = device.createBindGroup.bind(device);
      device.createBindGroup = (descriptor) => createBindGroup({ ...descriptor, entries: [] });
      const first = accumulation.absorb(block, [tile], before);
      const second = accumulation.absorb(block, [tile], before);
      for (const call of [first, second]) {
        await assert.rejects(async () => await call, /binding|entries/i);
      }
      device.createBindGroup = createBindGroup;
      await assert.rejects(
        async () => await accumulation.absorb(block, [tile], before),
        /binding|entries/i,
      );
      await assert.rejects(async () => await accumulation.finish(), /binding|entries/i);
      accumulation.close();
    }),
);

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
      await accumulation.absorb(block, [tile], before);
      await assert.rejects(async () => await accumulation.finish(), /outputs/);
      accumulation.close();
      without(GPUBufferUsage.STORAGE);
      const blind = await attention.begin(queries);
      await assert.rejects(async () => await blind.absorb(block, [tile], before), /usage/i);
      blind.close();
    }),
);

onAdapter(
  "nothing works after the device is lost",
  () =>
    withAttention(async (attention, device) => {
      const accumulation = await attention.begin(queries);
      await accumulation.absorb(block, [tile], before);
      device.destroy();
      const lost = /lost/;
      await assert.rejects(async () => await accumulation.finish(), lost);
      await assert.rejects(async () => await accumulation.absorb(block, [tile], before), lost);
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
        await accumulation.absorb(block, [tile], before);
        await accumulation.finish();
      }, /size/);
      accumulation.close();
    }),
);

onAdapter(
  "more heads than a dispatch has room for are refused",
  () =>
    withAttention(async (attention) => {
      await assert.rejects(
        attention.begin({ ...queries, heads: 65536, tokens: 0, bytes: new Uint8Array() }),
        /65536 heads in 1 batch entries are more than its 65535/,
      );
    }),
);
