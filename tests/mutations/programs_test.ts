/** Faults in what decoders compute beside attention, on every device. */
import assert from "node:assert/strict";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
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
  withCopy,
} from "../support/faults.ts";

const inFile = (file: string) => (fault: string, ...changes: Changes): Fault => ({
  fault,
  changes: { [file]: changes },
});
const host = inFile("runtime/program_kernel.ts");
const cpu = inFile("plugins/cpu/linear.ts");
const wgsl = (file: string) => inFile(`kernels/${file}.wgsl`);
const decoder = inFile("plugins/webgpu/decoder.ts");

/** A device whose programs may be wrong, and how. */
interface Faulty {
  readonly name: string;
  /** Why it is not here. */
  readonly missing: string | undefined;
  readonly faults: ReadonlyArray<Fault>;
  readonly open: (load: Load) => Promise<AttentionKernel>;
}

const devices: ReadonlyArray<Faulty> = [
  {
    name: "the host",
    missing: undefined,
    open: async (load) =>
      (await load<typeof import("../../kernels/reference.ts")>("kernels/reference.ts"))
        .referenceKernel(),
    faults: [
      host("16-bit rows begin where float32 ones would", ["2 * first)", "first)"]),
      host("16-bit rows stay in the format in which they came", [
        "recode(dtype, held, bytes)",
        'dtype === "f32" ? recode(dtype, held, bytes) : bytes',
      ]),
      host("a bias is added to the first row alone", ["row < rows; row++", "row < 1; row++"]),
      host("the mean of squares is their sum", ["squares / width", "squares"]),
      host("components turn the other way", ["a * c - b * s", "a * c + b * s"]),
      host("a gate is its own sigmoid", ["g / (1 +", "1 / (1 +"]),
      host("a value goes with its first use", ["lastUse.get(input) === i &&", ""]),
      inFile("runtime/linear.ts")("all columns have the first one's weights", [
        "column * inner, (column + 1) * inner",
        "0, inner",
      ]),
    ],
  },
  {
    name: "the CPU device",
    missing: findLibrary(libraryName) === undefined ? `there is no ${libraryName}` : undefined,
    open: async (load) =>
      await (await load<typeof import("../../plugins/cpu/open.ts")>("plugins/cpu/open.ts"))
        .openCpu({ threads: 2 }),
    faults: [
      cpu("the last tile of a row is taken for the whole", ["        from > 0,", "        false,"]),
      cpu("a tile begins with the row of the weight", ["* inner + from;", "* inner;"]),
      cpu("a tile that ends in a vector of 4 is not widened to its end", [
        "4 * Math.ceil(count * length / 4)",
        "4 * Math.floor(count * length / 4)",
      ]),
      cpu("tiles of columns overwrite each other", [
        "at: into.subarray(column)",
        "at: into.subarray(left)",
      ]),
      cpu("the weight is not turned", ["{ ...w, turned: true }", "w"]),
    ],
  },
  {
    name: "the GPU device",
    missing: await findAdapter() === undefined ? "there is no WebGPU adapter" : undefined,
    open: async (load) =>
      await (await load<typeof import("../../plugins/webgpu/open.ts")>("plugins/webgpu/open.ts"))
        .openWebgpu({ largestBuffer: 200_000 }),
    faults: [
      wgsl("linear")("what is behind a row counts", [
        "fn xAt(row: u32, quad: u32) -> vec4f {\n  if (quad >= task.quads) { return vec4f(0.0); }",
        "fn xAt(row: u32, quad: u32) -> vec4f {",
      ], [
        "fn wAt(column: u32, quad: u32) -> vec4f {\n  if (quad >= task.quads) { return vec4f(0.0); }",
        "fn wAt(column: u32, quad: u32) -> vec4f {",
      ]),
      wgsl("linear")("a bias begins anew in every slab", [
        "bias[task.first + column + j]",
        "bias[column + j]",
      ]),
      wgsl("linear")("slabs overwrite each other", [
        "row * task.stride + task.first + column + j",
        "row * task.stride + column + j",
      ]),
      wgsl("linear")("every row has the first one's x", ["min(row, task.rows - 1u) *", "0u *"]),
      wgsl("pick_rows")("rows of every slab are taken from the first", [
        "if (id < task.first || id >= task.first + task.held) { return; }",
        "",
      ]),
      inFile("plugins/webgpu/program.ts")("the halves of a word change places", [
        "unpack2x16float(x.x), unpack2x16float(x.y)",
        "unpack2x16float(x.y), unpack2x16float(x.x)",
      ]),
      inFile("plugins/webgpu/program.ts")("upper halves keep what is below them", [
        "x.x << 16u, x.x & 0xffff0000u,",
        "x.x << 16u, x.x | 0xffffu,",
      ]),
      decoder("rows stay in the format in which they came", [
        "recode(dtype, slab.dtype, own)",
        'dtype === "f32" ? recode(dtype, slab.dtype, own) : own',
      ]),
      decoder("rows are written to the begin of their slab", ["row * wide, padded", "0, padded"]),
      decoder("rows are not padded", ["if (own === wide) padded.set", "if (true) padded.set"]),
      decoder("a single row is held in 16 bits", ['rows === 1 ? "f32" : dtype', "dtype"]),
    ],
  },
];

for (const { name, missing, faults, open } of devices) {
  Deno.test({
    name: `the contract of programs catches every fault of ${name}` +
      (missing === undefined ? "" : ` (not here: ${missing})`),
    ignore: missing !== undefined,
    fn: async (test) => {
      const label = `programs, of ${name}`;
      const withKernel = (
        changes: Fault["changes"],
        use: (load: Load, kernel: AttentionKernel) => Promise<void>,
      ) =>
        withCopy(changes, async (load) => {
          const kernel = await open(load);
          try {
            await use(load, kernel);
          } finally {
            await kernel.close?.();
          }
        });
      for (const { fault, changes } of faults) {
        await test.step(
          fault,
          () =>
            withKernel(
              changes,
              async (load, kernel) =>
                await assertCaught(fault, label, await casesOf(load, "programs", kernel)),
            ),
        );
      }
      await test.step("and every case passes on a sound copy", () =>
        withKernel({}, async (load, kernel) => {
          assert.equal(await firstToFail(await casesOf(load, "programs", kernel)), undefined);
        }));
      printTable([label]);
    },
  });
}
