/** Every name that `mod.ts` exports says what it is, and every module what it is for. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";

interface Documented {
  readonly jsDoc?: { readonly doc?: string };
}
interface Module {
  readonly module_doc?: { readonly doc?: string };
  readonly symbols: ReadonlyArray<
    { readonly name: string; readonly declarations: ReadonlyArray<Documented> }
  >;
}

const root = fileURLToPath(new URL("..", import.meta.url));

Deno.test("every exported name is documented", async () => {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["doc", "--json", "mod.ts"],
    cwd: root,
  }).output();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
  const [module]: ReadonlyArray<Module> = Object.values(
    JSON.parse(new TextDecoder().decode(stdout)).nodes,
  );
  assert.ok(module!.symbols.length > 40, "the public surface was not read");
  const silent = module!.symbols.filter(({ declarations }) =>
    declarations.every(({ jsDoc }) => (jsDoc?.doc ?? "").trim() === "")
  );
  assert.deepEqual(silent.map(({ name }) => name), []);
});

Deno.test("every module says what it is for", () => {
  const folders = [
    ...["runtime", "kernels", "plugins", "cli", "examples"],
    ...["bench", "bench/contenders", "bench/peers"],
  ];
  const paths = folders.flatMap((folder) =>
    [...Deno.readDirSync(`${root}${folder}`)]
      .filter(({ name }) => name.endsWith(".ts"))
      .map(({ name }) => `${folder}/${name}`)
  );
  for (const path of paths) {
    const text = Deno.readTextFileSync(`${root}${path}`);
    assert.match(text, /^\/\*\*\n(?: \*.*\n)*? \* @module\n \*\//, `${path} has no module comment`);
  }
});
