/**
 * The backward pass of attention on a WebGPU device: memory, slabs and dispatches around
 * `kernels/attend_backward_*.wgsl`.
 *
 * @module
 */
import { decode, type DType, elementBytes } from "../../runtime/dtype.ts";
import type { BackwardPass, KeyValues, Outcome, Queries, Tile } from "../../runtime/kernel.ts";
import { type Band, unbounded } from "../../runtime/mask.ts";
import { positionAt } from "../../runtime/span.ts";
import { selfCheckBackward } from "./backward_check.ts";
import {
  type BackwardAdapter,
  backwardProgram,
  type Pass,
  passes,
  rowsOf,
} from "./backward_program.ts";
import type { Gpu } from "./gpu.ts";
import { eachStretch, tokensThatFit } from "./kernel.ts";
import {
  bufferMemory,
  type KeyMemory,
  type Room,
  rowsWithin,
  textureMemory,
} from "./key_memory.ts";
import { type Part, partsOf, type Piece, piecesOf } from "./parts.ts";
import { headsAcross, texelFormat } from "./program.ts";
import { type Slab, slabsOf } from "./slabs.ts";

/** Bytes of the programs' `Task`. */
const taskBytes = 96;

/** What a backward pass on a WebGPU device may use. */
export interface BackwardOptions extends BackwardAdapter {
  /** Bytes that one buffer may have; what is larger is split. */
  readonly largestBuffer: number;
  /** Rows that a texture may have; what is larger is split. */
  readonly tallestTexture: number;
  /** What a program with subgroups begins with. */
  readonly directive: string;
}

/** A stretch of query rows with what is known of them, and their dq over scale. */
interface Rows extends Piece {
  readonly outcomes: Room;
  readonly rows: Room;
  readonly gradients: GPUBuffer;
}

interface Compiled {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

type Programs = Readonly<Record<Pass, Compiled>>;

/** Bytes of dS between the two passes, at most: so that they stay in the caches of a CPU. */
const scoreBytes = 2 ** 24;

/** The backward pass on one device. Its programs live as long as the device. */
export class WebgpuBackward {
  readonly #gpu: Gpu;
  readonly #device: GPUDevice;
  readonly #options: BackwardOptions;
  readonly #program: typeof backwardProgram;
  readonly #programs = new Map<string, Promise<Programs>>();
  /** Bytes from one task to the next. */
  readonly #taskStride: number;
  readonly #blocks: KeyMemory;
  /** The tasks of a submission, dk and dv of a piece, dS of a slab: used again and again, replaced when too small. */
  #tasks: GPUBuffer | undefined;
  #gradients: GPUBuffer | undefined;
  #scores: GPUBuffer | undefined;

  /** `text` gives the programs to run, for those who want to see a wrong one refused. */
  constructor(gpu: Gpu, options: BackwardOptions, text = backwardProgram) {
    this.#gpu = gpu;
    this.#device = gpu.device;
    this.#options = options;
    this.#program = text;
    const alignment = gpu.device.limits.minUniformBufferOffsetAlignment;
    this.#taskStride = Math.ceil(taskBytes / alignment) * alignment;
    this.#blocks = this.#memory("blocks");
  }

  /** Compiles the programs for such K/V and checks what they compute, unless that was done before. */
  async prepare(dtype: DType, headDim: number): Promise<void> {
    await this.#checked(dtype, headDim);
  }

