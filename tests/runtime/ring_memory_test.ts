import { memoryLinks } from "../../plugins/memory.ts";
import { reference } from "../../plugins/reference.ts";
import { testRing } from "../contract/ring.ts";
import { testRingGradients } from "../contract/ring_gradients.ts";

const pair = { device: reference.layer, links: memoryLinks() };
testRing("reference and memory", pair);
testRingGradients("reference and memory", pair);
