/**
 * The backward pass of attention on a WebGPU device: memory, slabs and dispatches around
 * `kernels/attend_backward_*.wgsl`.
 *
 * @module
 */
import type { DType } from "../../runtime/dtype.ts";
import type { BackwardPass, KeyValues, Outcome, Queries, Tile } from "../../runtime/kernel.ts";
import type { Band } from "../../runtime/mask.ts";
import { selfCheckBackward } from "./backward_check.ts";
import {
  type BackwardAdapter,
  backwardProgram,
  type BackwardVariant,
  groupOf,
  nameOf,
  type Pass,
  passesOf,
} from "./backward_program.ts";
import { destroyRows, placeRows, Preparation, type Prepared, type Rows } from "./backward_rows.ts";
import { FirstThatWorks } from "./first_that_works.ts";
import type { Gpu } from "./gpu.ts";
import { tokensThatFit } from "./kernel.ts";
import {
  bufferMemory,
  type KeyMemory,
  type Room,
  rowsWithin,
  textureMemory,
} from "./key_memory.ts";
import type { KeysIn } from "./ladder.ts";
import { pairLayout, PairMemory, type PairProgram } from "./pairs.ts";
import { eachStretch, type Part, partsOf, type Piece, piecesOf } from "./parts.ts";
import { headsAcross, texelFormat } from "./program.ts";
import { type Slab, slabsOf, turnsOf } from "./slabs.ts";
import { SpareBuffers } from "./spare_buffers.ts";

/** Bytes of the programs' `Task`. */
const taskBytes = 112;

/** What a backward pass on a WebGPU device may use. */
export interface BackwardOptions {
  /** Best first, at least one. With one alone there is no way out: its failure is an error. */
  readonly choices: ReadonlyArray<BackwardAdapter>;
  /** Hears of each choice that is dropped. */
  readonly warn: (sentence: string) => void;
  /** Bytes that one buffer may have; what is larger is split. */
  readonly largestBuffer: number;
  /** Rows that a texture may have; what is larger is split. */
  readonly tallestTexture: number;
  /** What a program with subgroups begins with. */
  readonly directive: string;
}

interface Compiled {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
  /** It reads the parameters of an attention. */
  readonly asks: boolean;
}

/** The programs that a choice compiles to: with attention that asks about pairs, one more for tiles that need it. */
interface Programs {
  readonly choice: BackwardAdapter;
  readonly keys: Compiled;
  /** Where one pass does not do it all. */
  readonly queries?: Compiled;
  readonly pairwise?: Compiled;
}

/** Finds the programs to use, checked. */
type Find = (dtype: DType, headDim: number, pairs?: PairProgram) => Promise<Programs>;

/** What a pass has in memory of the device, from its first block on, and in which kind of memory. */
interface Placed {
  readonly keysIn: KeysIn;
  readonly rows: ReadonlyArray<Rows>;
  readonly pairs: PairMemory | undefined;
}

/**
 * What the slabs of two passes have at most: bytes of dS between the passes; rows and keys, of which more make longer sums,
 * unless the passes cut them; and quads of rows of all heads that share keys: see `mostKeys` in `program.ts`. What an
 * imitated GPU writes stays in the caches of a CPU; a GPU needs workgroups by the hundred.
 */
const slabLimits = {
  lanes: { bytes: 2 ** 24, mostRows: 2048, mostKeys: 1024, mostQuads: 2 ** 15 },
  tiles: { bytes: 2 ** 29, mostRows: 4096, mostKeys: 4096, mostQuads: 2 ** 11 },
};

/** Workgroups of a dispatch that has no more keys than it needs: enough for each thread of a CPU to have some. */
const workgroupsAtOnce = Math.max(8, 2 * navigator.hardwareConcurrency);

