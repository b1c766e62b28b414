/**
 * The ceiling of WebGPU: the best matrix product found for adapters that compute on the CPU, in two versions,
 * `wgsl_matmul.ts textures` and `wgsl_matmul.ts subgroups`. Both keep a tile of c in registers and read a and b from
 * storage textures, the one kind of memory from which such adapters load for all lanes at once. A lane owns every 16th
 * row of its workgroup's tile, and 32 columns.
 *
 * `textures`: all lanes read the same texels of b; 8 rows a lane.
 *
 * `subgroups`: each lane reads a different texel of b and passes it on to the others, so that b is read once for all;
 * 4 rows a lane.
 *
 * On llvmpipe the order of the innermost loops decides: with eight products added to one quad of c before the next
 * quad is touched, c stays in registers, and the rate is 100 GFLOP/s instead of 25.
 *
 * @module
 */
import { describe, findAdapter } from "../../plugins/webgpu/adapter.ts";
import { Gpu } from "../../plugins/webgpu/gpu.ts";
import { contend, type Contest, timed } from "../contender.ts";

/** Products added to a quad of c in one go, and quads of c that a lane owns in each of its rows. */
const [depth, quads] = [8, 8];

/** A program, what it needs, and rows of c that a lane owns. */
interface Version {
  readonly rows: number;
  readonly features: ReadonlyArray<GPUFeatureName>;
  /** Loads what `quadOfB` gives afterwards, for this many lanes. */
  readonly loadB: (lanes: number) => string;
  /** Quad `j` of row `k` of the tile of b. */
  readonly quadOfB: (k: number, j: number, lanes: number) => string;
}

const times = (count: number, line: (i: number) => string): string =>
  Array.from({ length: count }, (_, i) => line(i)).join("\n");

const versions: Readonly<Record<string, Version>> = {
  textures: {
    rows: 8,
    features: [],
    loadB: () => "",
    quadOfB: (k, j) => `textureLoad(b, vec2i(column + ${j}, k + ${k}))`,
  },
  subgroups: {
    rows: 4,
    features: ["subgroups" as GPUFeatureName],
    loadB: (lanes) =>
      times(depth * quads / lanes, (n) => `
        let at${n} = lane + ${n * lanes};
        let b${n} = textureLoad(b, vec2i(column + at${n} % ${quads}, k + at${n} / ${quads}));`),
    quadOfB: (k, j, lanes) => {
      const at = k * quads + j;
      return `subgroupBroadcast(b${Math.floor(at / lanes)}, ${at % lanes}u)`;
    },
  },
};

const programOf = ({ rows, loadB, quadOfB }: Version, size: number, lanes: number): string => `
@group(0) @binding(0) var a: texture_storage_2d<rgba32float, read>;
@group(0) @binding(1) var b: texture_storage_2d<rgba32float, read>;
@group(0) @binding(2) var<storage, read_write> c: array<vec4f>;

@compute @workgroup_size(${lanes}, 1, 1)
fn multiply(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) index: u32) {
  let lane = i32(index);
  let column = i32(group.x) * ${quads};
  let row = i32(group.y) * ${rows * lanes} + lane;
  ${times(rows, (i) => times(quads, (j) => `var c${i}_${j} = vec4f();`))}
  for (var k = 0; k < ${size}; k += ${depth}) {
    ${loadB(lanes)}
    ${
  times(depth / 4, (n) =>
    times(rows, (i) =>
      `let a${n}_${i} = textureLoad(a, vec2i(k / 4 + ${n}, row + ${i * lanes}));`))
}
    ${
  times(quads, (j) =>
    times(depth, (k) => `
      {
        let quad = ${quadOfB(k, j, lanes)};
        ${times(rows, (i) => `c${i}_${j} += a${Math.floor(k / 4)}_${i}[${k % 4}] * quad;`)}
      }`))
}
  }
  ${
  times(rows, (i) =>
    times(quads, (j) =>
      `c[(row + ${i * lanes}) * ${size / 4} + column + ${j}] = c${i}_${j};`))
}
}`;

/** Texels added to a texture's rows: with rows of a whole power of two, a column falls into one set of a core's cache. */
const spare = 4;

/** Products per sample: one wait for a device costs Deno 10 ms, which is no part of the ceiling. */
const atOnce = 8;

/** Lanes of a workgroup: as many as compute at once. */
const lanesOf = (info: GPUAdapterInfo): number => info.subgroupMaxSize || 16;

await contend(async (job, { a, b }): Promise<Contest> => {
  if (job.kind !== "matmul") throw new Error("it only multiplies matrices");
  const adapter = await findAdapter();
  if (adapter === undefined) throw new Error("no adapter: `deno task setup` installs a driver");
  const { size } = job;
  const lanes = lanesOf(adapter.info);
  const version = versions[Deno.args[0]!]!;
  const [tall, wide] = [version.rows * lanes, quads * 4];
  if (size % tall !== 0 || size % wide !== 0) {
    throw new Error(`it multiplies matrices whose size is a multiple of ${tall} and of ${wide}`);
  }
  const device = await adapter.requestDevice({ requiredFeatures: [...version.features] });
  const gpu = new Gpu(device);
  const texture = (values: Float32Array) => {
    const usage = GPUTextureUsage.STORAGE_BINDING | GPUTextureUsage.COPY_DST;
    const texture = device.createTexture({
      size: [size / 4 + spare, size],
      format: "rgba32float",
      usage,
    });
    device.queue.writeTexture(
      { texture },
      new Float32Array(values),
      { bytesPerRow: size * 4 },
      [size / 4, size],
    );
    return texture.createView();
  };
  const buffer = (usage: number) => device.createBuffer({ size: size * size * 4, usage });
  const c = buffer(GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC);
  const home = buffer(GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
  const pipeline = device.createComputePipeline({
    layout: "auto",
    compute: {
      module: device.createShaderModule({ code: programOf(version, size, lanes) }),
      entryPoint: "multiply",
    },
  });
  const resources = [texture(a!), texture(b!), { buffer: c }];
  const group = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: resources.map((resource, binding) => ({ binding, resource })),
  });
  const multiply = () =>
    gpu.run(() => {
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      for (let i = 0; i < atOnce; i++) pass.dispatchWorkgroups(size / wide, size / tall);
      pass.end();
      device.queue.submit([encoder.finish()]);
    });
  return {
    about: `${describe(adapter.info)}, ${lanes} lanes`,
    sample: async () => ({ seconds: (await timed(multiply))[1] / atOnce }),
    result: async () => {
      await gpu.run(() => {
        const encoder = device.createCommandEncoder();
        encoder.copyBufferToBuffer(c, 0, home, 0, size * size * 4);
        device.queue.submit([encoder.finish()]);
      }, () => home.mapAsync(GPUMapMode.READ));
      return { c: new Float32Array(home.getMappedRange().slice(0)) };
    },
  };
});
