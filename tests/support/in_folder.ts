/**
 * Tests that have a folder of their own, which is gone afterwards.
 *
 * @module
 */
import { scratch } from "./cli.ts";

/** @param needed What is not here, without which the test cannot run. */
export const inFolder = (
  name: string,
  test: (folder: string) => Promise<void>,
  needed?: string,
): void =>
  Deno.test({
    name: needed === undefined ? name : `${name} (needs ${needed})`,
    ignore: needed !== undefined,
    fn: async () => {
      await using folder = await scratch();
      await test(folder.path);
    },
  });
