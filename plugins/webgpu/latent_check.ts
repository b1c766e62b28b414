/**
 * A few latents whose keys and values are known, because drivers compile wrongly at times and say nothing.
 *
 * @module
 */
import { expandedLatents } from "../../kernels/oracle.ts";
import { decode, encode } from "../../runtime/dtype.ts";
import { upSizeOf, widthOf } from "../../runtime/latent.ts";
import type { Gpu } from "./gpu.ts";
import { LatentMemory, type Made } from "./latents.ts";
import { headsAcross, texelFormat } from "./program.ts";
import type { Compiled } from "./programs.ts";

/** No multiples of what an invocation or a workgroup takes at once. */
const batch = 1, heads = 3, tokens = 7;

/** Largest error of a component; a wrong program is off by far more. */
const bound = 1e-4;

const numbers = (phase: number, count: number, largest: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => largest * Math.sin(phase + i * i * 0.37));

/** Throws where a program makes other keys or values of latents than plain loops do. */
export const checkExpansion = async (
  gpu: Gpu,
  made: Made,
  compiled: Compiled,
): Promise<void> => {
  const { device } = gpu;
  const { headDim, dtype, keysIn } = made;
  const sizes = { heads, headDim };
  const up = numbers(0, upSizeOf(made, sizes), 1 / Math.sqrt(made.rank));
  const bytes = encode(dtype, numbers(1, tokens * widthOf(made), 1));
  const wanted = expandedLatents({ ...sizes, ...made }, decode(dtype, bytes), up);

  const quads = headDim / 4;
  const size: [number, number] = [
    headsAcross(headDim) * quads,
    Math.ceil(tokens * heads / headsAcross(headDim)),
  ];
  const bytesPerRow = 16 * size[0];
  const length = keysIn === "texture" ? bytesPerRow * size[1] : tokens * heads * headDim * 4;
  const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
  const queries = {
    ...{ ...sizes, batch, tokens, kvHeads: heads, scale: 1, dtype: "f32" as const },
    bytes: new Uint8Array(0),
  };
  const latent = { ...made, up, form: "expand" as const };
  const memory = new LatentMemory(gpu, queries, latent);
  const expand = await memory.program({ find: () => Promise.resolve(compiled) }, dtype, keysIn);
  const [into, copies] = await gpu.run(() => {
    const into = [0, 1].map(() =>
      keysIn === "buffer"
        ? device.createBuffer({ label: "checked", size: length, usage: STORAGE | COPY_SRC })
        : device.createTexture({
          label: "checked",
          size,
          format: texelFormat("f32"),
          usage: GPUTextureUsage.STORAGE_BINDING | GPUTextureUsage.COPY_SRC,
        })
    );
    const resource = (x: GPUBuffer | GPUTexture) =>
      x instanceof GPUBuffer ? { buffer: x } : x.createView();
    expand({ tokens, dtype, bytes }, { from: 0, count: tokens }, [
      resource(into[0]!),
      resource(into[1]!),
    ]);
    const encoder = device.createCommandEncoder();
    const copies = into.map((source) => {
      const usage = MAP_READ | COPY_DST;
      const copy = device.createBuffer({ label: "check", size: length, usage });
      if (source instanceof GPUBuffer) encoder.copyBufferToBuffer(source, 0, copy, 0, length);
      else encoder.copyTextureToBuffer({ texture: source }, { buffer: copy, bytesPerRow }, size);
      return copy;
    });
    device.queue.submit([encoder.finish()]);
    return [into, copies] as const;
  }, ([, copies]) => Promise.all(copies.map((copy) => copy.mapAsync(GPUMapMode.READ))));
  memory.destroy();
  for (const there of into) there.destroy();
  for (const [i, name] of (["k", "v"] as const).entries()) {
    const found = new Float32Array(copies[i]!.getMappedRange());
    const wrong = wanted[name].findIndex((x, at) => !(Math.abs(found[at]! - x) <= bound));
    if (wrong < 0) continue;
    throw new Error(
      `its driver computes wrong results: component ${wrong} of ${name}, made of latents in ${dtype}, was ` +
        `${found[wrong]}, not ${wanted[name][wrong]}`,
    );
  }
  for (const copy of copies) copy.destroy();
};