/** The backward pass on one device. Its programs live as long as the device. */
export class WebgpuBackward {
  readonly #gpu: Gpu;
  readonly #device: GPUDevice;
  readonly #options: BackwardOptions;
  readonly #program: typeof backwardProgram;
  readonly #choices: FirstThatWorks<BackwardAdapter>;
  readonly #programs = new Map<string, Promise<Programs>>();
  readonly #memory: Pick<BackwardVariant, "workgroupBytes">;
  /** Bytes from one task to the next. */
  readonly #taskStride: number;
  readonly #blocks: Readonly<Record<KeysIn, KeyMemory>>;
  /** The tasks of a submission, dk and dv of a piece, dS of a slab: used again and again, replaced when too small. */
  #tasks: GPUBuffer | undefined;
  #gradients: GPUBuffer | undefined;
  #scores: GPUBuffer | undefined;
  readonly #results: SpareBuffers;
  readonly #preparation = new Preparation();

  /** `text` gives the programs to run, for those who want to see a wrong one refused. */
  constructor(gpu: Gpu, options: BackwardOptions, text = backwardProgram) {
    this.#gpu = gpu;
    this.#device = gpu.device;
    this.#results = new SpareBuffers(gpu.device);
    this.#options = options;
    this.#program = text;
    this.#memory = { workgroupBytes: gpu.device.limits.maxComputeWorkgroupStorageSize };
    const alignment = gpu.device.limits.minUniformBufferOffsetAlignment;
    this.#taskStride = Math.ceil(taskBytes / alignment) * alignment;
    this.#blocks = {
      buffer: bufferMemory(gpu.device, "blocks"),
      texture: textureMemory(gpu.device, "blocks"),
    };
    this.#choices = new FirstThatWorks(gpu, nameOf, options.warn);
  }

  /** Compiles the programs for such K/V and checks what they compute, unless that was done before. */
  async prepare(dtype: DType, headDim: number): Promise<void> {
    await this.#find(dtype, headDim);
  }

  #find(dtype: DType, headDim: number, pairs?: PairProgram): Promise<Programs> {
    return this.#choices.find(
      `${dtype} and head dim ${headDim}`,
      this.#options.choices,
      async (choice) => {
        const plain = await this.#checkedOnce(choice, dtype, headDim);
        // Answers of others are known to nobody: what they are made from is checked.
        return pairs === undefined ? plain : await this.#askingOnce(plain, dtype, headDim, pairs);
      },
    );
  }

  #askingOnce(
    plain: Programs,
    dtype: DType,
    headDim: number,
    pairs: PairProgram,
  ): Promise<Programs> {
    const { choice } = plain;
    const key = JSON.stringify({ ...choice, dtype, headDim, pairs: pairs.text });
    const made = this.#programs.get(key) ?? this.#gpu.run(() => {
      const keys = { ...choice, ...this.#memory, pass: "keys", dtype, headDim, pairs } as const;
      return {
        ...plain,
        ...(pairs.scored ? { keys: this.#compileOne(keys) } : {}),
        ...(pairs.masked ? { pairwise: this.#compileOne({ ...keys, pairwise: true }) } : {}),
      };
    }, () => Promise.resolve());
    this.#programs.set(key, made);
    return made;
  }

  #checkedOnce(choice: BackwardAdapter, dtype: DType, headDim: number): Promise<Programs> {
    const key = JSON.stringify({ ...choice, dtype, headDim });
    const before = this.#programs.get(key);
    if (before !== undefined) return before;
    const checked = this.#compile(choice, dtype, headDim).then(async (programs) => {
      const begin = (queries: Queries, outcome: Outcome) =>
        this.#begin(queries, outcome, () => Promise.resolve(programs));
      await selfCheckBackward({ beginBackward: begin }, dtype, headDim);
      return programs;
    });
    checked.catch(() => {}); // whoever asks hears of it
    this.#programs.set(key, checked);
    return checked;
  }

  #compile(choice: BackwardAdapter, dtype: DType, headDim: number): Promise<Programs> {
    const compile = (pass: Pass) =>
      this.#compileOne({ ...choice, ...this.#memory, pass, dtype, headDim });
    return this.#gpu.run(
      () => ({
        choice,
        keys: compile("keys"),
        ...(passesOf(choice).includes("queries") ? { queries: compile("queries") } : {}),
      }),
      () => Promise.resolve(),
    );
  }

  #compileOne(variant: BackwardVariant): Compiled {
    const { pass, dtype, headDim, form } = variant;
    const label = `backward of ${pass}, ${dtype}, head dim ${headDim}`;
    const layout = this.#layout(variant);
    const code = (form === "once" ? this.#options.directive : "") + this.#program(variant);
    const pipeline = this.#device.createComputePipeline({
      label,
      layout: this.#device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: {
        module: this.#device.createShaderModule({ label, code }),
        entryPoint: "backward",
      },
    });
    return { pipeline, layout, asks: variant.pairs !== undefined };
  }

  /** The bindings of a program. */
  #layout({ keysIn, pass, dtype, pairs }: BackwardVariant): GPUBindGroupLayout {
    const visibility = GPUShaderStage.COMPUTE;
    const buffer = (binding: number, type: GPUBufferBindingType) => ({
      binding,
      visibility,
      buffer: { type },
    });
    const tensor = (binding: number, dtype: DType) =>
      keysIn === "buffer" ? buffer(binding, "read-only-storage") : {
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
        ...(pairs === undefined ? [] : pairLayout(pairs)),
      ],
    });
  }

  begin(queries: Queries, outcome: Outcome): BackwardPass {
    return this.#begin(queries, outcome, (...of) => this.#find(...of));
  }

  #begin(queries: Queries, outcome: Outcome, find: Find): BackwardPass {
    // What never fits is refused now, not with the first block.
    for (const { keysIn } of this.#options.choices) {
      this.#tokensAtOnce(keysIn, queries.batch * queries.heads, queries.headDim);
    }
    let given: Prepared | undefined = this.#preparation.prepare(queries, outcome);
    const { attention } = queries;
    let pairs: PairMemory | undefined;
    // With the first block, whose programs say in which kind of memory.
    let placed: Placed | undefined;
    const place = async (keysIn: KeysIn): Promise<Placed> => {
      if (given !== undefined) {
        const most = this.#tokensAtOnce(keysIn, queries.batch * queries.heads, queries.headDim);
        const rows = await placeRows(this.#gpu, keysIn, most, queries, given);
        placed = { keysIn, rows, pairs };
        this.#preparation.give(given);
        given = undefined;
      }
      if (placed?.keysIn === keysIn) return placed;
      throw new Error("blocks of another number format would need other memory than those before");
    };
    // Blocks are computed in the order of the calls, also where the first of them must wait for its programs, and
    // nothing goes on after a block that failed.
    let issued: Promise<unknown> = Promise.resolve();
    let over: Promise<unknown> = Promise.resolve();
    return {
      absorb: async (block, tiles, band) => {
        const mine = issued.then(async () => {
          if (attention !== undefined) pairs ??= await PairMemory.place(this.#gpu, attention);
          const programs = await find(block.dtype, queries.headDim, pairs?.program);
          const mine = await place(programs.choice.keysIn);
          return this.#issue(programs, queries, mine, block, tiles, band);
        });
        const done = mine.then(({ done }) => done);
        issued = mine;
        over = Promise.all([over, done]);
        over.catch(() => {}); // whoever waits for this block hears of it
        return await done;
      },
      finish: () => over.then(() => this.#finish(queries, placed)),
      close: () => {
        if (placed !== undefined) destroyRows(placed.rows);
        pairs?.destroy();
      },
    };
  }

  /** Uploads a block and queues its work. `done` resolves with its dk and dv. */
  #issue(
    programs: Programs,
    queries: Queries,
    placed: Placed,
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ): { readonly done: Promise<Float32Array> } {
    const { batch, kvHeads, headDim } = queries;
    const { dtype, tokens } = block;
    const { choice } = programs;
    const { rows, pairs } = placed;
    const most = this.#tokensAtOnce(choice.keysIn, batch * kvHeads, headDim);
    const result = new Float32Array(2 * batch * tokens * kvHeads * headDim);
    const work = piecesOf(tokens, most).map((piece) => ({
      piece,
      slabs: partsOf(rows, piece, tiles, band).flatMap((part) =>
        this.#slabsOf(choice, queries, part)
      ),
    })).filter(({ slabs }) => slabs.length > 0);
    if (work.length === 0) return { done: Promise.resolve(result) };
    const copies: Array<GPUBuffer> = [];
    let contents: ReadonlyArray<ArrayBuffer> = [];
    const done = this.#gpu.run(() => {
      for (const { piece, slabs } of work) {
        const heads = batch * piece.count * kvHeads;
        // The queue keeps the order, so that no piece overwrites one that is still read.
        const blocks = this.#blocks[choice.keysIn]({ heads: 2 * heads, headDim, dtype });
        eachStretch(
          block.bytes,
          2 * batch,
          tokens,
          piece,
          (b, bytes) => blocks.write(b * piece.count * kvHeads, bytes),
        );
        copies.push(this.#dispatch(programs, queries, piece, slabs, blocks, pairs));
      }
    }, async () => {
      // Deno holds this thread until the device is idle: a block that is there already is queued before.
      await new Promise((resolve) => setTimeout(resolve));
      contents = await this.#gpu.contents(copies);
    }).then(() => {
      contents.forEach((content, i) => {
        eachStretch(
          new Uint8Array(result.buffer),
          2 * batch,
          tokens,
          work[i]!.piece,
          (b, bytes) => bytes.set(new Uint8Array(content, b * bytes.length, bytes.length)),
        );
      });
      for (const copy of copies.splice(0)) this.#results.giveResult(copy);
      return result;
    }).finally(() => {
      for (const copy of copies) copy.destroy();
    });
    return { done };
  }

  /** Tokens of a piece of rows or keys: two tensors of float32 must fit what holds them. */
  #tokensAtOnce(keysIn: KeysIn, heads: number, headDim: number): number {
    const { largestBuffer, tallestTexture } = this.#options;
    const bytes = 2 * heads * headDim * 4;
    const row = headsAcross(headDim) * headDim * 4;
    const largest = keysIn === "buffer"
      ? largestBuffer
      : Math.min(largestBuffer, row * rowsWithin(tallestTexture));
    return tokensThatFit(bytes, largest);
  }

  #slabsOf(
    choice: BackwardAdapter,
    { batch, heads, kvHeads, headDim }: Queries,
    part: Part<Rows>,
  ) {
    const shape = {
      pairs: batch * kvHeads,
      sharing: heads / kvHeads,
      group: groupOf({ ...choice, ...this.#memory, pass: "keys", headDim }),
    };
    const mostPairs = this.#device.limits.maxComputeWorkgroupsPerDimension;
    if (choice.form === "once") {
      return turnsOf(part, { ...shape, mostPairs, workgroups: workgroupsAtOnce });
    }
    const { bytes, ...most } = slabLimits[choice.form];
    return slabsOf(part, {
      ...shape,
      ...most,
      room: Math.min(bytes, this.#options.largestBuffer) / 16,
      mostHeads: mostPairs,
    });
  }

  /** Submits the slabs of one piece of keys. Gives the memory into which its dk and dv are copied. */
  #dispatch(
    programs: Programs,
    { batch, heads, kvHeads, headDim }: Queries,
    piece: Piece,
    slabs: ReadonlyArray<Slab<Rows>>,
    blocks: Room,
    pairs: PairMemory | undefined,
  ): GPUBuffer {
    const { choice } = programs;
    const sharing = heads / kvHeads;
    const stride = this.#taskStride;
    const data = new ArrayBuffer(slabs.length * stride);
    slabs.forEach(({ part, first, rowQuads, pitch, turn }, i) => {
      const { rows, row, querySpan, column, keySpan, band } = part;
      const spans = [querySpan, keySpan].flatMap((s) => [s.start, s.run, s.stride, s.first]);
      const tile = [row, querySpan.count, column, keySpan.count, band.back, band.ahead];
      const tokens = [rows.count, piece.count, heads, kvHeads, first];
      const halves = [batch * rows.count * heads, batch * piece.count * kvHeads];
      const fields = [...spans, ...tile, ...tokens, ...halves, rowQuads, pitch, turn, 0];
      new Int32Array(data, i * stride).set(fields);
    });
    const { UNIFORM, STORAGE, COPY_SRC, COPY_DST } = GPUBufferUsage;
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
    const room = Math.max(
      ...slabs.map(({ count, rowQuads, pitch }) => count * sharing * rowQuads * pitch),
    );
    const scores = choice.form === "once" ? undefined : this.#scores = this.#grown(
      this.#scores,
      "scores",
      16 * room,
      STORAGE,
    );
    this.#device.queue.writeBuffer(tasks, 0, data);

    const encoder = this.#device.createCommandEncoder();
    encoder.clearBuffer(gradients, 0, size);
    const bind = (pass: Pass, program: Compiled, rows: Rows) =>
      this.#device.createBindGroup({
        layout: program.layout,
        entries: [
          ...([
            [0, { buffer: tasks, size: taskBytes }],
            ...(pass === "keys"
              ? [[1, rows.outcomes.resource], [2, rows.rows.resource]] as const
              : []),
            [3, blocks.resource],
            [4, { buffer: scores ?? rows.gradients }],
            [5, { buffer: pass === "keys" ? gradients : rows.gradients }],
          ] as const).map(([binding, resource]) => ({ binding, resource })),
          ...(program.asks ? pairs!.entries : []),
        ],
      });
    const bound = new Map<Compiled, Map<Rows, GPUBindGroup>>();
    const compute = encoder.beginComputePass();
    slabs.forEach(({ part: { rows, querySpan, pairwise }, count, width }, i) => {
      for (const pass of passesOf(choice)) {
        const program = pass === "keys" && pairwise ? programs.pairwise! : programs[pass]!;
        const groups = bound.get(program) ?? new Map<Rows, GPUBindGroup>();
        bound.set(program, groups);
        const group = groups.get(rows) ?? bind(pass, program, rows);
        groups.set(rows, group);
        compute.setPipeline(program.pipeline);
        compute.setBindGroup(0, group, [i * stride]);
        const size = groupOf({ ...choice, ...this.#memory, pass, headDim });
        if (pass === "keys") compute.dispatchWorkgroups(width / size, count);
        else compute.dispatchWorkgroups(Math.ceil(querySpan.count / size), count * sharing);
      }
    });
    compute.end();
    const copy = this.#results.takeResult(size);
    encoder.copyBufferToBuffer(gradients, 0, copy, 0, size);
    this.#device.queue.submit([encoder.finish()]);
    return copy;
  }

  async #finish(queries: Queries, placed: Placed | undefined): Promise<Float32Array> {
    const { batch, heads, headDim, tokens } = queries;
    const dq = new Float32Array(batch * tokens * heads * headDim);
    if (placed === undefined) return dq;
    // One piece at a time, because dq and its copies may be more than the device has.
    for (const piece of placed.rows) {
      const copies: Array<GPUBuffer> = [];
      try {
        const [content] = await this.#gpu.read(() => {
          const { size } = piece.gradients;
          const copy = this.#results.takeResult(size);
          copies.push(copy);
          const encoder = this.#device.createCommandEncoder();
          encoder.copyBufferToBuffer(piece.gradients, 0, copy, 0, size);
          this.#device.queue.submit([encoder.finish()]);
          return copies;
        });
        spread(queries, piece, new Float32Array(content!), dq);
        for (const copy of copies.splice(0)) this.#results.giveResult(copy);
      } finally {
        for (const copy of copies) copy.destroy();
      }
    }
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
}

/** Writes the dq of a piece to where its rows are, times scale. A function of its own, which engines optimise at once. */
const spread = (
  { batch, heads, headDim, tokens, scale }: Queries,
  { from, count }: Piece,
  gradients: Float32Array,
  dq: Float32Array,
): void => {
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      for (let i = 0; i < count; i++) {
        const source = ((b * heads + h) * count + i) * headDim;
        const target = ((b * tokens + from + i) * heads + h) * headDim;
        for (let c = 0; c < headDim; c++) dq[target + c] = gradients[source + c]! * scale;
      }
    }
  }
};
