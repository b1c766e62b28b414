/**
 * Whether a device has subgroups that can be relied on. A driver may say one size and run another: Mesa's shader cache
 * does not know for which vector width a program was compiled.
 *
 * @module
 */
import type { Gpu } from "./gpu.ts";

/** What a program must know to use subgroups. */
export interface Subgroups {
  /** Invocations of a subgroup. */
  readonly size: number;
  /** What a program begins with: the standard wants a directive that Deno does not know yet. */
  readonly directive: string;
}

/** Each invocation of one workgroup writes how many take part in its subgroup, and which of them it is. */
export const countSubgroup = (lanes: number): string => `
@group(0) @binding(0) var<storage, read_write> found: array<vec2u>;
@compute @workgroup_size(${lanes})
fn count(
  @builtin(local_invocation_index) lane: u32,
  @builtin(subgroup_invocation_id) place: u32,
) {
  found[lane] = vec2u(subgroupAdd(1u), place);
}`;

/**
 * Counts the invocations of a workgroup of `size` that run as one subgroup, by each of the directives. Throws where
 * neither compiles, or where they are not all of them.
 *
 * @param text The program, for those who want to see a wrong one refused.
 */
export const checkSubgroups = async (
  gpu: Gpu,
  size: number,
  text = countSubgroup,
): Promise<Subgroups> => {
  // The halves of a workgroup exchange what they have, and its first four what they know of four rows.
  if (size < 4 || (size & (size - 1)) !== 0) {
    throw new Error(`a workgroup of ${size}, where a power of two from 4 on is needed`);
  }
  let refusal: unknown;
  for (const directive of ["", "enable subgroups;\n"]) {
    let found: Uint32Array;
    try {
      found = await run(gpu, directive + text(size), size);
    } catch (cause) {
      refusal ??= cause;
      continue;
    }
    const wrong = found.findIndex((x, i) => x !== (i % 2 === 0 ? size : i >> 1));
    if (wrong < 0) return { size, directive };
    throw new Error(
      `a workgroup of ${size} is no subgroup of ${size}: invocation ${wrong >> 1} found ` +
        (wrong % 2 === 0 ? `${found[wrong]} in its own` : `itself in place ${found[wrong]}`),
    );
  }
  throw refusal;
};

const run = async (gpu: Gpu, code: string, size: number): Promise<Uint32Array> => {
  const { device } = gpu;
  const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
  const bytes = 8 * size;
  const buffers: Array<GPUBuffer> = [];
  const buffer = (usage: number) => {
    const made = device.createBuffer({ label: "subgroups", size: bytes, usage });
    buffers.push(made);
    return made;
  };
  try {
    const copy = await gpu.run(() => {
      const found = buffer(STORAGE | COPY_SRC), copy = buffer(COPY_DST | MAP_READ);
      const pipeline = device.createComputePipeline({
        layout: "auto",
        compute: { module: device.createShaderModule({ code }), entryPoint: "count" },
      });
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      const entries = [{ binding: 0, resource: { buffer: found } }];
      const layout = pipeline.getBindGroupLayout(0);
      pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
      pass.dispatchWorkgroups(1);
      pass.end();
      encoder.copyBufferToBuffer(found, 0, copy, 0, bytes);
      device.queue.submit([encoder.finish()]);
      return copy;
    }, (copy) => copy.mapAsync(GPUMapMode.READ));
    return new Uint32Array(copy.getMappedRange().slice(0));
  } finally {
    for (const made of buffers) made.destroy();
  }
};
