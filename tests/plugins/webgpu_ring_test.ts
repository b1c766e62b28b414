import { memoryLinks } from "../../plugins/memory.ts";
import { webgpu } from "../../plugins/webgpu.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { testRing } from "../contract/ring.ts";

testRing("webgpu and memory", {
  device: webgpu.layer,
  links: memoryLinks(),
  ignore: await findAdapter() === undefined ? "there is no WebGPU adapter" : undefined,
});