  #checked(dtype: DType, headDim: number): Promise<Programs> {
    const key = `${dtype}, head dim ${headDim}`;
    const before = this.#programs.get(key);
    if (before !== undefined) return before;
    const checked = this.#compile(dtype, headDim).then(async (programs) => {
      const begin = (queries: Queries, outcome: Outcome) =>
        this.#begin(queries, outcome, () => Promise.resolve(programs));
      await selfCheckBackward({ beginBackward: begin }, dtype, headDim);
      return programs;
    });
    this.#programs.set(key, checked);
    return checked;
  }

  #compile(dtype: DType, headDim: number): Promise<Programs> {
    const compile = (pass: Pass): Compiled => {
      const label = `backward of ${pass}, ${dtype}, head dim ${headDim}`;
      const layout = this.#layout(pass, dtype);
      const directive = this.#options.subgroups ? this.#options.directive : "";
      const code = directive + this.#program({ ...this.#options, pass, dtype, headDim });
      const pipeline = this.#device.createComputePipeline({
        label,
        layout: this.#device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: {
          module: this.#device.createShaderModule({ label, code }),
          entryPoint: "backward",
        },
      });
      return { pipeline, layout };
    };
    return this.#gpu.run(
      () => ({ keys: compile("keys"), queries: compile("queries") }),
      () => Promise.resolve(),
    );
  }

  /** The bindings of a pass. */
  #layout(pass: Pass, dtype: DType): GPUBindGroupLayout {
    const visibility = GPUShaderStage.COMPUTE;
    const buffer = (binding: number, type: GPUBufferBindingType) => ({
      binding,
      visibility,
      buffer: { type },
    });
    const tensor = (binding: number, dtype: DType) =>
      this.#options.keysIn === "buffer" ? buffer(binding, "read-only-storage") : {
        binding,
        visibility,
        storageTexture: { access: "read-only", format: texelFormat(dtype) } as const,
      };
    const ofRows = pass === "keys" ? [tensor(1, "f32"), tensor(2, "f32")] : [];
    return this.#device.createBindGroupLayout({
      entries: [
        {
          binding: 0,
          visibility,
          buffer: { type: "uniform", hasDynamicOffset: true, minBindingSize: taskBytes },
        },
        ...ofRows,
        tensor(3, dtype),
        buffer(4, pass === "keys" ? "storage" : "read-only-storage"),
        buffer(5, "storage"),
      ],
    });
  }

  begin(queries: Queries, outcome: Outcome): Promise<BackwardPass> {
    return this.#begin(queries, outcome, (...of) => this.#checked(...of));
  }

  async #begin(
    queries: Queries,
    outcome: Outcome,
    find: (dtype: DType, headDim: number) => Promise<Programs>,
  ): Promise<BackwardPass> {
    const { batch, heads, headDim, tokens } = queries;
    const { q, dO, outcomes } = prepared(queries, outcome);
    const pieces: Array<Rows> = [];
    const close = () => {
      for (const { outcomes, rows, gradients } of pieces.splice(0)) {
        for (const memory of [outcomes, rows, gradients]) memory.destroy();
      }
    };
    try {
      await this.#gpu.run(() => {
        for (
          const { from, count } of piecesOf(tokens, this.#tokensAtOnce(batch * heads, headDim))
        ) {
          const piece: Rows = {
            from,
            count,
            outcomes: this.#memory("outcomes")({
              heads: batch * heads * count,
              headDim: 4,
              dtype: "f32",
            }),
            rows: this.#memory("rows")({ heads: 2 * batch * count * heads, headDim, dtype: "f32" }),
            gradients: this.#device.createBuffer({
              label: "dq",
              size: batch * count * heads * headDim * 4,
              usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC,
            }),
          };
          pieces.push(piece);
          [q, dO].forEach((tensor, i) =>
            eachStretch(
              new Uint8Array(tensor.buffer),
              batch,
              tokens,
              piece,
              (b, bytes) => piece.rows.write((i * batch + b) * count * heads, bytes),
            )
          );
          eachStretch(
            new Uint8Array(outcomes.buffer),
            batch * heads,
            tokens,
            piece,
            (row, bytes) => piece.outcomes.write(row * count, bytes),
          );
        }
      }, () => Promise.resolve()); // the queue has copied the bytes
    } catch (cause) {
      close();
      throw cause;
    }
    // Blocks are computed in the order of the calls, also where the first of them must wait for its programs, and
    // nothing goes on after a block that failed.
    let issued: Promise<unknown> = Promise.resolve();
    let over: Promise<unknown> = Promise.resolve();
    return {
      absorb: async (block, tiles, band) => {
        assertFits(queries, block, tiles);
        const mine = issued.then(() => this.#issue(find, queries, pieces, block, tiles, band));
        const done = mine.then(({ done }) => done);
        issued = mine;
        over = Promise.all([over, done]);
        over.catch(() => {}); // whoever waits for this block hears of it
        return await done;
      },
      finish: () => over.then(() => this.#finish(queries, pieces)),
      close,
    };
  }

  /** Uploads a block and queues its work. `done` resolves with its dk and dv. */
  async #issue(
    find: (dtype: DType, headDim: number) => Promise<Programs>,
    queries: Queries,
    rows: ReadonlyArray<Rows>,
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ): Promise<{ readonly done: Promise<Float32Array> }> {
    const { batch, kvHeads, headDim } = queries;
    const { dtype, tokens } = block;
    const result = new Float32Array(2 * batch * tokens * kvHeads * headDim);
    const work = piecesOf(tokens, this.#tokensAtOnce(batch * kvHeads, headDim)).map((piece) => ({
      piece,
      slabs: partsOf(rows, piece, tiles, band).flatMap((part) => this.#slabsOf(queries, part)),
    })).filter(({ slabs }) => slabs.length > 0);
    if (work.length === 0) return { done: Promise.resolve(result) };
    const programs = await find(dtype, headDim);
    const copies: Array<GPUBuffer> = [];
    const done = this.#gpu.run(() => {
      for (const { piece, slabs } of work) {
        const heads = batch * piece.count * kvHeads;
        // The queue keeps the order, so that no piece overwrites one that is still read.
        const blocks = this.#blocks({ heads: 2 * heads, headDim, dtype });
        eachStretch(
          block.bytes,
          2 * batch,
          tokens,
          piece,
          (b, bytes) => blocks.write(b * piece.count * kvHeads, bytes),
        );
        copies.push(this.#dispatch(programs, queries, piece, slabs, blocks));
      }
    }, async () => {
      // Deno holds this thread until the device is idle: a block that is there already is queued before.
      await new Promise((resolve) => setTimeout(resolve));
      await Promise.all(copies.map((copy) => copy.mapAsync(GPUMapMode.READ)));
    }).then(() => {
      copies.forEach((copy, i) => {
        const mapped = copy.getMappedRange();
        eachStretch(
          new Uint8Array(result.buffer),
          2 * batch,
          tokens,
          work[i]!.piece,
          (b, bytes) => bytes.set(new Uint8Array(mapped, b * bytes.length, bytes.length)),
        );
      });
      return result;
    }).finally(() => {
      for (const copy of copies) copy.destroy();
    });
    return { done };
  }

  /** Tokens of a piece of rows or keys: two tensors of float32 must fit what holds them. */
  #tokensAtOnce(heads: number, headDim: number): number {
    const { keysIn, largestBuffer, tallestTexture } = this.#options;
    const bytes = 2 * heads * headDim * 4;
    const row = headsAcross(headDim) * headDim * 4;
    const largest = keysIn === "buffer"
      ? largestBuffer
      : Math.min(largestBuffer, row * rowsWithin(tallestTexture));
    return tokensThatFit(bytes, largest);
  }

  #slabsOf({ batch, heads, kvHeads, headDim }: Queries, part: Part<Rows>) {
    const { keysIn, lanes, largestBuffer } = this.#options;
    return slabsOf(part, {
      pairs: batch * kvHeads,
      sharing: heads / kvHeads,
      group: lanes * rowsOf({ pass: "keys", keysIn, headDim }),
      room: Math.min(scoreBytes, largestBuffer) / 16,
      mostHeads: this.#device.limits.maxComputeWorkgroupsPerDimension,
    });
  }

  /** Submits the slabs of one piece of keys. Gives the memory into which its dk and dv are copied. */
  #dispatch(
    programs: Programs,
    { batch, heads, kvHeads, headDim }: Queries,
    piece: Piece,
    slabs: ReadonlyArray<Slab<Rows>>,
    blocks: Room,
  ): GPUBuffer {
    const { keysIn, lanes } = this.#options;
    const sharing = heads / kvHeads;
    const groupOf = (pass: Pass) => lanes * rowsOf({ pass, keysIn, headDim });
    const stride = this.#taskStride;
    const data = new ArrayBuffer(slabs.length * stride);
    slabs.forEach(({ part, first, rowQuads, pitch }, i) => {
      const { rows, row, querySpan, column, keySpan, band } = part;
      const spans = [querySpan, keySpan].flatMap((s) => [s.start, s.run, s.stride, s.first]);
      const tile = [row, querySpan.count, column, keySpan.count, band.back, band.ahead];
      const tokens = [rows.count, piece.count, heads, kvHeads, first];
      const halves = [batch * rows.count * heads, batch * piece.count * kvHeads];
      const fields = [...spans, ...tile, ...tokens, ...halves, rowQuads, pitch];
      new Int32Array(data, i * stride).set(fields);
      new Float32Array(data, i * stride)[fields.length] = 1;
    });
    const { UNIFORM, STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
    const size = 2 * batch * piece.count * kvHeads * headDim * 4;
    const tasks = this.#tasks = this.#grown(
      this.#tasks,
      "tasks",
      data.byteLength,
      UNIFORM | COPY_DST,
    );
    const gradients = this.#gradients = this.#grown(
      this.#gradients,
      "dk and dv",
      size,
      STORAGE | COPY_SRC | COPY_DST,
    );
    const scores = this.#scores = this.#grown(
      this.#scores,
      "scores",
      16 *
        Math.max(...slabs.map(({ count, rowQuads, pitch }) => count * sharing * rowQuads * pitch)),
      STORAGE,
    );
    this.#device.queue.writeBuffer(tasks, 0, data);

    const encoder = this.#device.createCommandEncoder();
    encoder.clearBuffer(gradients, 0, size);
    const bind = (pass: Pass, rows: Rows) =>
      this.#device.createBindGroup({
        layout: programs[pass].layout,
        entries: ([
          [0, { buffer: tasks, size: taskBytes }],
          ...(pass === "keys"
            ? [[1, rows.outcomes.resource], [2, rows.rows.resource]] as const
            : []),
          [3, blocks.resource],
          [4, { buffer: scores }],
          [5, { buffer: pass === "keys" ? gradients : rows.gradients }],
        ] as const).map(([binding, resource]) => ({ binding, resource })),
      });
    const bound = new Map<Rows, Readonly<Record<Pass, GPUBindGroup>>>();
    const compute = encoder.beginComputePass();
    slabs.forEach(({ part: { rows, querySpan }, count, width }, i) => {
      const groups = bound.get(rows) ??
        { keys: bind("keys", rows), queries: bind("queries", rows) };
      bound.set(rows, groups);
      for (const pass of passes) {
        compute.setPipeline(programs[pass].pipeline);
        compute.setBindGroup(0, groups[pass], [i * stride]);
        if (pass === "keys") compute.dispatchWorkgroups(width / groupOf("keys"), count);
        else {
          compute.dispatchWorkgroups(
            Math.ceil(querySpan.count / groupOf("queries")),
            count * sharing,
          );
        }
      }
    });
    compute.end();
    const copy = this.#device.createBuffer({
      label: "result",
      size,
      usage: MAP_READ | COPY_DST,
    });
    encoder.copyBufferToBuffer(gradients, 0, copy, 0, size);
    this.#device.queue.submit([encoder.finish()]);
    return copy;
  }

  async #finish(
    { batch, heads, headDim, tokens, scale }: Queries,
    pieces: ReadonlyArray<Rows>,
  ): Promise<Float32Array> {
    const dq = new Float32Array(batch * tokens * heads * headDim);
    // One piece at a time, because dq twice may be more than the device has.
    for (const piece of pieces) {
      const { MAP_READ, COPY_DST } = GPUBufferUsage;
      let copy: GPUBuffer | undefined;
      try {
        copy = await this.#gpu.run(() => {
          const { size } = piece.gradients;
          copy = this.#device.createBuffer({ label: "result", size, usage: MAP_READ | COPY_DST });
          const encoder = this.#device.createCommandEncoder();
          encoder.copyBufferToBuffer(piece.gradients, 0, copy, 0, size);
          this.#device.queue.submit([encoder.finish()]);
          return copy;
        }, (copy) => copy.mapAsync(GPUMapMode.READ));
        const mapped = copy.getMappedRange();
        eachStretch(
          new Uint8Array(dq.buffer),
          batch,
          tokens,
          piece,
          (b, bytes) => bytes.set(new Uint8Array(mapped, b * bytes.length, bytes.length)),
        );
      } finally {
        copy?.destroy();
      }
    }
    for (let i = 0; i < dq.length; i++) dq[i]! *= scale;
    return dq;
  }

  #grown(
    buffer: GPUBuffer | undefined,
    label: string,
    size: number,
    usage: number,
  ): GPUBuffer {
    if (buffer !== undefined && buffer.size >= size) return buffer;
    buffer?.destroy();
    return this.#device.createBuffer({ label, size, usage });
  }

  #memory(label: string): KeyMemory {
    const make = this.#options.keysIn === "texture" ? textureMemory : bufferMemory;
    return make(this.#device, label);
  }
}

