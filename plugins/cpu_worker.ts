/**
 * The Worker of the `cpu` device.
 *
 * @module
 */
import { serveDevice } from "../runtime/device_worker_guest.ts";
import { type CpuOptions, openCpu } from "./cpu/open.ts";

serveDevice((options) => openCpu(options as CpuOptions | undefined));
