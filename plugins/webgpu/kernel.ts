/**
 * Attention on a WebGPU device: memory, pieces and dispatches around `kernels/attend.wgsl`.
 *
 * @module
 */
import { bytesOf, decode, type DType, elementBytes } from "../../runtime/dtype.ts";
import type { Accumulation, Attended, KeyValues, Queries, Tile } from "../../runtime/kernel.ts";
import { asLse, lseOf } from "../../runtime/lse.ts";
import type { Band } from "../../runtime/mask.ts";
import type { Gpu } from "./gpu.ts";
import { bufferMemory, type KeyMemory, rowsWithin, textureMemory, unshared } from "./key_memory.ts";
import type { Choice, KeysIn } from "./ladder.ts";
import { eachStretch, type Part, partsOf, type Piece, piecesOf, variantFor } from "./parts.ts";
import { checkExpansion } from "./latent_check.ts";
import { Expansions, LatentMemory } from "./latents.ts";
import { PairMemory } from "./pairs.ts";
import {
  allVariants,
  clearGroup,
  groupRows,
  headsAcross,
  mostKeys,
  program,
  type VariantName,
  variants,
} from "./program.ts";
import { type Compiled, type ProgramOptions, Programs, taskBytes } from "./programs.ts";
import { selfCheck } from "./self_check.ts";
import { SpareBuffers } from "./spare_buffers.ts";

/** A stretch of query rows with its state, each array in a buffer of its own. */
interface Rows extends Piece {
  readonly queries: GPUBuffer;
  readonly outputs: GPUBuffer;
  readonly tops: GPUBuffer;
}

/** How many tokens of that size fit a buffer; throws where not one does. */
export const tokensThatFit = (tokenBytes: number, largest: number): number => {
  const fit = Math.floor(largest / tokenBytes);
  if (fit > 0) return fit;
  throw new Error(`one token has ${tokenBytes} bytes, and a buffer at most ${largest}`);
};

/** Bytes of K or V that one buffer or texture may have. */
const largestKeys = (
  { largestBuffer, tallestTexture }: Limits,
  { version: { keysIn } }: Choice,
  dtype: DType,
  headDim: number,
): number => {
  if (keysIn === "buffer") return largestBuffer;
  const row = headsAcross(headDim) * headDim * elementBytes(dtype);
  return Math.min(largestBuffer, row * rowsWithin(tallestTexture));
};

/** Resolves when both are over; rejects with what the earlier one did, else the later one. */
const bothDone = async (earlier: Promise<unknown>, later: Promise<unknown>): Promise<void> => {
  await Promise.allSettled([earlier, later]);
  await earlier;
  await later;
};

/** What of a block lies in one piece of keys, and the parts that each variant computes. */
interface Work {
  readonly piece: Piece;
  readonly parts: Readonly<Record<VariantName, ReadonlyArray<Part<Rows>>>>;
}

/** What a device has room for. */
interface Limits {
  /** Bytes that one buffer may have; what is larger is split. */
  readonly largestBuffer: number;
  /** Rows that a texture may have; what is larger is split. */
  readonly tallestTexture: number;
}

/** For what is small enough anyway. */
const unlimited: Limits = { largestBuffer: Infinity, tallestTexture: Infinity };

/** What a kernel on a WebGPU device may use. */
export interface AttentionOptions extends ProgramOptions, Limits {}

/** Finds the choice to use and the variants of its program, ready to run. */
type Find = Programs["find"];

/** What queries have on the device. */
interface Placed {
  readonly pieces: ReadonlyArray<Rows>;
  readonly pairs: PairMemory | undefined;
  readonly latents: LatentMemory | undefined;
}

/** Attention on one device. Its programs live as long as the device. */
export class WebgpuAttention {
  readonly #gpu: Gpu;
  readonly #device: GPUDevice;
  readonly #options: AttentionOptions;
  readonly #programs: Programs;
  /** Bytes from one task to the next. */
  readonly #taskStride: number;
  readonly #memory: Readonly<
    Record<KeysIn, { readonly keys: KeyMemory; readonly values: KeyMemory }>
  >;
  readonly #spare: SpareBuffers;
  readonly #expansions: Expansions;
  /** The tasks of a submission: used again and again, and replaced when too small. */
  #tasks: GPUBuffer | undefined;

