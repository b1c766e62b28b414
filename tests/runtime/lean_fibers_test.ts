import assert from "node:assert/strict";
import { fromFileUrl } from "../../cli/paths.ts";

const grownBy = async (modules: "command" | "effect") => {
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--v8-flags=--expose-gc"],
      `--config=${fromFileUrl(new URL("../../deno.json", import.meta.url))}`,
      ...[fromFileUrl(new URL("../support/waits.ts", import.meta.url)), modules],
    ],
  }).output();
  const text = new TextDecoder().decode(stdout);
  assert.match(text, /^-?\d+\n$/, new TextDecoder().decode(stderr));
  return Number(text);
};

Deno.test("the command's fibers do not keep their waits, which Effect's do on Deno", async () => {
  const [command, effect] = [await grownBy("command"), await grownBy("effect")];
  // One that is mended by itself is to be taken out.
  assert.ok(effect > 20_000 * 100, `Effect's heap grew by ${effect} bytes`);
  assert.ok(command < effect / 10, `${command} bytes, and ${effect} of Effect alone`);
});
