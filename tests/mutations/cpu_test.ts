/** The same faults and more in the CPU device and its WebAssembly. */
import assert from "node:assert/strict";
import { libraryName } from "../../plugins/cpu/blas.ts";
import type { AttentionKernel } from "../../runtime/kernel.ts";
import { findLibrary } from "../../runtime/library.ts";
import {
  assertCaught,
  casesOf,
  type Changes,
  type Fault,
  firstToFail,
  type Load,
  printTable,
  soonest,
  table,
  withCopy,
} from "../support/faults.ts";

const inCpu = (file: string) => (fault: string, ...changes: Changes): Fault => ({
  fault,
  changes: { [file]: changes },
});
const attendCpu = inCpu("plugins/cpu/attend.ts");
const differentiateCpu = inCpu("plugins/cpu/differentiate.ts");
const sightCpu = inCpu("plugins/cpu/sight.ts");
const softmaxCpu = inCpu("plugins/cpu/softmax.ts");
const assembly = inCpu("kernels/softmax/softmax.as");

/** What the CPU device may get wrong: the device contract must notice. */
const cpuFaults: ReadonlyArray<Fault> = [
  attendCpu("key heads are tiled over query heads, not repeated", [
    "Math.floor(h * kvHeads / heads)",
    "h % kvHeads",
  ]),
  attendCpu("keys are counted from the block's begin, not the tile's", [
    "[rectangle.column + first, rectangle.column + end]",
    "[first, end]",
  ]),
  attendCpu("what was gathered is not rescaled", ["if (keep !== 1)", "if (keep > 1)"]),
  attendCpu("all scores are taken for small ones", ["smallScore = 20", "smallScore = 1e30"]),
  attendCpu("small scores may follow large ones without their maximum", [
    ".every((top) => top === 0)",
    ".every(() => true)",
  ]),
  attendCpu("the longest key of another chunk is taken", [
    "longestKeys[(b * chunks + c) * shape.kvHeads + g]!",
    "longestKeys[c * 0]!",
  ]),
  attendCpu("the accumulator is float16", [
    "      sums.set(softmax.sums.values",
    `      for (let row = sight.from; row < sight.to; row++) {
        const output = outputAt(b, row, h);
        for (let i = 0; i < headDim; i++) output[i] = Math.f16round(output[i]!);
      }
      sums.set(softmax.sums.values`,
  ]),
  sightCpu("rows see one key too many", [
    "hi.values[i] = Math.min(Math.max(bounds![at + 1]! - first, 0), end - first);",
    "hi.values[i] = Math.min(Math.max(bounds![at + 1]! + 1 - first, 0), end - first);",
  ]),
  sightCpu("a window that begins in a tile is taken for all of it", [
    "masked ||= lo > first || hi < end",
    "masked ||= hi < end",
  ]),
  sightCpu("a row that sees less than the others is taken for one of them", [
    "masked ||= lo > first || hi < end",
    "masked ||= lo > first",
  ]),
  sightCpu("the mask of another row is told", ["(from + i - row) * 2", "i * 2"]),
  softmaxCpu("sums go to the chunk's first rows", [
    "this.sums.pointer + of.skip * 4",
    "this.sums.pointer",
  ]),
  inCpu("plugins/cpu/prepare.ts")("the result is not normalised", [
    "outputs[i]! * inverse",
    "outputs[i]!",
  ]),
  assembly("the sum of weights is not rescaled", ["      sum *= keep;", ""]),
  assembly("a row that sees nothing keeps what stood in its last vector", [
    "    from = 0;\n    to = 0;",
    "",
  ]),
  assembly("shadows of the last keys count", [
    "      c4, c5), counts(j, from, to));\n    v128.store(at, x);\n    b = ".trimStart(),
    "c4, c5), counts(j, from, to + 3));\n    v128.store(at, x);\n    b = ",
  ]),
  assembly("halves below 2⁻¹⁴ become 0", [
    "const size = v128.and(bits, i32x4.splat(0x7fff));",
    "const size = v128.and(v128.and(bits, i32x4.splat(0x7fff)), i32x4.ge_s(v128.and(bits, i32x4.splat(0x7fff)), i32x4.splat(0x3000)));",
  ]),
];

