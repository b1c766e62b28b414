/**
 * What the process tells WebGPU and a software Vulkan driver before it opens an adapter. Deno looks for OpenGL beside
 * Vulkan, which nothing here could compute with; Mesa's driver for it is unloaded while the process ends, which then ends
 * with a signal now and then. Mesa's llvmpipe reads its vector width
 * from the environment, once, and takes half of what a processor with AVX-512 has; and its cache of compiled shaders
 * does not know the width, so that programs of one width would run, and compute wrongly, at another.
 *
 * @module
 */

const backend = "DENO_WEBGPU_BACKEND";
const width = "LP_NATIVE_VECTOR_WIDTH";
const cache = "MESA_SHADER_CACHE_DIR";
/** Each says that the user has seen to the cache. */
const cacheNames = [cache, "MESA_SHADER_CACHE_DISABLE", "MESA_GLSL_CACHE_DISABLE"];

const mayUse = (name: string): boolean =>
  Deno.permissions.querySync({ name: "env", variable: name }).state === "granted";

/** The value of a variable that may be read and is set to something. */
const valueOf = (name: string): string | undefined =>
  mayUse(name) ? Deno.env.get(name) || undefined : undefined;

/** A file's content where it may be read, and is there: nothing here may prompt or fail. */
const contentOf = (path: string): string | undefined => {
  if (Deno.permissions.querySync({ name: "read", path }).state !== "granted") return undefined;
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined;
  }
};

/** What tells one build of the driver from another: size and date of its library. */
const driverStamp = (): string | undefined => {
  const manifest = `/usr/share/vulkan/icd.d/lvp_icd.${Deno.build.arch}.json`;
  try {
    const { ICD: { library_path: path } } = JSON.parse(contentOf(manifest) ?? "");
    const { size, mtime } = Deno.statSync(path);
    return `${size.toString(36)}-${mtime!.getTime().toString(36)}`;
  } catch {
    return undefined; // another distribution, or no permission; Mesa's own key knows its build as well
  }
};

/** The widths at which llvmpipe runs; at others the process ends with a signal. */
const widths = ["128", "256", "512", "1024"];

/** What the driver must not be opened with: a width that ends the process, as a sentence's two halves. */
export const unusableWidth = ():
  | { readonly needed: string; readonly found: string }
  | undefined => {
  const set = valueOf(width);
  if (set === undefined || widths.includes(set)) return undefined;
  return { needed: `${width} of ${widths.join(", ")}, or none`, found: `"${set}"` };
};

/** The folder in which a user's programs keep what they can make again. */
export const cacheHome = (): string | undefined => {
  const home = valueOf("HOME");
  return valueOf("XDG_CACHE_HOME") ?? (home === undefined ? undefined : `${home}/.cache`);
};

/**
 * Sets Vulkan, the vector width and a shader cache of its own per width and driver, where the user has not set them. Does what
 * its permissions allow, the rest is as the driver wants. To be called before the first adapter is opened in a process,
 * or before another process starts, which inherits it; harmless when repeated.
 */
export const prepareDriver = (): void => {
  if (Deno.build.os !== "linux") return;
  if (mayUse(backend) && Deno.env.get(backend) === undefined) Deno.env.set(backend, "vulkan");
  if (mayUse(width) && Deno.env.get(width) === undefined) {
    if (contentOf("/proc/cpuinfo")?.includes("avx512f") === true) Deno.env.set(width, "512");
  }
  if (!cacheNames.every((name) => mayUse(name) && Deno.env.get(name) === undefined)) return;
  const home = cacheHome();
  if (home === undefined) return;
  // Mesa makes the folder itself, and only the last part of its path.
  const parts = ["annulus-mesa", valueOf(width) ?? "own-width", driverStamp()];
  Deno.env.set(cache, `${home}/${parts.filter((part) => part !== undefined).join("-")}`);
};
