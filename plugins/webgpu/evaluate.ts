/**
 * Asks the WGSL forms of an attention about pairs one by one, for those who want to compare them with other forms.
 *
 * @module
 */
import type { Attention } from "../../runtime/attention.ts";
import { findAdapter } from "./adapter.ts";
import { Gpu } from "./gpu.ts";
import { pairLayout, PairMemory } from "./pairs.ts";

/** A pair and its score. */
export interface Asked {
  readonly b: number;
  readonly h: number;
  readonly q: number;
  readonly k: number;
  readonly s: number;
}

/** What the forms say of each pair; a form that there is not says nothing. */
export interface Answers {
  readonly mask?: ReadonlyArray<boolean>;
  readonly score?: Float32Array;
  readonly slope?: Float32Array;
}

const workgroup = 64;

/** The answers of the best adapter; undefined where there is none. Rejects where a form does not compile. */
export const evaluatePairs = async (
  attention: Attention,
  asked: ReadonlyArray<Asked>,
): Promise<Answers | undefined> => {
  const adapter = await findAdapter();
  if (adapter === undefined) return undefined;
  const { maxStorageBuffersPerShaderStage } = adapter.limits;
  const device = await adapter.requestDevice({
    requiredLimits: { maxStorageBuffersPerShaderStage },
  });
  try {
    return await evaluateOn(new Gpu(device), attention, asked);
  } finally {
    device.destroy();
    await device.lost;
  }
};

const evaluateOn = async (
  gpu: Gpu,
  attention: Attention,
  asked: ReadonlyArray<Asked>,
): Promise<Answers> => {
  const { device } = gpu;
  const memory = await PairMemory.place(gpu, attention);
  const { text, masked, scored, sloped } = memory.program;
  const pair = "p.x, p.y, p.z, p.w";
  const code = `${text}
@group(0) @binding(0) var<storage, read> pairs: array<vec4i>;
@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read_write> answers: array<vec4f>;
@compute @workgroup_size(${workgroup})
fn evaluate(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * ${workgroup}u;
  if (i >= arrayLength(&pairs)) { return; }
  let p = pairs[i];
  answers[i] = vec4f(
    ${masked ? `select(0.0, 1.0, pairSees(${pair}))` : "1.0"},
    ${scored ? `pairScore(scores[i], ${pair})` : "scores[i]"},
    ${sloped ? `pairSlope(scores[i], ${pair})` : "1.0"},
    0.0,
  );
}`;
  const { STORAGE, COPY_DST, COPY_SRC, MAP_READ } = GPUBufferUsage;
  const size = asked.length * 16;
  const answers = await gpu.run(() => {
    const buffer = (content: Int32Array<ArrayBuffer> | Float32Array<ArrayBuffer>) => {
      const made = device.createBuffer({ size: content.byteLength, usage: STORAGE | COPY_DST });
      device.queue.writeBuffer(made, 0, content);
      return made;
    };
    const pairs = buffer(Int32Array.from(asked.flatMap(({ b, h, q, k }) => [b, h, q, k])));
    const scores = buffer(Float32Array.from(asked, ({ s }) => s));
    const answers = device.createBuffer({ size, usage: STORAGE | COPY_SRC });
    const copy = device.createBuffer({ size, usage: MAP_READ | COPY_DST });
    const storage = (binding: number, type: GPUBufferBindingType) => ({
      binding,
      visibility: GPUShaderStage.COMPUTE,
      buffer: { type },
    });
    const layout = device.createBindGroupLayout({
      entries: [
        storage(0, "read-only-storage"),
        storage(1, "read-only-storage"),
        storage(2, "storage"),
        ...pairLayout(memory.program),
      ],
    });
    const pipeline = device.createComputePipeline({
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module: device.createShaderModule({ code }), entryPoint: "evaluate" },
    });
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    const entries = [pairs, scores, answers].map((buffer, binding) => ({
      binding,
      resource: { buffer },
    }));
    pass.setBindGroup(
      0,
      device.createBindGroup({ layout, entries: [...entries, ...memory.entries] }),
    );
    const groups = Math.ceil(asked.length / workgroup);
    const across = Math.min(groups, 65535);
    pass.dispatchWorkgroups(across, Math.ceil(groups / across));
    pass.end();
    encoder.copyBufferToBuffer(answers, 0, copy, 0, size);
    device.queue.submit([encoder.finish()]);
    return copy;
  }, (copy) => copy.mapAsync(GPUMapMode.READ));
  const values = new Float32Array(answers.getMappedRange());
  const column = (c: number) => Float32Array.from(asked, (_, i) => values[4 * i + c]!);
  return {
    ...(masked ? { mask: Array.from(column(0), (x) => x === 1) } : {}),
    ...(scored ? { score: column(1) } : {}),
    ...(sloped ? { slope: column(2) } : {}),
  };
};
