/**
 * Programs of decoders on a GPU: weights and values stay in its memory, and a program is one submission. Rows lie in
 * vectors of four components, with zeros behind the last one; a weight that is larger than a binding may be is in several
 * buffers.
 *
 * @module
 */
import elementwise from "../../kernels/elementwise.wgsl" with { type: "text" };
import linear from "../../kernels/linear.wgsl" with { type: "text" };
import pickRows from "../../kernels/pick_rows.wgsl" with { type: "text" };
import place from "../../kernels/place.wgsl" with { type: "text" };
import rmsNorm from "../../kernels/rms_norm.wgsl" with { type: "text" };
import rope from "../../kernels/rope.wgsl" with { type: "text" };
import { bytesOf, type DType, elementBytes, recode } from "../../runtime/dtype.ts";
import {
  inputsOf,
  type Program,
  type ProgramKernel,
  type Step,
  type Value,
  type WeightSpec,
} from "../../runtime/program.ts";
import type { Gpu } from "./gpu.ts";
import { formats } from "./program.ts";
import { SpareBuffers } from "./spare_buffers.ts";

const texts = {
  add: place + elementwise,
  swiglu: place + elementwise,
  linear,
  pickRows: place + pickRows,
  rmsNorm,
  rope: place + rope,
} as const;
type Kernel = keyof typeof texts;

/** How a program reads four elements of a matrix of this format. */
const reading = (dtype: DType): string => {
  const { stored, components } = formats[dtype];
  return `alias Stored = ${stored};\nfn widened(x: Stored) -> vec4f { return ${components}; }\n`;
};

/** `LANES` of all kernels, and `TILE` of the products. */
const lanes = 64, tile = 32;
/** Bytes of weights that are submitted at once: while a piece is on its way to the device, the next is written. */
const mostStaged = 16 * 1024 * 1024;
/** Operations after which a program goes on in another submission: drivers end those that take them seconds. */
const mostWork = 2 ** 37;
/** Workgroups in one dimension that every adapter has. */
const mostGroups = 65_535;

/** [rows, columns] in a buffer, each row in `quads` vectors. */
interface Matrix {
  readonly dtype: DType;
  readonly rows: number;
  readonly columns: number;
  readonly quads: number;
  readonly buffer: GPUBuffer;
}

/** Rows of a weight from `first` on. */
interface Slab extends Matrix {
  readonly first: number;
}

/** The programs of a device: each is compiled when it is first needed. */
export class DecoderKernels {
  readonly #device: GPUDevice;
  readonly #pipelines = new Map<string, GPUComputePipeline>();

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /** The pipeline of a kernel, for a matrix of this format where it reads one as it is held. */
  get(kernel: Kernel, dtype: DType): GPUComputePipeline {
    const label = `${kernel}, ${dtype}`;
    const there = this.#pipelines.get(label);
    if (there !== undefined) return there;
    const code = reading(dtype) + texts[kernel];
    const module = this.#device.createShaderModule({ label, code });
    const made = this.#device.createComputePipeline({
      ...{ label, layout: "auto" },
      compute: { module, entryPoint: kernel },
    });
    this.#pipelines.set(label, made);
    return made;
  }
}

const { STORAGE, UNIFORM, COPY_SRC, COPY_DST } = GPUBufferUsage;

/** A model's weights on a device, and programs over them. */
export class WebgpuPrograms implements ProgramKernel {
  readonly #gpu: Gpu;
  readonly #kernels: DecoderKernels;
  readonly #largestBuffer: number;
  readonly #weights = new Map<string, ReadonlyArray<Slab>>();
  readonly #values = new Map<Value, Matrix>();
  readonly #results: SpareBuffers;
  #staged = 0;
  /** Used again and again: memory that is left to the garbage collector comes back late. */
  #spare = new Uint8Array(0);

