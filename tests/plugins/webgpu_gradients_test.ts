import { webgpu } from "../../plugins/webgpu.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { testGradients } from "../contract/gradients.ts";

const adapter = await findAdapter();
testGradients(webgpu, adapter === undefined ? { ignore: "there is no WebGPU adapter" } : {});
