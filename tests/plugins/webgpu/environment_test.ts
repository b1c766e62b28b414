import assert from "node:assert/strict";
import { fromFileUrl } from "../../../cli/paths.ts";
import { findAdapter, isSoftware } from "../../../plugins/webgpu/adapter.ts";
import { annulus } from "../../support/cli.ts";

const code = `
import { findAdapter } from "./plugins/webgpu/adapter.ts";
const names = ["LP_NATIVE_VECTOR_WIDTH", "MESA_SHADER_CACHE_DIR"];
const adapter = await findAdapter();
const get = (name) =>
  Deno.permissions.querySync({ name: "env", variable: name }).state === "granted"
    ? Deno.env.get(name)
    : undefined;
const [width, cache] = names.map(get);
const maps = Deno.permissions.querySync({ name: "read", path: "/proc/self/maps" }).state === "granted"
  ? Deno.readTextFileSync("/proc/self/maps")
  : "";
const openGl = /libEGL|swrast_dri/.test(maps);
console.log(JSON.stringify({ adapter: adapter?.info.description, width, cache, openGl }));
Deno.exit(0);
`;

interface Found {
  readonly adapter?: string;
  readonly width?: string;
  readonly cache?: string;
  readonly openGl: boolean;
}

/** What a process finds, in which nobody else has prepared the driver. */
const inProcess = async (
  env: Readonly<Record<string, string>>,
  permissions: ReadonlyArray<string> = ["-A"],
): Promise<Found> => {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", ...permissions, "-"],
    cwd: fromFileUrl(new URL("../../../", import.meta.url)),
    clearEnv: true,
    env: { DENO_DIR: Deno.env.get("DENO_DIR") ?? `${Deno.env.get("HOME")}/.cache/deno`, ...env },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(code));
  await writer.close();
  const { stdout, stderr } = await child.output();
  const said = new TextDecoder().decode(stdout);
  assert.ok(said !== "", new TextDecoder().decode(stderr));
  return JSON.parse(said);
};

const adapter = await findAdapter();
const llvmpipe = adapter !== undefined && isSoftware(adapter.info) &&
  /llvmpipe/.test(adapter.info.description) && Deno.build.os === "linux";
const wide = llvmpipe && Deno.readTextFileSync("/proc/cpuinfo").includes("avx512f");
const onLlvmpipe = (name: string, fn: () => Promise<void>) =>
  Deno.test({ name: llvmpipe ? name : `${name} (not here: no llvmpipe)`, ignore: !llvmpipe, fn });

onLlvmpipe(
  "no OpenGL is loaded, which may be unloaded while a process ends, and end it with a signal",
  async () => {
    assert.equal((await inProcess({})).openGl, false);
    // With it the test would find it.
    assert.equal((await inProcess({ DENO_WEBGPU_BACKEND: "vulkan,gl" })).openGl, true);
  },
);

onLlvmpipe("the driver runs at the processor's width, with a shader cache for it", async () => {
  const { adapter, width, cache } = await inProcess({ HOME: "/tmp/nobody" });
  assert.equal(width, wide ? "512" : undefined);
  if (wide) assert.match(adapter!, /512 bits/);
  assert.match(
    cache!,
    RegExp(`^/tmp/nobody/.cache/annulus-mesa-${wide ? "512" : "own-width"}(-\\w+-\\w+)?$`),
  );
  const elsewhere = await inProcess({ HOME: "/tmp/nobody", XDG_CACHE_HOME: "/tmp/somewhere" });
  assert.match(elsewhere.cache!, /^\/tmp\/somewhere\/annulus-mesa-/);
});

onLlvmpipe("what the user has set stays, and another width has another cache", async () => {
  const narrow = await inProcess({ HOME: "/tmp/nobody", LP_NATIVE_VECTOR_WIDTH: "128" });
  assert.equal(narrow.width, "128");
  assert.match(narrow.adapter!, /128 bits/);
  assert.match(narrow.cache!, /annulus-mesa-128/);
  const own = await inProcess({ HOME: "/tmp/nobody", MESA_SHADER_CACHE_DIR: "/tmp/mine" });
  assert.equal(own.cache, "/tmp/mine");
  const none = await inProcess({ HOME: "/tmp/nobody", MESA_SHADER_CACHE_DISABLE: "true" });
  assert.equal(none.cache, undefined);
});

onLlvmpipe("without permissions the driver is left alone, and nothing prompts", async () => {
  const root = fromFileUrl(new URL("../../../", import.meta.url));
  const env = { HOME: "/tmp/nobody" };
  const bare = await inProcess(env, [`--allow-read=${root}`]);
  assert.ok(bare.adapter !== undefined);
  assert.equal(bare.cache, undefined);
  const node = await inProcess(env, [`--allow-read=${root}`, "--allow-env", "--allow-sys"]);
  assert.equal(node.width, undefined);
  assert.equal(node.cache, "/tmp/nobody/.cache/annulus-mesa-own-width");
});

onLlvmpipe(
  "a width at which the driver would end the process is no adapter, and said",
  async () => {
    for (const width of ["77", "0", "abc"]) {
      const { code, stdout } = await annulus(["doctor", "--json"], {
        env: { LP_NATIVE_VECTOR_WIDTH: width },
      });
      assert.equal(code, 1);
      const { ok, found, fix } = JSON.parse(stdout).findings
        .find(({ check }: { check: string }) => check === "device webgpu");
      assert.deepEqual([ok, found], [false, `"${width}"`]);
      assert.equal(fix, "provide LP_NATIVE_VECTOR_WIDTH of 128, 256, 512, 1024, or none");
    }
  },
);
