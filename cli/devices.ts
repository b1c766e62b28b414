/**
 * The devices that the command knows, best first.
 *
 * @module
 */
import { cpu } from "../plugins/cpu.ts";
import { reference } from "../plugins/reference.ts";
import { webgpu } from "../plugins/webgpu.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";

/** Every device plugin of this command. */
export const devices: ReadonlyArray<DevicePlugin> = [webgpu, cpu, reference];
