import { cpu } from "../../plugins/cpu.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { findLibrary } from "../../runtime/library.ts";
import { testRing } from "../contract/ring.ts";
import { testRingGradients } from "../contract/ring_gradients.ts";

const pair = {
  device: cpu.layer,
  links: memoryLinks(),
  ignore: findLibrary(libraryName) === undefined ? `there is no ${libraryName}` : undefined,
};
testRing("cpu and memory", pair);
testRingGradients("cpu and memory", pair);
