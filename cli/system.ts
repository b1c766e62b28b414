/**
 * What this machine has installed: a Vulkan driver, programs. Only built-in modules.
 *
 * @module
 */
import { isFile } from "../runtime/library.ts";

/** Whether a Vulkan driver manifest is where the loader looks for it. */
export const hasVulkanDriver = (): boolean => {
  const named = Deno.env.get("VK_DRIVER_FILES") ?? Deno.env.get("VK_ICD_FILENAMES");
  if (named !== undefined) return named.split(":").some(isFile);
  return ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"]
    .some((folder) => {
      try {
        return [...Deno.readDirSync(folder)].some((entry) => entry.name.endsWith(".json"));
      } catch {
        return false;
      }
    });
};

/** The path of a program on PATH, or in the folders where Debian puts daemons; or undefined. */
export const findProgram = (name: string): string | undefined =>
  [...(Deno.env.get("PATH") ?? "").split(":"), "/usr/sbin", "/usr/local/sbin"]
    .map((folder) => `${folder}/${name}`).find(isFile);

/** The path of the NATS server's program, or undefined. */
export const findNatsServer = (): string | undefined => findProgram("nats-server");
