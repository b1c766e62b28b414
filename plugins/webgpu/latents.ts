/**
 * Latents on the device: what makes keys and values of them stays there, and each block is expanded where attention
 * reads it, by `kernels/expand_latents.wgsl`.
 *
 * @module
 */
import text from "../../kernels/expand_latents.wgsl" with { type: "text" };
import type { DType } from "../../runtime/dtype.ts";
import type { KeyValues, Queries } from "../../runtime/kernel.ts";
import { type Latent, widthOf } from "../../runtime/latent.ts";
import type { Gpu } from "./gpu.ts";
import { bufferMemory, type KeyMemory, type Room, textureMemory } from "./key_memory.ts";
import type { KeysIn } from "./ladder.ts";
import { eachStretch, type Piece } from "./parts.ts";
import { formats, headsAcross, texelFormat } from "./program.ts";
import type { Compiled } from "./programs.ts";
import { unroll } from "./unroll.ts";

const lanes = 32;
/** Tokens of an invocation. */
const tokensAtOnce = 8;
const taskBytes = 8;

/** What an expansion is made for. */
export interface Made extends Pick<Latent, "rank" | "rope" | "value"> {
  readonly headDim: number;
  /** Of the latents; keys and values are float32. */
  readonly dtype: DType;
  readonly keysIn: KeysIn;
}

/** Where rows of `width` components lie, as `key_memory.ts` puts them, and how they are read. */
const reading = (
  name: string,
  binding: number,
  dtype: DType,
  width: number,
  keysIn: KeysIn,
): ReadonlyArray<string> => {
  const { texel, stored, part, components } = formats[dtype];
  const [across, quads] = [`${headsAcross(width)}u`, `${width / 4}u`];
  const at = `@group(0) @binding(${binding}) var`;
  const [declared, place, read] = keysIn === "texture"
    ? [
      `${at} ${name}: texture_storage_2d<${texel}, read>;`,
      `vec2u(row % ${across} * ${quads}, row / ${across})`,
      `textureLoad(${name}, place + vec2u(c, 0u))${part}`,
    ]
    : [`${at}<storage, read> ${name}: array<${stored}>;`, `row * ${quads}`, `${name}[place + c]`];
  const type = keysIn === "texture" ? "vec2u" : "u32";
  return [
    declared,
    `fn ${name}Place(row: u32) -> ${type} { return ${place}; }`,
    `fn ${name}At(place: ${type}, c: u32) -> vec4f { let x = ${read}; return ${components}; }`,
  ];
};

/** How float32 keys or values are written where attention reads them. */
const writing = (
  name: string,
  called: string,
  binding: number,
  headDim: number,
  keysIn: KeysIn,
): ReadonlyArray<string> => {
  const across = `${headsAcross(headDim)}u`;
  const at = `@group(0) @binding(${binding}) var`;
  const [declared, write] = keysIn === "texture"
    ? [
      `${at} ${name}: texture_storage_2d<${texelFormat("f32")}, write>;`,
      `textureStore(${name}, vec2u(head % ${across} * QUADS + c, head / ${across}), x);`,
    ]
    : [`${at}<storage, read_write> ${name}: array<vec4f>;`, `${name}[head * QUADS + c] = x;`];
  return [declared, `fn ${called}(head: u32, c: u32, x: vec4f) { ${write} }`];
};

/** The whole WGSL text. */
export const expansionText = ({ rank, rope, value, headDim, dtype, keysIn }: Made): string => {
  const quads = (components: number) => `${components / 4}u`;
  return [
    `const TOKENS = ${tokensAtOnce}u;`,
    `const LANES = ${lanes}u;`,
    `const RANK = ${quads(rank)};`,
    `const NOPE = ${quads(headDim - rope)};`,
    `const VALUE = ${quads(value)};`,
    `const QUADS = ${quads(headDim)};`,
    ...reading("latents", 1, dtype, rank + rope, keysIn),
    ...reading("up", 2, "f32", rank, keysIn),
    ...writing("keys", "writeKey", 3, headDim, keysIn),
    ...writing("values", "writeValue", 4, headDim, keysIn),
    unroll(text, { TOKENS: tokensAtOnce }),
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
    const texture = (binding: number, access: GPUStorageTextureAccess, dtype: DType) => ({
      binding,
      visibility,
      storageTexture: { access, format: texelFormat(dtype) },
    });
    const label = `expand latents, ${made.dtype}, head dim ${made.headDim}`;
    return this.#gpu.run(() => {
      const layout = device.createBindGroupLayout({
        entries: [
          storage(0, "uniform"),
          ...(made.keysIn === "buffer"
            ? [
              storage(1, "read-only-storage"),
              storage(2, "read-only-storage"),
              storage(3, "storage"),
              storage(4, "storage"),
            ]
            : [
              texture(1, "read-only", made.dtype),
              texture(2, "read-only", "f32"),
              texture(3, "write-only", "f32"),
              texture(4, "write-only", "f32"),
            ]),
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
  readonly #task: GPUBuffer;
  /** In what the program reads, which is known when the first block comes; with room for a piece of a block. */
  #placed: { readonly keysIn: KeysIn; readonly up: Room; readonly room: KeyMemory } | undefined;
  #latents: Room | undefined;

  constructor(gpu: Gpu, queries: Queries, latent: Latent) {
    this.#gpu = gpu;
    this.#queries = queries;
    this.#latent = latent;
    const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
    this.#task = gpu.device.createBuffer({ label: "expansion", size: taskBytes, usage });
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
    return (...of) => this.#expand(compiled, keysIn, ...of);
  }

  /** Uploads what expands latents, once. */
  #place(keysIn: KeysIn) {
    if (this.#placed?.keysIn === keysIn) return this.#placed;
    this.#placed?.up.destroy();
    this.#latents?.destroy();
    const { device } = this.#gpu;
    const memory = keysIn === "buffer" ? bufferMemory : textureMemory;
    const { up: { buffer, byteOffset, byteLength }, rank } = this.#latent;
    const heads = byteLength / (4 * rank);
    const up = memory(device, "up")({ heads, headDim: rank, dtype: "f32" });
    up.write(0, new Uint8Array(buffer, byteOffset, byteLength));
    this.#placed = { keysIn, up, room: memory(device, "latents") };
    return this.#placed;
  }

  #expand(
    { pipeline, layout }: Compiled,
    keysIn: KeysIn,
    block: KeyValues,
    piece: Piece,
    [keys, values]: Parameters<Expand>[2],
  ): void {
    const { device } = this.#gpu;
    const { batch, heads, headDim } = this.#queries;
    const { up, room } = this.#place(keysIn);
    const rows = batch * piece.count;
    const latents = room({ heads: rows, headDim: widthOf(this.#latent), dtype: block.dtype });
    this.#latents = latents;
    eachStretch(
      block.bytes,
      batch,
      block.tokens,
      piece,
      (b, stretch) => latents.write(b * piece.count, stretch),
    );
    device.queue.writeBuffer(this.#task, 0, Uint32Array.of(rows, heads));
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    const resources = [{ buffer: this.#task }, latents.resource, up.resource, keys, values];
    pass.setBindGroup(
      0,
      device.createBindGroup({
        layout,
        entries: resources.map((resource, binding) => ({ binding, resource })),
      }),
    );
    pass.dispatchWorkgroups(Math.ceil(rows / (tokensAtOnce * lanes)), headDim / 2, heads);
    pass.end();
    device.queue.submit([encoder.finish()]);
  }

  destroy(): void {
    this.#task.destroy();
    this.#placed?.up.destroy();
    this.#latents?.destroy();
  }
}
