/**
 * `deno task setup`: looks for the system libraries that annulus can use, installs the missing ones
 * from Debian's archive where it may, and otherwise prints the command that does. It never fails:
 * every part has a slower stand-in, and `annulus doctor` says which one is in use.
 *
 * Only built-in modules, so that it runs before anything was fetched.
 *
 * @module
 */
import { findLibrary } from "../runtime/library.ts";
import { findNatsServer, findProgram, hasVulkanDriver } from "./system.ts";

/** Something that packages bring. */
export interface Part {
  readonly what: string;
  readonly present: boolean;
  readonly packages: ReadonlyArray<string>;
  /** What happens when it stays away. */
  readonly without: string;
}

const parts = (): ReadonlyArray<Part> => [
  {
    what: "a Vulkan loader and driver",
    present: findLibrary("libvulkan.so.1") !== undefined && hasVulkanDriver(),
    packages: ["libvulkan1", "mesa-vulkan-drivers"],
    without: 'there is no "webgpu" device; ranks compute on "reference", which is slow',
  },
  {
    what: "nats-server",
    present: findNatsServer() !== undefined,
    packages: ["nats-server"],
    without: "rings stay inside one process (--link memory)",
  },
  {
    what: "OpenBLAS",
    present: findLibrary("libopenblas.so.0") !== undefined,
    packages: ["libopenblas0-pthread"],
    without: 'there is no "cpu" device; without a GPU ranks are several times slower',
  },
  {
    what: "openssl",
    present: findProgram("openssl") !== undefined,
    packages: ["openssl"],
    without: "`annulus certs` makes no certificates",
  },
];

const run = async (command: ReadonlyArray<string>): Promise<boolean> => {
  const [program, ...args] = command;
  try {
    const { success } = await new Deno.Command(program!, {
      args,
      env: { DEBIAN_FRONTEND: "noninteractive" },
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).output();
    return success;
  } catch {
    return false;
  }
};

/** The words to put before `apt-get`, or undefined where this user may not install. */
const privilege = async (): Promise<ReadonlyArray<string> | undefined> => {
  if (Deno.uid() === 0) return [];
  return await run(["sudo", "-n", "true"]) ? ["sudo", "-n"] : undefined;
};

/** Installs the parts that are missing, where that may be done. */
export const setup = async (parts: () => ReadonlyArray<Part>): Promise<void> => {
  // macOS and Windows bring their own WebGPU backends (Metal, D3D12) and no apt.
  if (Deno.build.os !== "linux") return;
  const missing = parts().filter((part) => !part.present);
  if (missing.length === 0) return;
  const packages = missing.flatMap((part) => part.packages);
  for (const part of missing) console.error(`setup: ${part.what} is missing`);
  const byHand = `sudo apt-get update && sudo apt-get install -y ${packages.join(" ")}`;
  const prefix = await privilege();
  if (prefix !== undefined && await run(["apt-get", "--version"])) {
    console.error(`setup: installing ${packages.join(" ")} from Debian, about a minute`);
    const apt = [...prefix, "apt-get", "-q"];
    await run([...apt, "update"]);
    await run([...apt, "install", "-y", "--no-install-recommends", ...packages]);
  }
  const still = parts().filter((part) => !part.present);
  for (const part of still) {
    console.error(`setup: cannot install ${part.what} here; without it ${part.without}`);
  }
  if (still.length > 0) console.error(`setup: to install by hand, run: ${byHand}`);
  else console.error("setup: done");
};

if (import.meta.main) await setup(parts);
