/**
 * Who takes part in the bench. Each is a command that speaks `contender.ts`'s protocol; one that does not install or
 * run here is left out with its reason.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import { devices } from "../cli/devices.ts";
import type { Job } from "./job.ts";

/** One way to compute one kind of job. */
export interface Contender {
  readonly name: string;
  /** Ratios are taken to the ceiling and to the best peer of the same field. */
  readonly field: "webgpu" | "cpu";
  readonly role: "ceiling" | "annulus" | "peer";
  /** Relative error beyond which its result is wrong. */
  readonly bound: Readonly<Record<Job["kind"], number>>;
  readonly computes: ReadonlyArray<Job["kind"]>;
  /** Operations of the largest job that need be waited for. */
  readonly mostFlops?: number;
  readonly command: ReadonlyArray<string>;
}

const script = (path: string, ...args: ReadonlyArray<string>): ReadonlyArray<string> => [
  Deno.execPath(),
  "run",
  "--quiet",
  "-A",
  fileURLToPath(new URL(path, import.meta.url)),
  ...args,
];

/** Float32 as libraries compute it, which is not exact to the last bits: anything beyond is a fault. */
const libraryBound = { matmul: 1e-5, attention: 1e-5, gradients: 1e-5 };
/** What annulus promises. */
const ownBound = { matmul: 1e-5, attention: 2e-6, gradients: 5e-6 };

const ceilings: ReadonlyArray<Contender> = [
  ...[1, 2].map((threads): Contender => ({
    name: `OpenBLAS sgemm, ${threads} ${threads === 1 ? "thread" : "threads"}`,
    field: "cpu",
    role: "ceiling",
    bound: libraryBound,
    computes: ["matmul"],
    command: script("./contenders/sgemm.ts", String(threads)),
  })),
  ...["textures", "subgroups"].map((version): Contender => ({
    name: `WGSL matmul, ${version}`,
    field: "webgpu",
    role: "ceiling",
    bound: libraryBound,
    computes: ["matmul"],
    command: script("./contenders/wgsl_matmul.ts", version),
  })),
];

/** annulus on a device, and on `webgpu` with one version of its kernel. */
const annulus = (device: string, kernel?: number): Contender => ({
  name: `annulus ${device}${kernel === undefined ? "" : `, kernel ${kernel}`}`,
  field: device === "webgpu" ? "webgpu" : "cpu",
  role: "annulus",
  bound: ownBound,
  computes: ["attention", "gradients"],
  ...(device === "reference" ? { mostFlops: 1e9 } : {}),
  command: script(
    "./contenders/annulus.ts",
    device,
    ...(kernel === undefined ? [] : [String(kernel)]),
  ),
});

const peer = (
  name: string,
  field: Contender["field"],
  command: ReadonlyArray<string>,
  computes: Contender["computes"] = ["attention"],
): Contender => ({
  name,
  field,
  role: "peer",
  bound: libraryBound,
  computes,
  command,
});

/** PyTorch belongs to Debian's Python, which is not always the first on the path. */
const torch = (form: string): Contender => {
  const program = fileURLToPath(new URL("./peers/torch_cpu.py", import.meta.url));
  const command = ["/usr/bin/python3", program, form];
  return peer(`PyTorch ${form}`, "cpu", command, ["attention", "gradients"]);
};

/** ONNX graphs that compute attention, named as `peers/onnx.ts` knows them. */
const graphs = ["MultiHeadAttention", "Attention-23", "MatMul-Softmax-MatMul"];

const peers: ReadonlyArray<Contender> = [
  ...graphs.map((graph) =>
    peer(`onnxruntime-node ${graph}`, "cpu", script("./peers/onnxruntime_node.ts", graph))
  ),
  ...graphs.map((graph) =>
    peer(
      `onnxruntime-web WASM ${graph}`,
      "cpu",
      script("./peers/onnxruntime_web.ts", "wasm", graph),
    )
  ),
  ...graphs.filter((graph) => graph !== "Attention-23").map((graph) =>
    peer(
      `onnxruntime-web WebGPU ${graph}`,
      "webgpu",
      script("./peers/onnxruntime_web.ts", "webgpu", graph),
    )
  ),
  // What a program gets that asks for WebGPU and for the standard's operator, of which WebGPU has none.
  peer(
    "onnxruntime-web WebGPU Attention-23, by WASM",
    "webgpu",
    script("./peers/onnxruntime_web.ts", "webgpu", "Attention-23", "fallback"),
  ),
  peer("jax-js WASM", "cpu", script("./peers/jax.ts", "wasm")),
  peer("jax-js WebGPU", "webgpu", script("./peers/jax.ts", "webgpu")),
  peer("tfjs WASM", "cpu", script("./peers/tfjs.ts", "wasm")),
  peer("tfjs WebGPU", "webgpu", script("./peers/tfjs.ts", "webgpu")),
  ...["sdpa", "matmul", "heads", "rows"].map(torch),
];

/** All of them: ceilings, annulus on its devices and with these versions of its WebGPU kernel, peers. */
export const contendersWith = (kernels: ReadonlyArray<number>): ReadonlyArray<Contender> => [
  ...ceilings,
  ...devices.map(({ name }) => annulus(name)),
  ...kernels.map((kernel) => annulus("webgpu", kernel)),
  ...peers,
];