/** The same of its backward pass: the contract of gradients must notice. */
const cpuBackwardFaults: ReadonlyArray<Fault> = [
  differentiateCpu("dk and dv are swapped", ["const [dkAt, dvAt]", "const [dvAt, dkAt]"]),
  differentiateCpu("the scale of dk is forgotten", [
    "blas.product([count, headDim, rows], scale, turnedDs",
    "blas.product([count, headDim, rows], 1, turnedDs",
  ]),
  differentiateCpu("D is left out", [
    "softmax.sums.values.set(d.subarray(at + from, at + to));",
    "",
  ]),
  differentiateCpu("the log-sum-exp is another row's", [
    "lse.subarray(at + from, at + to)",
    "lse.subarray(at, at + to - from)",
  ]),
  differentiateCpu("one query head of a group counts", [
    "h < (g + 1) * group; h++",
    "h < g * group + 1; h++",
  ]),
  differentiateCpu("a range of keys begins with the tile, not the block", [
    "range * keysAtOnce - column);\n      const stop",
    "range * keysAtOnce);\n      const stop",
  ]),
  inCpu("plugins/cpu/kernel.ts")("gradients are rounded to float16", [
    "const given = copyOf(gradients);",
    "const given = copyOf(gradients).map((x) => Math.f16round(x));",
  ]),
  inCpu("plugins/cpu/memory.ts")("memory is lent with what the last user left", [
    "return free.fill(0);",
    "return free;",
  ]),
];

/** The cases that are about faults which none of the first cases meets. */
const about: Readonly<Record<string, string>> = {
  "keys are counted from the block's begin, not the tile's": "every rank of a ring of 3, zigzag",
  "all scores are taken for small ones": "all logits near -60000",
  "small scores may follow large ones without their maximum": "large scores may follow",
  "the longest key of another chunk is taken": "large scores may follow",
  "a window that begins in a tile is taken for all of it": "every rank of a ring of 3, contiguous",
  "the sum of weights is not rescaled": "the scale is the caller's",
  "a row that sees nothing keeps what stood in its last vector":
    "every rank of a ring of 3, weighted striped",
  "halves below 2⁻¹⁴ become 0": "f16 inputs",
  "a range of keys begins with the tile, not the block": "a long block of two stretches",
};

const noLibrary = findLibrary(libraryName) === undefined ? `there is no ${libraryName}` : undefined;

/** A kernel of the copy on threads of its own, once what its WebAssembly is made of was compiled again. */
const withCpu = async (
  load: Load,
  changes: Fault["changes"],
  use: (kernel: AttentionKernel) => Promise<void>,
) => {
  if (Object.keys(changes).some((file) => file.endsWith(".as"))) {
    const { buildAll } = await load<typeof import("../../kernels/softmax/build.ts")>(
      "kernels/softmax/build.ts",
    );
    await buildAll();
  }
  const { openCpu } = await load<typeof import("../../plugins/cpu/open.ts")>("plugins/cpu/open.ts");
  const kernel = await openCpu({ threads: 2 });
  try {
    await use(kernel);
  } finally {
    kernel.close();
  }
};

Deno.test({
  name: "the device contracts catch every fault of the CPU device" +
    (noLibrary === undefined ? "" : ` (not here: ${noLibrary})`),
  ignore: noLibrary !== undefined,
  fn: async (test) => {
    const contracts = [["device", cpuFaults], [
      "gradients of a device",
      cpuBackwardFaults,
    ]] as const;
    for (const [contract, faults] of contracts) {
      const label = `${contract}, of the CPU`;
      for (const { fault, changes } of faults) {
        await test.step(
          fault,
          () =>
            withCopy(
              changes,
              (load) =>
                withCpu(load, changes, async (kernel) =>
                  await assertCaught(
                    fault,
                    label,
                    soonest(await casesOf(load, contract, kernel), about[fault]),
                  )),
            ),
        );
      }
      const merited = new Set(table.filter((row) => row[1] === label).map((row) => row[2]));
      await test.step(`and what caught those of the ${contract} passes on a sound copy`, () =>
        withCopy({}, (load) =>
          withCpu(load, {}, async (kernel) => {
            const cases = await casesOf(load, contract, kernel);
            const failed = await firstToFail(cases.filter(({ name }) => merited.has(name)));
            assert.equal(failed, undefined);
          })));
      printTable([label]);
    }
  },
});
