import { memoryLinks } from "../../plugins/memory.ts";
import { webgpu } from "../../plugins/webgpu.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { testRing } from "../contract/ring.ts";
import { testRingGradients } from "../contract/ring_gradients.ts";

const pair = {
  device: webgpu.layer,
  links: memoryLinks(),
  ignore: await findAdapter() === undefined ? "there is no WebGPU adapter" : undefined,
};
testRing("webgpu and memory", pair);
testRingGradients("webgpu and memory", pair);
