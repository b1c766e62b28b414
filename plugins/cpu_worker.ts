/**
 * The Worker of the `cpu` device.
 *
 * @module
 */
import { serveDevice } from "../runtime/device_worker_guest.ts";
import { openCpu, type WorkerOptions } from "./cpu/open.ts";

serveDevice((options) => openCpu(options as WorkerOptions));
