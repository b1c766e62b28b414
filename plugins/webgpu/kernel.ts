/**
 * Attention on a WebGPU device: memory, pieces and dispatches around `kernels/attend.wgsl`.
 *
 * @module
 */
import { decode, type DType, elementBytes } from "../../runtime/dtype.ts";
import type { Accumulation, Attended, KeyValues, Queries, Tile } from "../../runtime/kernel.ts";
import { asLse, lseOf } from "../../runtime/lse.ts";
import { type Band, unbounded } from "../../runtime/mask.ts";
import { positionAt, slice, type Span } from "../../runtime/span.ts";
import { type Blocking, program } from "./program.ts";
import type { Gpu } from "./gpu.ts";
import { selfCheck } from "./self_check.ts";

/** Bytes of the program's `Task`. */
const taskBytes = 80;

/** Consecutive tokens that fit one buffer. */
interface Piece {
  readonly from: number;
  readonly count: number;
}

/** A stretch of query rows with its state, each array in a buffer of its own. */
interface Rows extends Piece {
  readonly queries: GPUBuffer;
  readonly outputs: GPUBuffer;
  readonly tops: GPUBuffer;
}

/** A tile, or what of it lies in one piece of rows and one piece of keys, counted from the pieces' begin. */
interface Part {
  readonly rows: Rows;
  readonly row: number;
  readonly querySpan: Span;
  readonly column: number;
  readonly keySpan: Span;
  readonly band: Band;
}

/** As few pieces as possible, of equal length but for the last. */
const piecesOf = (tokens: number, most: number): Array<Piece> => {
  const size = Math.ceil(tokens / Math.ceil(tokens / most));
  const pieces: Array<Piece> = [];
  for (let from = 0; from < tokens; from += size) {
    pieces.push({ from, count: Math.min(size, tokens - from) });
  }
  return pieces;
};

/** The tokens that a stretch from `from` on and a piece have in common. */
const overlap = (from: number, count: number, piece: Piece): Piece => {
  const begin = Math.max(from, piece.from);
  const end = Math.min(from + count, piece.from + piece.count);
  return { from: begin, count: Math.max(end - begin, 0) };
};

const everything: Band = { back: unbounded, ahead: unbounded };

/** What a kernel on a WebGPU device may use. */
export interface WebgpuLimits {
  readonly blocking: Blocking;
  /** Bytes that one buffer may have; what is larger is split. */
  readonly largestBuffer: number;
}

/** Attention on one device. Its programs live as long as the device. */
export class WebgpuAttention {
  readonly #gpu: Gpu;
  readonly #device: GPUDevice;
  readonly #limits: WebgpuLimits;
  readonly #program: typeof program;
  readonly #layout: GPUBindGroupLayout;
  readonly #pipelines = new Map<DType, GPUComputePipeline>();
  /** Bytes from one task to the next. */
  readonly #taskStride: number;
  /** One piece of K and V, and the tasks of a submission: used again and again, and replaced when too small. */
  #keys: GPUBuffer | undefined;
  #values: GPUBuffer | undefined;
  #tasks: GPUBuffer | undefined;

