import { Effect } from "effect";
import assert from "node:assert/strict";
import { webgpu, webgpuWith } from "../../plugins/webgpu.ts";
import { findAdapter, isSoftware } from "../../plugins/webgpu/adapter.ts";
import { type BackwardOptions, WebgpuBackward } from "../../plugins/webgpu/backward.ts";
import { type BackwardAdapter, backwardProgram } from "../../plugins/webgpu/backward_program.ts";
import { Gpu } from "../../plugins/webgpu/gpu.ts";
import { decode, encode } from "../../runtime/dtype.ts";
import type { KeyValues, Outcome, Queries, Tile } from "../../runtime/kernel.ts";
import { contiguous } from "../../runtime/span.ts";
import { problem, testDevice, whole } from "../contract/device.ts";
import { testGradients } from "../contract/gradients.ts";
import { relativeL2, sameNumbers } from "../support/closeness.ts";
import { stretch, stretches } from "../support/cut.ts";
import { beginBackward, checkGradients, gradientsOf } from "../support/cut_backward.ts";
import { normals } from "../support/random.ts";
import { bandOf, causal, window } from "../support/masks.ts";

const adapter = await findAdapter();
const missing = "there is no WebGPU adapter";
const ignored = adapter === undefined ? { ignore: missing } : {};
const software = adapter !== undefined && isSoftware(adapter.info);

testGradients(webgpu, ignored);

