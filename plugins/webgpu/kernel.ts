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
import type { Gpu } from "./gpu.ts";
import { bufferMemory, type KeyMemory, textureMemory } from "./key_memory.ts";
import { blockingFor, headsAcross, type KeysIn, program, texelFormat } from "./program.ts";
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

const tokensThatFit = (tokenBytes: number, largest: number): number => {
  const fit = Math.floor(largest / tokenBytes);
  if (fit > 0) return fit;
  throw new Error(`one token has ${tokenBytes} bytes, and a buffer at most ${largest}`);
};

/** The bytes of a piece of a [batch, tokens, …] tensor, one stretch for each batch entry. */
const eachStretch = <B extends ArrayBufferLike>(
  tensor: Uint8Array<B>,
  batch: number,
  tokens: number,
  { from, count }: Piece,
  visit: (batchEntry: number, bytes: Uint8Array<B>) => void,
): void => {
  const tokenBytes = tensor.length / (batch * tokens);
  for (let b = 0; b < batch; b++) {
    const begin = (b * tokens + from) * tokenBytes;
    visit(b, tensor.subarray(begin, begin + count * tokenBytes));
  }
};

const everything: Band = { back: unbounded, ahead: unbounded };

/** What a kernel on a WebGPU device may use. */
export interface WebgpuLimits {
  readonly keysIn: KeysIn;
  /** Bytes that one buffer may have; what is larger is split. */
  readonly largestBuffer: number;
  /** Rows that a texture may have; what is larger is split. */
  readonly tallestTexture: number;
}

/** A program on the device, and what it is given. */
interface Compiled {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/** Attention on one device. Its programs live as long as the device. */
export class WebgpuAttention {
  readonly #gpu: Gpu;
  readonly #device: GPUDevice;
  readonly #limits: WebgpuLimits;
  readonly #program: typeof program;
  readonly #compiled = new Map<string, Compiled>();
  /** Bytes from one task to the next. */
  readonly #taskStride: number;
  readonly #keys: KeyMemory;
  readonly #values: KeyMemory;
  /** The tasks of a submission: used again and again, and replaced when too small. */
  #tasks: GPUBuffer | undefined;

  /** `text` is the program to run, for those who want to see a wrong one refused. */
  constructor(gpu: Gpu, limits: WebgpuLimits, text = program) {
    this.#gpu = gpu;
    this.#device = gpu.device;
    this.#limits = limits;
    this.#program = text;
    const alignment = gpu.device.limits.minUniformBufferOffsetAlignment;
    this.#taskStride = Math.ceil(taskBytes / alignment) * alignment;
    const memory = limits.keysIn === "texture" ? textureMemory : bufferMemory;
    this.#keys = memory(gpu.device, "keys");
    this.#values = memory(gpu.device, "values");
  }

  /** Compiles the program for such K/V and checks what it computes, unless that was done before. */
  async prepare(dtype: DType, headDim: number): Promise<void> {
    await this.#compile(dtype, headDim);
  }