  /** `text` is the program to run, for those who want to see a wrong one refused. */
  constructor(gpu: Gpu, limits: WebgpuLimits, text = program) {
    this.#gpu = gpu;
    this.#device = gpu.device;
    this.#limits = limits;
    this.#program = text;
    const alignment = gpu.device.limits.minUniformBufferOffsetAlignment;
    this.#taskStride = Math.ceil(taskBytes / alignment) * alignment;
    const storage = (binding: number, type: GPUBufferBindingType) => ({
      binding,
      visibility: GPUShaderStage.COMPUTE,
      buffer: { type },
    });
    this.#layout = gpu.device.createBindGroupLayout({
      entries: [
        {
          binding: 0,
          visibility: GPUShaderStage.COMPUTE,
          buffer: { type: "uniform", hasDynamicOffset: true, minBindingSize: taskBytes },
        },
        storage(1, "read-only-storage"),
        storage(2, "read-only-storage"),
        storage(3, "read-only-storage"),
        storage(4, "storage"),
        storage(5, "storage"),
      ],
    });
  }

  /** Compiles the program for K/V of this format and checks what it computes, unless that was done before. */
  async prepare(dtype: DType): Promise<void> {
    if (this.#pipelines.has(dtype)) return;
    const label = `attend ${dtype}`;
    const pipeline = await this.#gpu.run(() =>
      this.#device.createComputePipeline({
        label,
        layout: this.#device.createPipelineLayout({ bindGroupLayouts: [this.#layout] }),
        compute: {
          module: this.#device.createShaderModule({
            label,
            code: this.#program(dtype, this.#limits.blocking),
          }),
          entryPoint: "attend",
        },
      })
    );
    this.#pipelines.set(dtype, pipeline); // the check needs it
    await selfCheck(this, dtype).catch((cause) => {
      this.#pipelines.delete(dtype);
      throw cause;
    });
  }

  async begin(queries: Queries): Promise<Accumulation> {
    const { batch, heads, headDim, tokens, scale } = queries;
    const width = heads * headDim;
    const grid = this.#device.limits.maxComputeWorkgroupsPerDimension;
    if (Math.max(heads, batch) > grid) {
      throw new Error(`${heads} heads in ${batch} batch entries are more than its ${grid}`);
    }
    const { lanes, rows } = this.#limits.blocking;
    const most = Math.min(this.#tokensThatFit(batch * width * 4), grid * lanes * rows);
    const q = decode(queries.dtype, queries.bytes);
    for (let i = 0; i < q.length; i++) q[i]! *= scale;

    const pieces: Array<Rows> = [];
    const close = () => {
      for (const { queries, outputs, tops } of pieces.splice(0)) {
        for (const buffer of [queries, outputs, tops]) buffer.destroy();
      }
    };
    try {
      await this.#gpu.run(() => {
        for (const { from, count } of piecesOf(tokens, most)) {
          const size = batch * count * width * 4;
          const { COPY_DST, COPY_SRC } = GPUBufferUsage;
          const piece = {
            from,
            count,
            queries: this.#buffer("queries", size, COPY_DST),
            outputs: this.#buffer("outputs", size, COPY_SRC),
            tops: this.#buffer("tops", batch * count * heads * 8, COPY_SRC),
          };
          pieces.push(piece);
          this.#write(piece.queries, new Uint8Array(q.buffer), batch, tokens, piece);
        }
      });
    } catch (cause) {
      close();
      throw cause;
    }
    return {
      absorb: (block, tiles, band) => this.#absorb(queries, pieces, block, tiles, band),
      finish: () => this.#finish(queries, pieces),
      close,
    };
  }

  async #absorb(
    queries: Queries,
    rows: ReadonlyArray<Rows>,
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ): Promise<void> {
    const { batch, kvHeads, headDim } = queries;
    const tokenBytes = kvHeads * headDim * elementBytes(block.dtype);
    const size = batch * block.tokens * tokenBytes;
    if (block.bytes.length !== 2 * size) {
      throw new Error(`a block of ${2 * size} bytes was announced, ${block.bytes.length} came`);
    }
    for (const { queries, keys } of tiles) {
      for (const span of [queries, keys]) {
        if (span.count > 0 && positionAt(span, span.count - 1) >= unbounded) {
          throw new Error(`its positions end before ${unbounded}, and a tile goes beyond`);
        }
      }
    }
    await this.prepare(block.dtype);
    const pipeline = this.#pipelines.get(block.dtype)!;
    const [k, v] = [block.bytes.subarray(0, size), block.bytes.subarray(size)];
    const work: Array<readonly [Piece, ReadonlyArray<Part>]> = [];
    for (const piece of piecesOf(block.tokens, this.#tokensThatFit(batch * tokenBytes))) {
      const parts = partsOf(rows, piece, tiles, band);
      if (parts.length > 0) work.push([piece, parts]);
    }
    if (work.length === 0) return;
    await this.#gpu.run(() => {
      for (const [piece, parts] of work) {
        // The queue keeps the order, so that no piece overwrites one that is still read.
        const bytes = batch * piece.count * tokenBytes;
        const keys = this.#keys = this.#atLeast(bytes, "keys", this.#keys);
        const values = this.#values = this.#atLeast(bytes, "values", this.#values);
        this.#write(keys, k, batch, block.tokens, piece);
        this.#write(values, v, batch, block.tokens, piece);
        this.#dispatch(pipeline, queries, piece.count, parts, keys, values);
      }
    });
  }

  /** Submits the parts that read one piece of keys. */
  #dispatch(
    pipeline: GPUComputePipeline,
    { batch, heads, kvHeads, headDim }: Queries,
    keyTokens: number,
    parts: ReadonlyArray<Part>,
    keys: GPUBuffer,
    values: GPUBuffer,
  ): void {
    const stride = this.#taskStride;
    const data = new Int32Array(parts.length * stride / 4);
    parts.forEach(({ rows, row, querySpan, column, keySpan, band }, i) => {
      const spans = [querySpan, keySpan].flatMap((s) => [s.start, s.run, s.stride, s.first]);
      const tile = [row, querySpan.count, column, keySpan.count, band.back, band.ahead];
      const shapes = [rows.count, keyTokens, heads, kvHeads, headDim / 4];
      data.set([...spans, ...tile, ...shapes], i * stride / 4);
    });
    const tasks = this.#tasks = this.#atLeast(
      data.byteLength,
      "tasks",
      this.#tasks,
      GPUBufferUsage.UNIFORM,
    );
    this.#device.queue.writeBuffer(tasks, 0, data);

    const encoder = this.#device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    const groups = new Map<Rows, GPUBindGroup>();
    parts.forEach(({ rows, querySpan }, i) => {
      const group = groups.get(rows) ?? this.#device.createBindGroup({
        layout: this.#layout,
        entries: [
          { binding: 0, resource: { buffer: tasks, size: taskBytes } },
          ...[rows.queries, keys, values, rows.outputs, rows.tops].map((buffer, i) => ({
            binding: i + 1,
            resource: { buffer },
          })),
        ],
      });
      groups.set(rows, group);
      pass.setBindGroup(0, group, [i * stride]);
      const { lanes, rows: mine } = this.#limits.blocking;
      pass.dispatchWorkgroups(Math.ceil(querySpan.count / (lanes * mine)), heads, batch);
    });
    pass.end();
    this.#device.queue.submit([encoder.finish()]);
  }

  async #finish(
    { batch, heads, headDim, tokens }: Queries,
    pieces: ReadonlyArray<Rows>,
  ): Promise<Attended> {
    const o = new Float32Array(batch * tokens * heads * headDim);
    const lse = asLse(new Float32Array(batch * heads * tokens));
    // One piece at a time, because a large state twice may be more than the device has.
    for (const piece of pieces) {
      const { from, count } = piece;
      const copies: Array<GPUBuffer> = [];
      try {
        await this.#gpu.run(() => {
          const encoder = this.#device.createCommandEncoder();
          for (const source of [piece.outputs, piece.tops]) {
            const { MAP_READ, COPY_DST } = GPUBufferUsage;
            const usage = MAP_READ | COPY_DST;
            const copy = this.#device.createBuffer({ label: "result", size: source.size, usage });
            copies.push(copy);
            encoder.copyBufferToBuffer(source, 0, copy, 0, source.size);
          }
          this.#device.queue.submit([encoder.finish()]);
        }, () => Promise.all(copies.map((copy) => copy.mapAsync(GPUMapMode.READ))));
        const [outputs, tops] = copies.map((copy) => new Float32Array(copy.getMappedRange()));
        for (let b = 0; b < batch; b++) {
          for (let h = 0; h < heads; h++) {
            for (let i = 0; i < count; i++) {
              const top = ((b * heads + h) * count + i) * 2;
              const [m, l] = [tops![top]!, tops![top + 1]!];
              lse[(b * heads + h) * tokens + from + i] = lseOf(m, l);
              if (l === 0) continue; // it saw no key
              const source = ((b * count + i) * heads + h) * headDim;
              const target = ((b * tokens + from + i) * heads + h) * headDim;
              for (let c = 0; c < headDim; c++) o[target + c] = outputs![source + c]! / l;
            }
          }
        }
      } finally {
        for (const copy of copies) copy.destroy();
      }
    }
    return { o, lse };
  }

  #tokensThatFit(tokenBytes: number): number {
    const { largestBuffer } = this.#limits;
    const fit = Math.floor(largestBuffer / tokenBytes);
    if (fit > 0) return fit;
    throw new Error(`one token has ${tokenBytes} bytes, and a buffer at most ${largestBuffer}`);
  }

  #buffer(label: string, size: number, usage: number): GPUBuffer {
    return this.#device.createBuffer({ label, size, usage: usage | GPUBufferUsage.STORAGE });
  }

  /** A buffer to write to: the one that is there, or a new one where it is too small. */
  #atLeast(
    size: number,
    label: string,
    there: GPUBuffer | undefined,
    usage: number = GPUBufferUsage.STORAGE,
  ): GPUBuffer {
    if (there !== undefined && there.size >= size) return there;
    there?.destroy();
    return this.#device.createBuffer({ label, size, usage: usage | GPUBufferUsage.COPY_DST });
  }

  /** Copies a piece of a [batch, tokens, …] tensor to the begin of a buffer. */
  #write(
    buffer: GPUBuffer,
    tensor: Uint8Array,
    batch: number,
    tokens: number,
    { from, count }: Piece,
  ): void {
    const tokenBytes = tensor.length / (batch * tokens);
    for (let b = 0; b < batch; b++) {
      const begin = (b * tokens + from) * tokenBytes;
      const bytes = tensor.subarray(begin, begin + count * tokenBytes);
      // The types exclude shared memory as the standard once did; the bytes are copied before this returns.
      const source = bytes as Uint8Array<ArrayBuffer>;
      this.#device.queue.writeBuffer(buffer, b * count * tokenBytes, source);
    }
  }
}

/** What of the tiles concerns a piece of keys, tile by tile and in the order of rows. */
const partsOf = (
  rows: ReadonlyArray<Rows>,
  keys: Piece,
  tiles: ReadonlyArray<Tile>,
  band: Band,
): ReadonlyArray<Part> =>
  tiles.flatMap((tile) => {
    const columns = overlap(tile.column, tile.keys.count, keys);
    if (columns.count === 0) return [];
    return rows.flatMap((piece) => {
      const mine = overlap(tile.row, tile.queries.count, piece);
      if (mine.count === 0) return [];
      return [{
        rows: piece,
        row: mine.from - piece.from,
        querySpan: slice(tile.queries, mine.from - tile.row, mine.count),
        column: columns.from - keys.from,
        keySpan: slice(tile.keys, columns.from - tile.column, columns.count),
        band: tile.full ? everything : band,
      }];
    });
  });
