/**
 * Disks that are soon full: file systems in memory, which take the right to mount them.
 *
 * @module
 */
import assert from "node:assert/strict";
import { scratch } from "./cli.ts";

const run = async (command: string, ...args: ReadonlyArray<string>): Promise<boolean> =>
  (await new Deno.Command(command, { args: [...args], stderr: "null" }).output()).success;

const mount = (folder: string, kibibytes: number) =>
  run("mount", "-t", "tmpfs", "-o", `size=${kibibytes}k`, "none", folder);

/** What is missing for it, if anything. */
export const noSmallDisk = Deno.uid() === 0 && await (async () => {
    await using folder = await scratch();
    return await mount(folder.path, 4) && await run("umount", folder.path);
  })()
  ? undefined
  : "the right to mount a file system";

/** Gives it another size. */
export const resize = async (folder: string, kibibytes: number): Promise<void> =>
  assert.ok(await run("mount", "-o", `remount,size=${kibibytes}k`, folder));

/** A disk of so many KiB at a folder, until it is disposed of. */
export const smallDisk = async (folder: string, kibibytes: number): Promise<AsyncDisposable> => {
  await Deno.mkdir(folder, { recursive: true });
  assert.ok(await mount(folder, kibibytes));
  return {
    [Symbol.asyncDispose]: async () => {
      assert.ok(await run("umount", folder));
    },
  };
};
