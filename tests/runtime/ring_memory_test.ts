import { memoryLinks } from "../../plugins/memory.ts";
import { reference } from "../../plugins/reference.ts";
import { testRing } from "../contract/ring.ts";

testRing("reference and memory", { device: reference.layer, links: memoryLinks() });
