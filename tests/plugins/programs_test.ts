/** What decoders compute beside attention, on every device. */
import { cpu } from "../../plugins/cpu.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { reference } from "../../plugins/reference.ts";
import { webgpu } from "../../plugins/webgpu.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { findLibrary } from "../../runtime/library.ts";
import { testPrograms } from "../contract/programs.ts";

const noLibrary = findLibrary(libraryName) === undefined ? `there is no ${libraryName}` : undefined;
const noAdapter = await findAdapter() === undefined ? "there is no WebGPU adapter" : undefined;

testPrograms("reference", { device: reference.layer });
testPrograms("cpu", { device: cpu.layer, ignore: noLibrary });
testPrograms("webgpu", { device: webgpu.layer, ignore: noAdapter });
