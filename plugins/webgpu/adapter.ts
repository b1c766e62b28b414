/**
 * Finding an adapter, and telling a GPU from a program that imitates one.
 *
 * @module
 */

import { prepareDriver, unusableWidth } from "./environment.ts";

/** What an adapter says of itself; Deno gives more than the standard's four names. */
export type AdapterInfo =
  & Pick<GPUAdapterInfo, "vendor" | "architecture" | "device" | "description">
  & { readonly isFallbackAdapter?: boolean };

const cpuNames = /llvmpipe|lavapipe|softpipe|swiftshader|basic render|\bwarp\b|\bcpu\b|software/i;

/** Whether the adapter computes on the CPU. */
export const isSoftware = (info: AdapterInfo): boolean =>
  info.isFallbackAdapter === true ||
  cpuNames.test([info.vendor, info.architecture, info.device, info.description].join(" "));

/** One line for people: what drives the adapter. */
export const describe = (info: AdapterInfo): string => {
  const name = info.description || [info.vendor, info.architecture, info.device]
    .filter((part) => part !== "").join(" ") ||
    "an adapter without a name";
  return `WebGPU on ${name}`;
};

/** Looks for the best adapter, with the driver told how to run; undefined where there is none that can be opened. Never fails. */
export const findAdapter = async (): Promise<GPUAdapter | undefined> => {
  prepareDriver();
  if (unusableWidth() !== undefined) return undefined;
  // Without this folder the drivers' loader prints an error on hosts that have no screen.
  const name = "XDG_RUNTIME_DIR";
  const quiet = Deno.build.os === "linux" &&
    Deno.permissions.querySync({ name: "env", variable: name }).state === "granted" &&
    Deno.env.get(name) === undefined;
  if (quiet) Deno.env.set(name, "/tmp");
  try {
    const options = { powerPreference: "high-performance" } as const;
    return await navigator.gpu.requestAdapter(options) ?? undefined;
  } catch {
    return undefined; // as where the loader itself is broken
  } finally {
    if (quiet) Deno.env.delete(name);
  }
};
