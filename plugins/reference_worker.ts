/**
 * The Worker of the `reference` device.
 *
 * @module
 */
import { referenceKernel } from "../kernels/reference.ts";
import { serveDevice } from "../runtime/device_worker_guest.ts";

serveDevice(() => Promise.resolve(referenceKernel()));
