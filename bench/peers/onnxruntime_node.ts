/**
 * onnxruntime-node, on every core: `onnxruntime_node.ts MultiHeadAttention`.
 *
 * @module
 */
import { contend } from "../contender.ts";
import { type OnnxRuntime, openSession } from "./onnxruntime.ts";

const name: string = "onnxruntime-node";

await contend(async (job, inputs) => {
  if (job.kind !== "attention") throw new Error("it only attends");
  const ort: OnnxRuntime = await import(name);
  const threads = navigator.hardwareConcurrency;
  const about = `onnxruntime-node ${ort.env.versions["node"]}, threads: ${threads}`;
  return openSession(ort, about, Deno.args[0]!, { intraOpNumThreads: threads }, job, inputs);
});