  async #compile(dtype: DType, headDim: number): Promise<Compiled> {
    const label = `attend ${dtype}, head dim ${headDim}`;
    const before = this.#compiled.get(label);
    if (before !== undefined) return before;
    const { keysIn } = this.#limits;
    const compiled = await this.#gpu.run(() => {
      const layout = this.#layout(dtype);
      const pipeline = this.#device.createComputePipeline({
        label,
        layout: this.#device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: {
          module: this.#device.createShaderModule({
            label,
            code: this.#program({ dtype, headDim, keysIn }),
          }),
          entryPoint: "attend",
        },
      });
      return { pipeline, layout };
    });
    this.#compiled.set(label, compiled); // the check needs it
    await selfCheck(this, dtype, headDim).catch((cause) => {
      this.#compiled.delete(label);
      throw cause;
    });
    return compiled;
  }

  /** The bindings of `kernels/attend.wgsl`. */
  #layout(dtype: DType): GPUBindGroupLayout {
    const visibility = GPUShaderStage.COMPUTE;
    const storage = (binding: number, type: GPUBufferBindingType) => ({
      binding,
      visibility,
      buffer: { type },
    });
    const keys = (binding: number) =>
      this.#limits.keysIn === "buffer" ? storage(binding, "read-only-storage") : {
        binding,
        visibility,
        storageTexture: { access: "read-only", format: texelFormat(dtype) } as const,
      };
    return this.#device.createBindGroupLayout({
      entries: [
        {
          binding: 0,
          visibility,
          buffer: { type: "uniform", hasDynamicOffset: true, minBindingSize: taskBytes },
        },
        storage(1, "read-only-storage"),
        keys(2),
        keys(3),
        storage(4, "storage"),
        storage(5, "storage"),
      ],
    });
  }

  async begin(queries: Queries): Promise<Accumulation> {
    const { batch, heads, headDim, tokens, scale } = queries;
    const width = heads * headDim;
    const grid = this.#device.limits.maxComputeWorkgroupsPerDimension;
    if (Math.max(heads, batch) > grid) {
      throw new Error(`${heads} heads in ${batch} batch entries are more than its ${grid}`);
    }
    const { lanes, rows } = blockingFor({ ...this.#limits, headDim });
    const { largestBuffer } = this.#limits;
    const most = Math.min(tokensThatFit(batch * width * 4, largestBuffer), grid * lanes * rows);
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
          eachStretch(
            new Uint8Array(q.buffer),
            batch,
            tokens,
            piece,
            (b, bytes) =>
              this.#device.queue.writeBuffer(piece.queries, b * count * width * 4, bytes),
          );
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
    const compiled = await this.#compile(block.dtype, headDim);
    const [k, v] = [block.bytes.subarray(0, size), block.bytes.subarray(size)];
    const work: Array<readonly [Piece, ReadonlyArray<Part>]> = [];
    const most = tokensThatFit(batch * tokenBytes, this.#largestKeys(block.dtype, headDim));
    for (const piece of piecesOf(block.tokens, most)) {
      const parts = partsOf(rows, piece, tiles, band);
      if (parts.length > 0) work.push([piece, parts]);
    }
    if (work.length === 0) return;
    await this.#gpu.run(() => {
      for (const [piece, parts] of work) {
        // The queue keeps the order, so that no piece overwrites one that is still read.
        const heads = { heads: batch * piece.count * kvHeads, headDim, dtype: block.dtype };
        const [keys, values] = [this.#keys(heads), this.#values(heads)];
        for (const [room, tensor] of [[keys, k], [values, v]] as const) {
          eachStretch(
            tensor,
            batch,
            block.tokens,
            piece,
            (b, bytes) => room.write(b * piece.count * kvHeads, bytes),
          );
        }
        this.#dispatch(compiled, queries, piece.count, parts, keys.resource, values.resource);
      }
    });
  }

  /** Bytes of K or V that one buffer or texture may have. */
  #largestKeys(dtype: DType, headDim: number): number {
    const { keysIn, largestBuffer, tallestTexture } = this.#limits;
    if (keysIn === "buffer") return largestBuffer;
    const row = headsAcross(headDim) * headDim * elementBytes(dtype);
    return Math.min(largestBuffer, row * tallestTexture);
  }

  /** Submits the parts that read one piece of keys. */
  #dispatch(
    { pipeline, layout }: Compiled,
    { batch, heads, kvHeads, headDim }: Queries,
    keyTokens: number,
    parts: ReadonlyArray<Part>,
    keys: GPUBindingResource,
    values: GPUBindingResource,
  ): void {
    const stride = this.#taskStride;
    const data = new Int32Array(parts.length * stride / 4);
    parts.forEach(({ rows, row, querySpan, column, keySpan, band }, i) => {
      const spans = [querySpan, keySpan].flatMap((s) => [s.start, s.run, s.stride, s.first]);
      const tile = [row, querySpan.count, column, keySpan.count, band.back, band.ahead];
      const shapes = [rows.count, keyTokens, heads, kvHeads];
      data.set([...spans, ...tile, ...shapes], i * stride / 4);
    });
    if (this.#tasks === undefined || this.#tasks.size < data.byteLength) {
      this.#tasks?.destroy();
      const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
      this.#tasks = this.#device.createBuffer({ label: "tasks", size: data.byteLength, usage });
    }
    const tasks = this.#tasks;
    this.#device.queue.writeBuffer(tasks, 0, data);

    const encoder = this.#device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    const groups = new Map<Rows, GPUBindGroup>();
    const { lanes, rows: mine } = blockingFor({ ...this.#limits, headDim });
    parts.forEach(({ rows, querySpan }, i) => {
      const group = groups.get(rows) ?? this.#device.createBindGroup({
        layout,
        entries: [
          { buffer: tasks, size: taskBytes },
          { buffer: rows.queries },
          keys,
          values,
          { buffer: rows.outputs },
          { buffer: rows.tops },
        ].map((resource, binding) => ({ binding, resource })),
      });
      groups.set(rows, group);
      pass.setBindGroup(0, group, [i * stride]);
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
              // A lost row becomes no number, so that nobody takes it for one.
              const sum = l < 0 ? NaN : l;
              lse[(b * heads + h) * tokens + from + i] = lseOf(m, sum);
              if (sum === 0) continue; // it saw no key
              const source = ((b * count + i) * heads + h) * headDim;
              const target = ((b * tokens + from + i) * heads + h) * headDim;
              for (let c = 0; c < headDim; c++) o[target + c] = outputs![source + c]! / sum;
            }
          }
        }
      } finally {
        for (const copy of copies) copy.destroy();
      }
    }
    return { o, lse };
  }

  #buffer(label: string, size: number, usage: number): GPUBuffer {
    return this.#device.createBuffer({ label, size, usage: usage | GPUBufferUsage.STORAGE });
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
