/**
 * Where this machine keeps its shared libraries. Only built-in modules, so that it serves before anything was fetched.
 *
 * @module
 */

const folders = (): ReadonlyArray<string> => {
  const triplet = Deno.build.arch === "aarch64" ? "aarch64-linux-gnu" : "x86_64-linux-gnu";
  return [
    ...(Deno.env.get("LD_LIBRARY_PATH") ?? "").split(":").filter((folder) => folder !== ""),
    `/usr/lib/${triplet}`,
    `/lib/${triplet}`,
    "/usr/local/lib",
    "/usr/lib64",
    "/usr/lib",
  ];
};

/** Whether a file is there, and may be looked at. */
export const isFile = (path: string): boolean => {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
};

/** The path of a shared library such as `libvulkan.so.1`, or undefined. */
export const findLibrary = (name: string): string | undefined =>
  folders().map((folder) => `${folder}/${name}`).find(isFile);