const assertFits = (
  { batch, kvHeads, headDim }: Queries,
  block: KeyValues,
  tiles: ReadonlyArray<Tile>,
): void => {
  const size = 2 * batch * block.tokens * kvHeads * headDim * elementBytes(block.dtype);
  if (block.bytes.length !== size) {
    throw new Error(`a block of ${size} bytes was announced, ${block.bytes.length} came`);
  }
  for (const { queries, keys } of tiles) {
    for (const span of [queries, keys]) {
      if (span.count > 0 && positionAt(span, span.count - 1) >= unbounded) {
        throw new Error(`its positions end before ${unbounded}, and a tile goes beyond`);
      }
    }
  }
};

/** q times scale, dO, and (lse, D, 0, 0) of each row; all of them 0 for a row that saw no key. */
const prepared = (queries: Queries, { o, lse, cotangent }: Outcome) => {
  const { batch, heads, headDim, tokens, scale } = queries;
  const q = decode(queries.dtype, queries.bytes);
  const dO = cotangent.slice();
  const outcomes = new Float32Array(batch * heads * tokens * 4);
  for (let i = 0; i < q.length; i++) q[i]! *= scale;
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      for (let i = 0; i < tokens; i++) {
        const at = (b * heads + h) * tokens + i;
        const from = ((b * tokens + i) * heads + h) * headDim;
        const top = lse[at]!;
        if (top === -Infinity) {
          q.fill(0, from, from + headDim);
          dO.fill(0, from, from + headDim);
          continue;
        }
        if (!Number.isFinite(top)) {
          throw new Error(`a gradient needs the log-sum-exp of each row, and row ${i} has ${top}`);
        }
        let d = 0;
        for (let c = from; c < from + headDim; c++) d += cotangent[c]! * o[c]!;
        outcomes[4 * at] = top;
        outcomes[4 * at + 1] = d;
      }
    }
  }
  return { q, dO, outcomes };
};
