import { cpu } from "../../plugins/cpu.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { reference } from "../../plugins/reference.ts";
import { webgpu, webgpuWith } from "../../plugins/webgpu.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { findLibrary } from "../../runtime/library.ts";
import { testVariants } from "../contract/variants.ts";

const links = memoryLinks();
const missing = findLibrary(libraryName) === undefined ? `there is no ${libraryName}` : undefined;
const noAdapter = await findAdapter() === undefined ? "there is no WebGPU adapter" : undefined;

testVariants("reference and memory", { device: reference.layer, links });
testVariants("cpu and memory", { device: cpu.layer, links, ignore: missing });
testVariants("webgpu and memory", { device: webgpu.layer, links, ignore: noAdapter });
// What GPUs take, which compiles long elsewhere: an attention with scores, and one that asks about pairs.
testVariants(
  "webgpu in tiles and memory",
  { device: webgpuWith({ kernel: "tiles" }).layer, links, ignore: noAdapter },
  (name) => name === "alibi & causal" || name.endsWith("a table of blocks"),
);