  private constructor(gpu: Gpu, kernels: DecoderKernels, largestBuffer: number) {
    this.#gpu = gpu;
    this.#kernels = kernels;
    this.#largestBuffer = largestBuffer;
    this.#results = new SpareBuffers(gpu.device);
  }

  /** Makes room for weights, which are 0 until they are filled. */
  static async open(
    gpu: Gpu,
    kernels: DecoderKernels,
    largestBuffer: number,
    weights: ReadonlyArray<WeightSpec>,
  ): Promise<WebgpuPrograms> {
    const programs = new WebgpuPrograms(gpu, kernels, largestBuffer);
    await gpu.run(() => {
      for (const { name, rows, columns, dtype } of weights) {
        // Vectors are read by kernels that know float32 alone, and take no memory to speak of.
        const held = rows === 1 ? "f32" : dtype;
        const atOnce = Math.floor(
          largestBuffer / (elementBytes(held) * 4 * Math.ceil(columns / 4)),
        );
        if (atOnce < 1) throw new Error(`a row of weight "${name}" exceeds a buffer`);
        const slabs: Array<Slab> = [];
        for (let first = 0; first < rows; first += atOnce) {
          const matrix = programs.#matrix(Math.min(atOnce, rows - first), columns, held);
          slabs.push({ ...matrix, first });
        }
        programs.#weights.set(name, slabs);
      }
    });
    return programs;
  }

