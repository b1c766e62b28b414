import { cpu } from "../../plugins/cpu.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { reference } from "../../plugins/reference.ts";
import { webgpu, webgpuWith } from "../../plugins/webgpu.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { findLibrary } from "../../runtime/library.ts";
import { latentCases, testLatents } from "../contract/latents.ts";

const links = memoryLinks();
const missing = findLibrary(libraryName) === undefined ? `there is no ${libraryName}` : undefined;
const noAdapter = await findAdapter() === undefined ? "there is no WebGPU adapter" : undefined;

testLatents("reference and memory", { device: reference.layer, links });
testLatents("cpu and memory", { device: cpu.layer, links, ignore: missing });
testLatents("webgpu and memory", { device: webgpu.layer, links, ignore: noAdapter });
// As GPUs have them; the kernel of GPUs itself takes a minute to compile here.
testLatents("webgpu, keys in buffers, and memory", {
  device: webgpuWith({ kernel: "rows" }).layer,
  links,
  ignore: noAdapter,
});
// A block's keys of all heads exceed such a buffer, and are made in pieces.
testLatents("webgpu, small buffers, and memory", {
  device: webgpuWith({ kernel: "rows", largestBuffer: 16_384 }).layer,
  links,
  ignore: noAdapter,
}, latentCases.slice(0, 1));
