import { cpu } from "../../plugins/cpu.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { findLibrary } from "../../runtime/library.ts";
import { testRing } from "../contract/ring.ts";

testRing("cpu and memory", {
  device: cpu.layer,
  links: memoryLinks(),
  ignore: findLibrary(libraryName) === undefined ? `there is no ${libraryName}` : undefined,
});