// Smaller head dimensions, because these programs compile long on software adapters.
for (const kernel of ["textures", "registers", ...(software ? ["tiles"] : [])]) {
  testDevice({ ...webgpuWith({ kernel }), name: `webgpu with the memory of "${kernel}"` }, {
    contract: {
      name: "the contract of gradients, for small heads",
      cases: [
        ...[8, 12].map((headDim) => ({
          name: `head dim ${headDim}`,
          run: checkGradients(whole(problem({ headDim, batch: 2, tokens: 131, heads: 6 }))),
        })),
        {
          name: "a window over blocks of 29",
          run: checkGradients(
            whole(
              problem({ headDim: 8, tokens: 100, attention: window(30) }),
              { lengths: [29, 29, 29, 13] },
            ),
          ),
        },
      ],
    },
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

// --- Splitting ----------------------------------------------------------------------------------

onAdapter("what exceeds a buffer is split, and has the same gradients", () => {
  const shape = problem({ batch: 2, tokens: 131, attention: window(70) });
  const cut = whole(shape, {
    // Tiles that begin and end inside of pieces.
    queries: [stretch(0, 50), stretch(50, 131)],
    blocks: stretches([29, 62, 40]),
  });
  // Rows and keys have 4096 and 2048 bytes a token, with what goes along: pieces of up to 9 and 18, 33 and 66 tokens;
  // dS of one workgroup's keys and a few rows has room.
  return Effect.gen(function* () {
    const once = yield* gradientsOf(cut).pipe(Effect.provide(webgpu.layer));
    for (const largestBuffer of [9 * 4096 + 12, 33 * 4096]) {
      yield* Effect.gen(function* () {
        yield* checkGradients(cut);
        const [split, again] = [yield* gradientsOf(cut), yield* gradientsOf(cut)];
        for (const name of ["dq", "dk", "dv"] as const) {
          assert.ok(relativeL2(split[name], once[name]) <= 5e-6, name);
          assert.ok(sameNumbers(split[name], again[name]), `the same calls gave another ${name}`);
        }
      }).pipe(Effect.provide(webgpuWith({ largestBuffer }).layer));
    }
    const error = yield* Effect.flip(beginBackward(cut)).pipe(
      Effect.scoped,
      Effect.provide(webgpuWith({ largestBuffer: 1024 }).layer),
    );
    assert.match(error.message, /one token has 4096 bytes, and a buffer at most 1024/);
  }).pipe(Effect.runPromise);
});

onAdapter("more rows and keys than a slab has are added up exactly", async () => {
  const shape = { heads: 1, kvHeads: 1, headDim: 8, attention: window(1500) };
  for (
    const [tokens, device] of [[2304, webgpu], [4352, webgpuWith({ kernel: "tiles" })]] as const
  ) {
    await checkGradients(whole(problem({ ...shape, tokens }), { lengths: [tokens - 1, 1] })).pipe(
      Effect.provide(device.layer),
      Effect.runPromise,
    );
  }
});

// --- Errors, on this thread ---------------------------------------------------------------------

const [tokens, heads, headDim] = [40, 2, 64];
const queries: Queries = {
  batch: 1,
  heads,
  kvHeads: 1,
  headDim,
  scale: 0.125,
  tokens,
  dtype: "f32",
  bytes: encode("f32", normals(1, tokens * heads * headDim)),
};
const outcome: Outcome = {
  o: normals(3, tokens * heads * headDim),
  lse: new Float32Array(heads * tokens).fill(4),
  cotangent: normals(4, tokens * heads * headDim),
};
const block: KeyValues = {
  tokens,
  dtype: "f32",
  bytes: encode("f32", normals(2, 2 * tokens * headDim)),
};
const tile: Tile = {
  row: 0,
  queries: contiguous(0, tokens),
  column: 0,
  keys: contiguous(0, tokens),
  full: false,
};
const before = bandOf(causal);

/** Opens the backward pass on a device of its own, for as long as `use` runs. */
const withBackward = async (
  use: (backward: WebgpuBackward, device: GPUDevice) => Promise<void>,
  { text, ...changes }: Partial<BackwardOptions> & { readonly text?: typeof backwardProgram } = {},
): Promise<void> => {
  const device = await (await findAdapter())!.requestDevice({
    requiredFeatures: software ? ["subgroups" as GPUFeatureName] : [],
  });
  const gpu = new Gpu(device);
  const options: BackwardOptions = {
    choices: [{
      keysIn: software ? "texture" : "buffer",
      lanes: software ? adapter!.info.subgroupMaxSize : 64,
      form: software ? "once" : "tiles",
    }],
    warn: assert.fail,
    directive: "",
    largestBuffer: 2 ** 27,
    tallestTexture: 8192,
    ...changes,
  };
  try {
    await use(new WebgpuBackward(gpu, options, text), device);
  } finally {
    await gpu.close();
  }
};

onAdapter(
  "no buffer and no texture of the backward pass is larger than the limit",
  () =>
    withBackward(async (backward, device) => {
      await backward.prepare("f32", headDim);
      const [sizes, heights]: [Array<number>, Array<number>] = [[], []];
      const createBuffer = device.createBuffer.bind(device);
      device.createBuffer = (descriptor) => {
        if (descriptor.label !== "tasks") sizes.push(descriptor.size);
        return createBuffer(descriptor);
      };
      const createTexture = device.createTexture.bind(device);
      device.createTexture = (descriptor) => {
        const texture = createTexture(descriptor);
        heights.push(texture.height);
        return texture;
      };
      const pass = backward.begin(queries, outcome);
      await pass.absorb(block, [tile], before);
      await pass.finish();
      pass.close();
      assert.ok(sizes.length > 0 && Math.max(...sizes) <= 22 * 1024, `sizes ${sizes}`);
      assert.ok(heights.every((height) => height <= 3), `heights ${heights}`);
    }, { largestBuffer: 22 * 1024, tallestTexture: 3 }),
);

const inTwo: BackwardAdapter = {
  keysIn: software ? "texture" : "buffer",
  lanes: software ? adapter!.info.subgroupMaxSize : 64,
  form: "lanes",
};
const inTiles: BackwardAdapter = {
  keysIn: "buffer",
  lanes: 64,
  form: "tiles",
};
/** Passes whose program may be wrong, with what they belong to. */
const faulty = [
  ["keys", [inTwo]],
  ["queries", [inTwo]],
  ["keys", [inTiles]],
  ["queries", [inTiles]],
  ...(software ? [["keys", [{ ...inTwo, form: "once" }]] as const] : []),
] as const;

onAdapter(
  "dq may be asked for between blocks, and again",
  () =>
    withBackward(async (backward) => {
      const pass = backward.begin(queries, outcome);
      await Promise.all([0, 1].map(() => pass.absorb(block, [tile], before)));
      const twice = await pass.finish();
      assert.ok(sameNumbers(await pass.finish(), twice), "asked again, it is another");
      await pass.absorb(block, [tile], before);
      const thrice = await pass.finish();
      pass.close();
      assert.ok(relativeL2(thrice, twice.map((x) => 1.5 * x)) <= 1e-6);
    }),
);

onAdapter(
  "rows that saw no key add nothing, also where a pass before knew them",
  () =>
    withBackward(async (backward) => {
      // Scores whose exponentials are beyond float32, but for their log-sum-exp.
      const gradients = async (lse: Float32Array) => {
        const pass = backward.begin({ ...queries, scale: 5 }, { ...outcome, lse });
        const ofBlock = await pass.absorb(block, [tile], before);
        const dq = await pass.finish();
        pass.close();
        return [...dq, ...ofBlock];
      };
      const all = new Float32Array(heads * tokens).fill(200);
      const some = all.map((lse, i) => i % 3 === 0 ? -Infinity : lse);
      const first = await gradients(some);
      assert.ok(first.every(Number.isFinite) && first.some((x) => x !== 0));
      await gradients(all);
      assert.deepEqual(await gradients(some), first);
    }),
);

onAdapter("a backward program that does not compile is refused", () =>
  withBackward(
    (backward) => assert.rejects(backward.prepare("f32", 8), /nonsense/),
    { text: (of) => backwardProgram(of).replace("let keyHead =", "let keyHead = nonsense +") },
  ));

onAdapter("a backward program that computes wrong results is refused, at every use", async () => {
  for (const [pass, choices] of faulty) {
    await withBackward(
      async (backward) => {
        for (const dtype of ["f32", "f32", "bf16"] as const) {
          await assert.rejects(backward.prepare(dtype, 8), /its driver computes wrong results/);
        }
      },
      {
        choices,
        // What one tile gave is lost when the next comes.
        text: (of) =>
          of.pass === pass
            ? backwardProgram(of).replace(/\] \+= (\w+);/, "] = $1;")
            : backwardProgram(of),
      },
    );
  }
});

onAdapter("a wrong backward program for any but the first workgroup is refused", async () => {
  for (const [pass, choices] of faulty) {
    await withBackward(
      (backward) => assert.rejects(backward.prepare("f32", 8), /computes wrong results/),
      {
        choices,
        text: (of) =>
          of.pass === pass
            ? backwardProgram(of).replace("stretchOf(group.x, groups.x)", "0u")
            : backwardProgram(of),
      },
    );
  }
});

onAdapter(
  "where there is a choice, a backward pass that does not work makes way, with a warning",
  async () => {
    const lanes = software ? adapter!.info.subgroupMaxSize : 64;
    for (
      const [wrong, reason] of [
        ["nonsense + task.first", /nonsense/],
        ["1u + task.first", /computes wrong results/],
      ] as const
    ) {
      const warnings: Array<string> = [];
      await withBackward(async (backward) => {
        const pass = backward.begin(queries, outcome);
        const [first, second] = [0, 1].map(() => pass.absorb(block, [tile], before));
        const gradients = await first!;
        assert.deepEqual(await second, gradients);
        assert.ok(gradients.every(Number.isFinite) && gradients.some((x) => x !== 0));
        pass.close();
      }, {
        choices: (["texture", "buffer"] as const).map((keysIn) => ({
          keysIn,
          lanes,
          form: "lanes" as const,
        })),
        warn: (sentence) => warnings.push(sentence),
        text: (of) =>
          of.keysIn === "buffer"
            ? backwardProgram(of)
            : backwardProgram(of).replaceAll("(task.first", `(${wrong}`),
      });
      assert.equal(warnings.length, 1, `${warnings}`);
      assert.match(
        warnings[0]!,
        /^the backward pass with textures is not used for f32 and head dim \d+, but the backward pass with buffers: /,
      );
      assert.match(warnings[0]!, reason);
    }
  },
);

onAdapter(
  "a choice that makes way in the middle of a pass ends it",
  () =>
    withBackward(async (backward) => {
      const pass = backward.begin(queries, outcome);
      await pass.absorb(block, [tile], before);
      const half = encode("f16", decode("f32", block.bytes));
      await assert.rejects(
        async () => await pass.absorb({ ...block, dtype: "f16", bytes: half }, [tile], before),
        /blocks of another number format would need other memory than those before/,
      );
      pass.close();
    }, {
      choices: (["texture", "buffer"] as const).map((keysIn) => ({
        keysIn,
        lanes: software ? adapter!.info.subgroupMaxSize : 64,
        form: "lanes" as const,
      })),
      warn: () => {},
      text: (of) =>
        of.keysIn === "texture" && of.dtype === "f16" ? "nonsense" : backwardProgram(of),
    }),
);

onAdapter(
  "nothing goes on after a block that failed, or after the device is lost",
  () =>
    withBackward(async (backward, device) => {
      await backward.prepare("f32", headDim);
      const pass = backward.begin(queries, outcome);
      const createBuffer = device.createBuffer.bind(device);
      device.createBuffer = (descriptor) =>
        createBuffer({ ...descriptor, usage: descriptor.usage & ~GPUBufferUsage.COPY_DST });
      const [first, second] = [0, 1].map(() => pass.absorb(block, [tile], before));
      await assert.rejects(async () => await first, /usage/i);
      await assert.rejects(async () => await second, /usage/i);
      device.createBuffer = createBuffer;
      await assert.rejects(async () => await pass.finish(), /usage/i);
      pass.close();
      const lost = backward.begin(queries, outcome);
      device.destroy();
      await assert.rejects(async () => await lost.absorb(block, [tile], before), /lost/);
      lost.close();
    }),
);