  #matrix(rows: number, columns: number, dtype: DType = "f32"): Matrix {
    const quads = Math.ceil(columns / 4);
    const size = Math.max(16, elementBytes(dtype) * 4 * rows * quads);
    if (size > this.#largestBuffer) {
      throw new Error(
        `${rows} rows of ${columns} have ${size} bytes, and a buffer at most ${this.#largestBuffer}`,
      );
    }
    const buffer = this.#gpu.device.createBuffer({
      ...{ label: "decoder", size, usage: STORAGE | COPY_SRC | COPY_DST },
    });
    return { dtype, rows, columns, quads, buffer };
  }

  #weight(name: string): ReadonlyArray<Slab> {
    const found = this.#weights.get(name);
    if (found === undefined) throw new Error(`the model has no weight "${name}"`);
    return found;
  }

  #value(of: Value): Matrix {
    const found = this.#values.get(of);
    if (found === undefined) throw new Error(`value ${of} is not there any more`);
    return found;
  }

  /** Whole rows of a matrix from `row` on, in its format. */
  #write({ dtype, columns, quads, buffer }: Matrix, row: number, bytes: Uint8Array) {
    if (bytes.length === 0) return;
    const own = columns * elementBytes(dtype);
    const wide = 4 * quads * elementBytes(dtype);
    const rows = bytes.length / own;
    if (this.#spare.length < rows * wide) this.#spare = new Uint8Array(rows * wide);
    const padded = this.#spare.subarray(0, rows * wide);
    if (own === wide) padded.set(bytes);
    else {
      padded.fill(0);
      for (let i = 0; i < rows; i++) padded.set(bytes.subarray(i * own, (i + 1) * own), i * wide);
    }
    this.#gpu.device.queue.writeBuffer(buffer, row * wide, padded);
  }

  async fill(weight: string, first: number, dtype: DType, bytes: Uint8Array): Promise<void> {
    this.#gpu.throwFault();
    // What was written stays in memory of the host until something is submitted.
    this.#staged += bytes.length;
    if (this.#staged > mostStaged) {
      this.#staged = 0;
      await this.#gpu.queue(() => this.#gpu.device.queue.submit([]));
    }
    for (const slab of this.#weight(weight)) {
      const row = slab.columns * elementBytes(dtype);
      const from = Math.max(first, slab.first);
      const to = Math.min(first + bytes.length / row, slab.first + slab.rows);
      if (from >= to) continue;
      const own = bytes.subarray((from - first) * row, (to - first) * row);
      this.#write(slab, from - slab.first, recode(dtype, slab.dtype, own));
    }
  }

  async run({ steps, kept, given }: Program): Promise<ReadonlyArray<Float32Array>> {
    const needed = new Set([...kept, ...given]);
    const lastUse = new Map(steps.flatMap((step, i) => inputsOf(step).map((value) => [value, i])));
    const garbage: Array<GPUBuffer> = [];
    const copies: Array<GPUBuffer> = [];
    const forget = (value: Value) => {
      const there = this.#values.get(value);
      if (there !== undefined) garbage.push(there.buffer);
      this.#values.delete(value);
    };
    try {
      const home = await this.#gpu.read(() => {
        const { device } = this.#gpu;
        let encoder = device.createCommandEncoder();
        let work = 0;
        for (const [i, step] of steps.entries()) {
          const made = this.#encode(encoder, step, garbage);
          this.#values.set(step.out, made);
          if (step.step === "linear") {
            work += 2 * made.rows * made.columns * this.#value(step.x).columns;
          }
          if (work > mostWork) {
            device.queue.submit([encoder.finish()]);
            encoder = device.createCommandEncoder();
            work = 0;
          }
          for (const input of inputsOf(step)) {
            if (lastUse.get(input) === i && !needed.has(input)) forget(input);
          }
        }
        for (const value of given) {
          const { buffer } = this.#value(value);
          const copy = this.#results.takeResult(buffer.size);
          copies.push(copy);
          encoder.copyBufferToBuffer(buffer, 0, copy, 0, buffer.size);
        }
        device.queue.submit([encoder.finish()]);
        return copies;
      });
      const results = given.map((value, i) => this.#unpacked(this.#value(value), home[i]!));
      for (const copy of copies.splice(0)) this.#results.giveResult(copy);
      return results;
    } finally {
      const stay = new Set(kept);
      for (const value of [...given, ...steps.map(({ out }) => out)]) {
        if (!stay.has(value)) forget(value);
      }
      // Copies among them where something failed: nobody knows what becomes of them.
      for (const buffer of [...garbage, ...copies]) buffer.destroy();
    }
  }

  /** A matrix without what is behind its rows. */
  #unpacked({ rows, columns, quads }: Matrix, content: ArrayBuffer): Float32Array {
    const packed = new Float32Array(content);
    const values = new Float32Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      values.set(packed.subarray(row * 4 * quads, row * 4 * quads + columns), row * columns);
    }
    return values;
  }

  /** Encodes a step and gives its result; what only the step needs goes to `garbage`. */
  #encode(encoder: GPUCommandEncoder, step: Step, garbage: Array<GPUBuffer>): Matrix {
    const { device } = this.#gpu;
    const outside = (data: Uint32Array | Float32Array, usage: number) => {
      const buffer = device.createBuffer({
        ...{ label: "decoder's input", size: Math.max(16, data.byteLength), usage },
      });
      garbage.push(buffer);
      const bytes = new Uint8Array(data.byteLength);
      bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      // Deno 2.9 ends the process where there is nothing to write.
      if (bytes.length > 0) device.queue.writeBuffer(buffer, 0, bytes);
      return buffer;
    };
    const dispatch = (
      kernel: Kernel,
      task: Uint32Array,
      buffers: ReadonlyArray<GPUBuffer>,
      groups: readonly [x: number, y: number],
      format: DType = "f32",
    ) => {
      if (groups[0] * groups[1] === 0) return;
      const pipeline = this.#kernels.get(kernel, format);
      const uniform = outside(task, UNIFORM | COPY_DST);
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(
        0,
        device.createBindGroup({
          layout: pipeline.getBindGroupLayout(0),
          entries: [uniform, ...buffers].map((buffer, binding) => ({
            binding,
            resource: { buffer },
          })),
        }),
      );
      pass.dispatchWorkgroups(...groups);
      pass.end();
    };
    /** So many workgroups, in two dimensions where one has not enough. */
    const grid = (groups: number): readonly [number, number] => [
      Math.min(groups, mostGroups),
      Math.ceil(groups / mostGroups),
    ];
    const storage = STORAGE | COPY_DST;
    const pick = (slabs: ReadonlyArray<Slab>, ids: Uint32Array, all: number): Matrix => {
      const beyond = ids.find((id) => id >= all);
      if (beyond !== undefined) throw new Error(`row ${beyond} of ${all} was asked for`);
      const { columns, quads } = slabs[0]!;
      const into = this.#matrix(ids.length, columns);
      const list = outside(ids, storage);
      const count = ids.length * quads;
      for (const { first, rows, buffer, dtype } of slabs) {
        const task = Uint32Array.of(quads, first, rows, count);
        const groups = grid(Math.ceil(count / lanes));
        dispatch("pickRows", task, [buffer, list, into.buffer], groups, dtype);
      }
      return into;
    };
    const both = (kernel: "add" | "swiglu", a: Matrix, b: Matrix): Matrix => {
      const into = this.#matrix(a.rows, a.columns);
      const count = 4 * a.rows * a.quads;
      const groups = grid(Math.ceil(count / lanes));
      dispatch(kernel, Uint32Array.of(count), [a.buffer, b.buffer, into.buffer], groups);
      return into;
    };
    switch (step.step) {
      case "put": {
        const { values, columns } = step;
        const into = this.#matrix(values.length / columns, columns);
        this.#write(into, 0, bytesOf(values));
        return into;
      }
      case "embed": {
        const slabs = this.#weight(step.weight);
        return pick(slabs, step.ids, slabs.reduce((sum, { rows }) => sum + rows, 0));
      }
      case "pick": {
        const x = this.#value(step.x);
        return pick([{ ...x, first: 0 }], step.rows, x.rows);
      }
      case "linear": {
        const x = this.#value(step.x);
        const slabs = this.#weight(step.weight);
        const into = this.#matrix(x.rows, slabs.reduce((sum, { rows }) => sum + rows, 0));
        const bias = step.bias === undefined ? undefined : this.#weight(step.bias)[0]!.buffer;
        for (const { first, rows: columns, buffer, dtype } of slabs) {
          const biased = Number(bias !== undefined);
          const task = Uint32Array.of(x.rows, columns, x.quads, first, 4 * into.quads, biased);
          dispatch(
            "linear",
            task,
            [x.buffer, buffer, bias ?? buffer, into.buffer],
            [Math.ceil(columns / tile), Math.ceil(x.rows / tile)],
            dtype,
          );
        }
        return into;
      }
      case "rmsNorm": {
        const x = this.#value(step.x);
        const gain = this.#weight(step.weight)[0]!;
        const into = this.#matrix(x.rows, x.columns);
        const groups = x.columns / gain.columns;
        const count = x.rows * groups;
        const task = Uint32Array.of(gain.columns, groups, 4 * x.quads, count, 0);
        new Float32Array(task.buffer)[4] = step.epsilon;
        dispatch("rmsNorm", task, [x.buffer, gain.buffer, into.buffer], grid(count));
        return into;
      }
      case "rope": {
        const x = this.#value(step.x);
        const into = this.#matrix(x.rows, x.columns);
        const half = step.headDim / 2;
        const heads = x.columns / step.headDim;
        const count = x.rows * heads * half;
        const turns = [step.turns.cos, step.turns.sin].map((values) => outside(values, storage));
        dispatch(
          "rope",
          Uint32Array.of(half, heads, 4 * x.quads, count),
          [x.buffer, ...turns, into.buffer],
          grid(Math.ceil(count / lanes)),
        );
        return into;
      }
      case "swiglu":
        return both("swiglu", this.#value(step.gate), this.#value(step.up));
      case "add":
        return both("add", this.#value(step.a), this.#value(step.b));
    }
  }

  close(): void {
    for (const { buffer } of [...this.#weights.values()].flat()) buffer.destroy();
    for (const { buffer } of this.#values.values()) buffer.destroy();
    this.#results.clear();
    this.#weights.clear();
    this.#values.clear();
  }
}
