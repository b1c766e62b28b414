/**
 * Latents on the device: what makes keys and values of them stays there, and each block is expanded where attention
 * reads it, by `kernels/expand_latents.wgsl`.
 *
 * @module
 */
import text from "../../kernels/expand_latents.wgsl" with { type: "text" };
import { type DType, elementBytes } from "../../runtime/dtype.ts";
import type { KeyValues, Queries } from "../../runtime/kernel.ts";
import { type Latent, upSizeOf, widthOf } from "../../runtime/latent.ts";
import type { Gpu } from "./gpu.ts";
import { unshared } from "./key_memory.ts";
import type { KeysIn } from "./ladder.ts";
import { eachStretch, type Piece } from "./parts.ts";
import { formats, headsAcross, texelFormat } from "./program.ts";
import type { Compiled } from "./programs.ts";

const lanes = 64;
/** `TOKENS` of the program. */
const tokensAtOnce = 4;
const taskBytes = 8;

/** What an expansion is made for. */
export interface Made extends Pick<Latent, "rank" | "rope" | "value"> {
  readonly headDim: number;
  /** Of the latents; keys and values are float32. */
  readonly dtype: DType;
  readonly keysIn: KeysIn;
}

/** The whole WGSL text. */
export const expansionText = ({ rank, rope, value, headDim, dtype, keysIn }: Made): string => {
  const quads = (components: number) => `${components / 4}u`;
  const across = `${headsAcross(headDim)}u`;
  const into = (name: string, binding: number) =>
    keysIn === "texture"
      ? [
        `@group(0) @binding(${binding}) var ${name}: texture_storage_2d<${
          texelFormat("f32")
        }, write>;`,
        (x: string) =>
          `textureStore(${name}, vec2u(head % ${across} * QUADS + c, head / ${across}), ${x});`,
      ] as const
      : [
        `@group(0) @binding(${binding}) var<storage, read_write> ${name}: array<vec4f>;`,
        (x: string) => `${name}[head * QUADS + c] = ${x};`,
      ] as const;
  const [keys, writeKey] = into("keys", 3);
  const [values, writeValue] = into("values", 4);
  return [
    `const LANES = ${lanes}u;`,
    `const RANK = ${quads(rank)};`,
    `const WIDTH = ${quads(rank + rope)};`,
    `const NOPE = ${quads(headDim - rope)};`,
    `const VALUE = ${quads(value)};`,
    `const QUADS = ${quads(headDim)};`,
    `alias Stored = ${formats[dtype].stored};`,
    `fn load(x: Stored) -> vec4f { return ${formats[dtype].components}; }`,
    keys,
    values,
    `fn writeKey(head: u32, c: u32, x: vec4f) { ${writeKey("x")} }`,
    `fn writeValue(head: u32, c: u32, x: vec4f) { ${writeValue("x")} }`,
    text,
  ].join("\n");
};

/** Programs that expand latents, by what they are made for; each is checked before its first use. */
export class Expansions {
  readonly #gpu: Gpu;
  readonly #check: (made: Made, compiled: Compiled) => Promise<void>;
  readonly #text: typeof expansionText;
  readonly #programs = new Map<string, Promise<Compiled>>();

  /**
   * @param check Rejects where a program computes wrongly.
   * @param text The program, for those who want to see a wrong one refused.
   */
  constructor(
    gpu: Gpu,
    check: (made: Made, compiled: Compiled) => Promise<void>,
    text = expansionText,
  ) {
    this.#gpu = gpu;
    this.#check = check;
    this.#text = text;
  }

  find(made: Made): Promise<Compiled> {
    const key = JSON.stringify(made);
    const before = this.#programs.get(key);
    if (before !== undefined) return before;
    const program = this.#compile(made);
    const checked = program.then(async (compiled) => {
      await this.#check(made, compiled);
      return compiled;
    });
    checked.catch(() => {}); // whoever asks hears of it
    this.#programs.set(key, checked);
    return checked;
  }