  /** `text` is the program to run, for those who want to see a wrong one refused. */
  constructor(gpu: Gpu, options: AttentionOptions, text = program) {
    this.#gpu = gpu;
    this.#device = gpu.device;
    this.#options = options;
    this.#spare = new SpareBuffers(gpu.device);
    this.#expansions = new Expansions(
      gpu,
      (made, compiled) => checkExpansion(gpu, made, compiled),
    );
    const alignment = gpu.device.limits.minUniformBufferOffsetAlignment;
    this.#taskStride = Math.ceil(taskBytes / alignment) * alignment;
    const memory = (make: (device: GPUDevice, label: string) => KeyMemory) => ({
      keys: make(gpu.device, "keys"),
      values: make(gpu.device, "values"),
    });
    this.#memory = { buffer: memory(bufferMemory), texture: memory(textureMemory) };
    this.#programs = new Programs(gpu, options, (made, compiled) => {
      const { version, blocking, dtype, headDim, variant } = made;
      const find: Find = (_dtype, _headDim, wanted) => {
        const names = wanted({ version, blocking });
        if (names.some((name) => name !== variant)) {
          return Promise.reject(new Error(`the check of its ${variant} keys has other ones`));
        }
        return Promise.resolve({ version, blocking, compiled: names.map(() => compiled) });
      };
      // In one piece, since pieces may leave keys for the other variant.
      const checked = { begin: (queries: Queries) => this.#begin(queries, find, unlimited) };
      const group = groupRows(made, headDim);
      return selfCheck(checked, dtype, headDim, variant, group, clearGroup(made));
    }, text);
  }

  /** Compiles the program for such K/V and checks what it computes, unless that was done before. */
  async prepare(dtype: DType, headDim: number): Promise<void> {
    await this.#programs.find(dtype, headDim, () => variants);
  }

  begin(queries: Queries): Promise<Accumulation> {
    return this.#begin(queries, (...of) => this.#programs.find(...of));
  }

  async #begin(
    queries: Queries,
    find: Find,
    limits: Limits = this.#options,
  ): Promise<Accumulation> {
    const { batch, heads, headDim, tokens } = queries;
    const width = heads * headDim;
    const grid = this.#device.limits.maxComputeWorkgroupsPerDimension;
    if (Math.max(heads, batch) > grid) {
      throw new Error(`${heads} heads in ${batch} batch entries are more than its ${grid}`);
    }
    const most = Math.min(
      tokensThatFit(batch * width * 4, limits.largestBuffer),
      grid * this.#programs.leastRows(headDim),
    );
    const q = queries.dtype === "f32"
      ? queries.bytes
      : bytesOf(decode(queries.dtype, queries.bytes));

    const pairs = queries.attention === undefined
      ? undefined
      : await PairMemory.place(this.#gpu, queries.attention);
    const made = queries.latent?.up.byteLength ?? 0;
    if (made > limits.largestBuffer) {
      const found = `the matrices of its latents have ${made} bytes`;
      throw new Error(`${found}, and a buffer at most ${limits.largestBuffer}`);
    }
    const latents = queries.latent === undefined
      ? undefined
      : new LatentMemory(this.#gpu, queries, queries.latent);
    const pieces: Array<Rows> = [];
    const placed: Placed = { pieces, pairs, latents };
    // What failed may be a buffer that is none, or one that was lost with the device.
    let sound = true;
    const close = () => {
      pairs?.destroy();
      latents?.destroy();
      for (const { queries, outputs, tops } of pieces.splice(0)) {
        for (const buffer of [queries, outputs, tops]) {
          if (sound) this.#spare.give(buffer);
          else buffer.destroy();
        }
      }
    };
    const within = async <A>(work: Promise<A>): Promise<A> => {
      try {
        return await work;
      } catch (cause) {
        sound = false;
        throw cause;
      }
    };
    try {
      await within(this.#gpu.run(() => {
        const encoder = this.#device.createCommandEncoder();
        for (const { from, count } of piecesOf(tokens, most)) {
          const size = batch * count * width * 4;
          const { COPY_DST, COPY_SRC } = GPUBufferUsage;
          const piece = {
            from,
            count,
            queries: this.#buffer("queries", size, COPY_DST),
            outputs: this.#buffer("outputs", size, COPY_SRC | COPY_DST),
            tops: this.#buffer("tops", batch * count * heads * 8, COPY_SRC | COPY_DST),
          };
          pieces.push(piece);
          for (const state of [piece.outputs, piece.tops]) encoder.clearBuffer(state);
          eachStretch(
            q,
            batch,
            tokens,
            piece,
            (b, bytes) =>
              this.#device.queue.writeBuffer(piece.queries, b * count * width * 4, unshared(bytes)),
          );
        }
        this.#device.queue.submit([encoder.finish()]);
      }, () => Promise.resolve())); // the queue has copied the bytes
    } catch (cause) {
      close();
      throw cause;
    }
    // Blocks are added in the order of the calls, also where the first of them must wait for its program, and nothing
    // goes on after a block that failed.
    let issued: Promise<unknown> = Promise.resolve();
    let over: Promise<unknown> = Promise.resolve();
    return {
      absorb: async (block, tiles, band) => {
        const mine = issued.then(() =>
          this.#issue(find, limits, queries, placed, block, tiles, band)
        );
        const done = bothDone(over, mine.then(({ done }) => done));
        [issued, over] = [mine, done];
        await within(done);
      },
      finish: () => within(over.then(() => this.#finish(queries, pieces))),
      close,
    };
  }

  /** Uploads a block and queues its work. `done` resolves when the device is at most this block behind. */
  async #issue(
    find: Find,
    limits: Limits,
    queries: Queries,
    { pieces: rows, pairs, latents }: Placed,
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ): Promise<{ readonly done: Promise<void> }> {
    const { batch, kvHeads, headDim } = queries;
    const { tokens } = block;
    // Latents are expanded in float32, whatever they travel in.
    const dtype = latents === undefined ? block.dtype : "f32";
    let work: ReadonlyArray<Work> = [];
    const { version, blocking, compiled } = await find(dtype, headDim, (choice) => {
      const tokenBytes = batch * kvHeads * headDim * elementBytes(dtype);
      const most = Math.min(
        tokensThatFit(tokenBytes, largestKeys(limits, choice, dtype, headDim)),
        mostKeys(choice, headDim),
      );
      const group = groupRows(choice, headDim);
      const clear = clearGroup({ ...choice, dtype, headDim });
      work = piecesOf(tokens, most).map((piece) => {
        const parts = partsOf(rows, piece, tiles, band);
        const of = (name: VariantName) =>
          parts.filter((part) => variantFor(part, group, clear) === name);
        return {
          piece,
          parts: { clear: of("clear"), masked: of("masked"), pairwise: of("pairwise") },
        };
      });
      return allVariants.filter((name) => work.some(({ parts }) => parts[name].length > 0));
    }, pairs?.program);
    if (compiled.length === 0) return { done: Promise.resolve() };
    const programs = allVariants
      .filter((name) => work.some(({ parts }) => parts[name].length > 0))
      .map((name, i) => [name, compiled[i]!] as const);
    const expansion = await latents?.program(this.#expansions, block.dtype, version.keysIn);
    const memory = this.#memory[version.keysIn];
    const done = this.#gpu.queue(() => {
      for (const { piece, parts } of work) {
        if (allVariants.every((name) => parts[name].length === 0)) continue;
        // The queue keeps the order, so that no piece overwrites one that is still read.
        const heads = { heads: batch * piece.count * kvHeads, headDim, dtype };
        const [keys, values] = [memory.keys(heads), memory.values(heads)];
        if (expansion === undefined) {
          const size = block.bytes.length / 2;
          [keys, values].forEach((room, half) =>
            eachStretch(
              block.bytes.subarray(half * size, (half + 1) * size),
              batch,
              tokens,
              piece,
              (b, bytes) => room.write(b * piece.count * kvHeads, bytes),
            )
          );
        } else expansion(block, piece, [keys.resource, values.resource]);
        this.#dispatch(
          queries,
          piece.count,
          groupRows({ version, blocking }, headDim),
          programs.flatMap(([name, program]) => parts[name].map((part) => ({ program, part }))),
          [keys.resource, values.resource],
          pairs?.entries ?? [],
        );
      }
    });
    return { done };
  }

  /** Submits the parts that read one piece of keys, in workgroups of `group` rows. */
  #dispatch(
    { batch, heads, kvHeads, scale }: Queries,
    keyTokens: number,
    group: number,
    work: ReadonlyArray<{ readonly program: Compiled; readonly part: Part<Rows> }>,
    [keys, values]: readonly [GPUBindingResource, GPUBindingResource],
    asked: ReadonlyArray<GPUBindGroupEntry>,
  ): void {
    const stride = this.#taskStride;
    const data = new Int32Array(work.length * stride / 4);
    work.forEach(({ part: { rows, row, querySpan, column, keySpan, band } }, i) => {
      const spans = [querySpan, keySpan].flatMap((s) => [s.start, s.run, s.stride, s.first]);
      const tile = [row, querySpan.count, column, keySpan.count, band.back, band.ahead];
      const shapes = [rows.count, keyTokens, heads, kvHeads];
      const fields = [...spans, ...tile, ...shapes];
      data.set(fields, i * stride / 4);
      new Float32Array(data.buffer, i * stride)[fields.length] = scale; // and `zero` is 0
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
    const groups = new Map<Compiled, Map<Rows, GPUBindGroup>>();
    work.forEach(({ program, part: { rows, querySpan } }, i) => {
      const bound = groups.get(program) ?? new Map<Rows, GPUBindGroup>();
      if (bound.size === 0) pass.setPipeline(program.pipeline);
      groups.set(program, bound);
      const entry = bound.get(rows) ?? this.#device.createBindGroup({
        layout: program.layout,
        entries: [
          ...[
            { buffer: tasks, size: taskBytes },
            { buffer: rows.queries },
            keys,
            values,
            { buffer: rows.outputs },
            { buffer: rows.tops },
          ].map((resource, binding) => ({ binding, resource })),
          ...asked,
        ],
      });
      bound.set(rows, entry);
      pass.setBindGroup(0, entry, [i * stride]);
      pass.dispatchWorkgroups(Math.ceil(querySpan.count / group), heads, batch);
    });
    pass.end();
    this.#device.queue.submit([encoder.finish()]);
  }

  async #finish(
    queries: Queries,
    pieces: ReadonlyArray<Rows>,
  ): Promise<Attended> {
    const { batch, heads, headDim, tokens } = queries;
    const o = new Float32Array(batch * tokens * heads * headDim);
    const lse = asLse(new Float32Array(batch * heads * tokens));
    // One piece at a time, because a large state and its copies may be more than the device has.
    for (const piece of pieces) {
      const { from } = piece;
      const copies: Array<GPUBuffer> = [];
      try {
        const [outputs, tops] = (await this.#gpu.read(() => {
          const encoder = this.#device.createCommandEncoder();
          for (const source of [piece.outputs, piece.tops]) {
            const copy = this.#spare.takeResult(source.size);
            copies.push(copy);
            encoder.copyBufferToBuffer(source, 0, copy, 0, source.size);
          }
          this.#device.queue.submit([encoder.finish()]);
          // The pages of new memory, while the device is busy.
          if (from === 0) o.fill(0);
          return copies;
        })).map((content) => new Float32Array(content)) as [Float32Array, Float32Array];
        normalise(queries, piece, outputs, tops, o, lse);
      } catch (cause) {
        for (const copy of copies) copy.destroy();
        throw cause;
      }
      for (const copy of copies) this.#spare.giveResult(copy);
    }
    return { o, lse };
  }

  #buffer(label: string, size: number, usage: number): GPUBuffer {
    return this.#spare.take(label, size, usage | GPUBufferUsage.STORAGE);
  }
}

/** Writes what a piece of rows has gathered to `o` and `lse`. A function of its own, which engines optimise at once. */
const normalise = (
  { batch, heads, headDim, tokens }: Queries,
  { from, count }: Piece,
  outputs: Float32Array,
  tops: Float32Array,
  o: Float32Array,
  lse: Float32Array,
): void => {
  for (let b = 0; b < batch; b++) {
    // In the order in which outputs lie.
    for (let i = 0; i < count; i++) {
      for (let h = 0; h < heads; h++) {
        const top = ((b * heads + h) * count + i) * 2;
        const [m, l] = [tops[top]!, tops[top + 1]!];
        // A lost row becomes no number, so that nobody takes it for one.
        const sum = l < 0 ? NaN : l;
        lse[(b * heads + h) * tokens + from + i] = lseOf(m, sum);
        if (sum === 0) continue; // it saw no key
        const source = ((b * count + i) * heads + h) * headDim;
        const target = ((b * tokens + from + i) * heads + h) * headDim;
        const inverse = 1 / sum;
        for (let c = 0; c < headDim; c++) o[target + c] = outputs[source + c]! * inverse;
      }
    }
  }
};
