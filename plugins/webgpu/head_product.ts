/**
 * Products of vectors with a matrix for each head on the device, by `kernels/head_product.wgsl`: from memory to memory.
 *
 * @module
 */
import code from "../../kernels/head_product.wgsl" with { type: "text" };
import { bytesOf } from "../../runtime/dtype.ts";
import { type HeadProduct, headProduct, type HeadVectors } from "../../runtime/head_product.ts";
import type { Gpu } from "./gpu.ts";
import { unshared } from "./key_memory.ts";
import { SpareBuffers } from "./spare_buffers.ts";

/** `LANES` and `TILE` of the program. */
const lanes = 32, tile = 4;

/** The largest error of a component of the small product whose answer is known; a wrong program is off by far more. */
const bound = 1e-4;

/** The part of an array in which some vectors lie, which begin `first` after its begin as those of the whole do. */
const part = ({ values, first }: HeadVectors, begin: number, count: number): Float32Array =>
  values.subarray(begin, first + begin + count);

/** The product of a device; its first call checks the program. */
export class HeadProducts {
  readonly #gpu: Gpu;
  readonly #largestBuffer: number;
  readonly #results: SpareBuffers;
  readonly #code: string;
  #pipeline: Promise<GPUComputePipeline> | undefined;

  /** `text` is the program, for those who want to see a wrong one refused. */
  constructor(gpu: Gpu, largestBuffer: number, text = code) {
    this.#gpu = gpu;
    this.#results = new SpareBuffers(gpu.device);
    this.#largestBuffer = largestBuffer;
    this.#code = text;
  }

  /** Writes `into`, piece by piece; what lies between its vectors stays as it is. */
  async compute(product: HeadProduct): Promise<void> {
    this.#pipeline ??= this.#checked();
    const pipeline = await this.#pipeline;
    const { rows, heads, from, matrix, into } = product;
    const largest = this.#largestBuffer / 4;
    const rowsAtOnce = Math.floor(
      Math.min((largest - from.first) / from.row, (largest - into.first) / into.row),
    );
    const headsAtOnce = Math.floor((largest - matrix.first) / matrix.head);
    if (Math.min(rowsAtOnce, headsAtOnce) < 1) {
      const most = 4 * Math.max(from.row, into.row, matrix.head);
      throw new Error(`a product has ${most} bytes, and a buffer at most ${this.#largestBuffer}`);
    }
    for (let head = 0; head < heads; head += headsAtOnce) {
      for (let row = 0; row < rows; row += rowsAtOnce) {
        const some = Math.min(rows - row, rowsAtOnce);
        const ofRows = (vectors: HeadVectors): HeadVectors => ({
          ...vectors,
          values: part(vectors, row * vectors.row, some * vectors.row),
          first: vectors.first + head * vectors.head,
        });
        const many = Math.min(heads - head, headsAtOnce);
        const values = part(matrix, head * matrix.head, many * matrix.head);
        await this.#run(pipeline, {
          ...product,
          rows: some,
          heads: many,
          from: ofRows(from),
          matrix: { ...matrix, values },
          into: ofRows(into),
        });
      }
    }
  }

  async #checked(): Promise<GPUComputePipeline> {
    const { device } = this.#gpu;
    const pipeline = await this.#gpu.run(() =>
      device.createComputePipeline({
        label: "head product",
        layout: "auto",
        compute: { module: device.createShaderModule({ code: this.#code }), entryPoint: "product" },
      }), () => Promise.resolve());
    // More than one chunk and one workgroup, and multiples of nothing; what is not a result must stay as it is.
    const [rows, heads, inner, columns] = [37, 3, 150, 6];
    const numbers = (phase: number, count: number) =>
      Float32Array.from({ length: count }, (_, i) => Math.sin(phase + i * i * 0.37));
    for (const turned of [false, true]) {
      const into = numbers(2, rows * heads * 8);
      const wanted = into.slice();
      const made = (values: Float32Array): HeadProduct => ({
        ...{ rows, heads, inner, columns },
        from: {
          values: numbers(0, rows * heads * inner),
          first: 0,
          row: heads * inner,
          head: inner,
        },
        matrix: {
          values: numbers(1, 1 + heads * inner * columns),
          first: 1,
          row: turned ? columns : inner,
          head: inner * columns,
          turned,
        },
        into: { values, first: 1, row: heads * 8, head: 8 },
      });
      await this.#run(pipeline, made(into));
      headProduct(made(wanted));
      const wrong = wanted.findIndex((x, i) => !(Math.abs(into[i]! - x) <= bound));
      if (wrong < 0) continue;
      throw new Error(
        `its driver computes wrong results: component ${wrong} of a product was ${into[wrong]}, ` +
          `not ${wanted[wrong]}`,
      );
    }
    return pipeline;
  }

  async #run(pipeline: GPUComputePipeline, product: HeadProduct): Promise<void> {
    const { device } = this.#gpu;
    const { rows, heads, inner, columns, from, matrix, into } = product;
    const arrays = [from.values, matrix.values, into.values];
    const [across, along] = matrix.turned ? [1, matrix.row] : [matrix.row, 1];
    const task = Uint32Array.of(
      ...[rows, inner, columns, across, along, from.first, from.row, from.head],
      ...[matrix.first, matrix.head, into.first, into.row, into.head],
    );
    const made: Array<GPUBuffer> = [];
    const copies: Array<GPUBuffer> = [];
    try {
      const [content] = await this.#gpu.read(() => {
        const { STORAGE, UNIFORM, COPY_DST, COPY_SRC } = GPUBufferUsage;
        const buffer = (size: number, usage: number) => {
          const there = device.createBuffer({ label: "head product", size, usage });
          made.push(there);
          return there;
        };
        const inputs = [
          buffer(task.byteLength, UNIFORM | COPY_DST),
          ...arrays.map(({ byteLength }) => buffer(byteLength, STORAGE | COPY_DST | COPY_SRC)),
        ];
        [task, ...arrays].forEach(({ buffer, byteOffset, byteLength }, i) =>
          device.queue.writeBuffer(
            inputs[i]!,
            0,
            unshared(new Uint8Array(buffer, byteOffset, byteLength)),
          )
        );
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(
          0,
          device.createBindGroup({
            layout: pipeline.getBindGroupLayout(0),
            entries: inputs.map((buffer, binding) => ({ binding, resource: { buffer } })),
          }),
        );
        pass.dispatchWorkgroups(Math.ceil(rows / lanes), Math.ceil(columns / tile), heads);
        pass.end();
        const home = this.#results.takeResult(into.values.byteLength);
        copies.push(home);
        encoder.copyBufferToBuffer(inputs[3]!, 0, home, 0, home.size);
        device.queue.submit([encoder.finish()]);
        return copies;
      });
      bytesOf(into.values).set(new Uint8Array(content!));
      for (const copy of copies.splice(0)) this.#results.giveResult(copy);
    } finally {
      for (const buffer of [...made, ...copies]) buffer.destroy();
    }
  }
}
