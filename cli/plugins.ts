/**
 * The plugins that a command knows: those that come with annulus, and those of files that its user named.
 *
 * @module
 */
import { Effect } from "effect";
import { definitions } from "../plugins/attention.ts";
import { loadPlugin } from "../plugins/plugin_file.ts";
import { FileInvalid } from "../runtime/errors.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";
import type { Definition } from "../runtime/variant.ts";
import { misuse } from "./command_line.ts";
import { devices } from "./devices.ts";

/** What is there to choose from. */
export interface KnownPlugins {
  readonly attentions: ReadonlyArray<Definition>;
  readonly devices: ReadonlyArray<DevicePlugin>;
}

/** Whether nobody could tell a plugin of this name from the others. */
export const isTaken = (name: string, others: ReadonlyArray<{ readonly name: string }>): boolean =>
  name === "auto" || others.some((other) => other.name === name);

/**
 * Loads the files; a name that is taken is refused, for nobody could tell which is meant, and so is the device that the
 * user named where there is none of that name.
 */
export const knownPlugins = Effect.fn("knownPlugins")(function* (
  files: ReadonlyArray<string>,
  device = "auto",
) {
  const known = { attentions: [...definitions], devices: [...devices] };
  for (const file of files) {
    const loaded = yield* loadPlugin(file);
    const { name } = loaded.kind === "device" ? loaded.device : loaded.definition;
    const others = loaded.kind === "device" ? known.devices : known.attentions;
    if (isTaken(name, others)) {
      return yield* new FileInvalid({
        attempted: "load a plugin from",
        file,
        needed: "it needs a name that no other has",
        found: `"${name}"`,
      });
    }
    if (loaded.kind === "device") known.devices.push(loaded.device);
    else known.attentions.push(loaded.definition);
  }
  const names = known.devices.map(({ name }) => `"${name}"`);
  if (device !== "auto" && !names.includes(`"${device}"`)) {
    const needed = `"auto" or one of ${names.join(", ")}`;
    return yield* misuse(`--device needs ${needed}: found "${device}"`);
  }
  return known as KnownPlugins;
});
