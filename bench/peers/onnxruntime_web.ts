/**
 * onnxruntime-web, `onnxruntime_web.ts webgpu MultiHeadAttention`: on WebGPU, or as WASM on every core. With a third
 * argument, `fallback`, WASM may compute what WebGPU cannot.
 *
 * @module
 */
import { contend } from "../contender.ts";
import { type OnnxRuntime, openSession } from "./onnxruntime.ts";

const [provider, graph, fallback] = Deno.args as [string, string, string | undefined];
const name: string = provider === "webgpu" ? "onnxruntime-web/webgpu" : "onnxruntime-web";

await contend(async (job, inputs) => {
  if (job.kind !== "attention") throw new Error("it only attends");
  const ort: OnnxRuntime = await import(name);
  // With more, the WebGPU build starts a Worker from a blob, which Deno's loader refuses.
  const threads = provider === "webgpu" ? 1 : navigator.hardwareConcurrency;
  ort.env.wasm.numThreads = threads;
  const about = `onnxruntime-web ${ort.env.versions["web"]}, ${provider}, threads: ${threads}`;
  // Without this, an operator that WebGPU lacks runs as WASM and passes as WebGPU's.
  const extra = provider === "webgpu" && fallback === undefined
    ? { session: { disable_cpu_ep_fallback: "1" } }
    : {};
  return openSession(ort, about, graph, { executionProviders: [provider], extra }, job, inputs);
});