  #compile(made: Made): Promise<Compiled> {
    const { device } = this.#gpu;
    const visibility = GPUShaderStage.COMPUTE;
    const storage = (binding: number, type: GPUBufferBindingType) => ({
      binding,
      visibility,
      buffer: { type },
    });
    const into = (binding: number) =>
      made.keysIn === "buffer" ? storage(binding, "storage") : {
        binding,
        visibility,
        storageTexture: { access: "write-only", format: texelFormat("f32") } as const,
      };
    const label = `expand latents, ${made.dtype}, head dim ${made.headDim}`;
    return this.#gpu.run(() => {
      const layout = device.createBindGroupLayout({
        entries: [
          storage(0, "uniform"),
          storage(1, "read-only-storage"),
          storage(2, "read-only-storage"),
          into(3),
          into(4),
        ],
      });
      const pipeline = device.createComputePipeline({
        label,
        layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: {
          module: device.createShaderModule({ label, code: this.#text(made) }),
          entryPoint: "expand",
        },
      });
      return { pipeline, layout };
    }, () => Promise.resolve());
  }
}

/** Queues the expansion of a piece of a block to where attention reads it. */
export type Expand = (
  block: KeyValues,
  piece: Piece,
  into: readonly [keys: GPUBindingResource, values: GPUBindingResource],
) => void;

/** What makes keys and values of the latents of some queries, on the device. */
export class LatentMemory {
  readonly #gpu: Gpu;
  readonly #queries: Queries;
  readonly #latent: Latent;
  readonly #up: GPUBuffer;
  readonly #task: GPUBuffer;
  /** A piece of a block, one after the other. */
  #latents: GPUBuffer | undefined;

  private constructor(gpu: Gpu, queries: Queries, latent: Latent) {
    this.#gpu = gpu;
    this.#queries = queries;
    this.#latent = latent;
    const { STORAGE, UNIFORM, COPY_DST } = GPUBufferUsage;
    const { device } = gpu;
    const size = latent.up.byteLength;
    this.#up = device.createBuffer({ label: "up", size, usage: STORAGE | COPY_DST });
    this.#task = device.createBuffer({
      label: "expansion",
      size: taskBytes,
      usage: UNIFORM | COPY_DST,
    });
    const { buffer, byteOffset } = latent.up;
    device.queue.writeBuffer(this.#up, 0, unshared(new Uint8Array(buffer, byteOffset, size)));
  }

  /** Uploads what expands latents. */
  static async place(
    gpu: Gpu,
    queries: Queries,
    latent: Latent,
    largestBuffer: number,
  ): Promise<LatentMemory> {
    const size = 4 * upSizeOf(latent, queries);
    if (size > largestBuffer) {
      const found = `the matrices of its latents have ${size} bytes`;
      throw new Error(`${found}, and a buffer at most ${largestBuffer}`);
    }
    return await gpu.run(() => new LatentMemory(gpu, queries, latent), () => Promise.resolve());
  }

  /** What queues the expansion of pieces of blocks. */
  async program(
    expansions: Pick<Expansions, "find">,
    dtype: DType,
    keysIn: KeysIn,
  ): Promise<Expand> {
    const { rank, rope, value } = this.#latent;
    const { headDim } = this.#queries;
    const compiled = await expansions.find({ rank, rope, value, headDim, dtype, keysIn });
    return (...of) => this.#expand(compiled, ...of);
  }

  #expand(
    { pipeline, layout }: Compiled,
    block: KeyValues,
    piece: Piece,
    [keys, values]: Parameters<Expand>[2],
  ): void {
    const { device } = this.#gpu;
    const { batch, heads, headDim } = this.#queries;
    const rows = batch * piece.count;
    const bytes = rows * widthOf(this.#latent) * elementBytes(block.dtype);
    if (this.#latents === undefined || this.#latents.size < bytes) {
      this.#latents?.destroy();
      const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST;
      this.#latents = device.createBuffer({ label: "latents", size: bytes, usage });
    }
    const latents = this.#latents;
    eachStretch(
      block.bytes,
      batch,
      block.tokens,
      piece,
      (b, stretch) => device.queue.writeBuffer(latents, b * bytes / batch, unshared(stretch)),
    );
    device.queue.writeBuffer(this.#task, 0, Uint32Array.of(rows, heads));
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(
      0,
      device.createBindGroup({
        layout,
        entries: [
          { buffer: this.#task },
          { buffer: latents },
          { buffer: this.#up },
          keys,
          values,
        ].map((resource, binding) => ({ binding, resource })),
      }),
    );
    pass.dispatchWorkgroups(Math.ceil(rows / (tokensAtOnce * lanes)), headDim / 2, heads);
    pass.end();
    device.queue.submit([encoder.finish()]);
  }

  destroy(): void {
    for (const buffer of [this.#up, this.#task, this.#latents]) buffer?.destroy();
  }
}
