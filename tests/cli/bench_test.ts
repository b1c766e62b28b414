/**
 * `annulus bench --kernel` measures and keeps the best, which `doctor` and every device then know of.
 *
 * @module
 */
import assert from "node:assert/strict";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { annulus } from "../support/cli.ts";

const adapter = await findAdapter();
const denoFolder = `${Deno.env.get("HOME")}/.cache/deno`;
const suffix = adapter === undefined ? " (not here: there is no WebGPU adapter)" : "";

interface Row {
  readonly kernel: string;
  readonly full: number;
  readonly causal: number;
}

Deno.test({
  name: `bench --kernel measures, prints and keeps the best${suffix}`,
  ignore: adapter === undefined,
  fn: async () => {
    const folder = await Deno.makeTempDir({ prefix: "annulus-bench-" });
    const env = { XDG_CACHE_HOME: folder, DENO_DIR: Deno.env.get("DENO_DIR") ?? denoFolder };
    try {
      const nothing = await annulus(["bench", "--kept"], { env });
      assert.equal(nothing.code, 0);
      assert.match(nothing.stdout, /^nothing is kept in .*annulus-webgpu-tuning.json\n$/);
      const args = ["bench", "--kernel", "--head-dim", "4", "--tokens", "64", "--json"];
      const { code, stdout, stderr } = await annulus(args, { env });
      assert.equal(code, 0, stderr);
      const said = JSON.parse(stdout);
      const kernels: ReadonlyArray<Row> = said.kernels;
      assert.ok(kernels.length > 5);
      assert.ok(kernels.every(({ full, causal }) => full > 0 && causal > 0));
      assert.ok(kernels.some(({ kernel }) => kernel === said.best.kernel));
      // The fastest first, and the best about as fast.
      const speed = ({ full, causal }: Row) => 1.5 / (1 / full + 0.5 / causal);
      const speeds = kernels.map(speed);
      assert.deepEqual(speeds, speeds.toSorted((a, b) => b - a));
      assert.ok(speed(said.best) >= 0.95 * speeds[0]!);
      assert.equal(said.kept, `${folder}/annulus-webgpu-tuning.json`);
      const kept = JSON.parse(await Deno.readTextFile(said.kept));
      assert.equal(kept.adapters[Object.keys(kept.adapters)[0]!]["f32 4"].kernel, said.best.kernel);
      const shown = await annulus(["bench", "--kept"], { env });
      const { rows, keys, lanes } = said.best;
      const line = `f32 4 +${said.best.kernel} +${rows} +${keys} +${lanes} .*${said.adapter}`;
      assert.match(shown.stdout, new RegExp(line.replaceAll(/[()]/g, ".")));

      await Deno.writeTextFile(said.kept, "nonsense");
      const refused = await annulus(["bench", "--kept"], { env });
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /Cannot show what was measured in ".*": it needs what annulus/);
      const doctor = await annulus(["doctor", "--json"], { env });
      const device = JSON.parse(doctor.stdout).findings
        .find(({ check }: { check: string }) => check === "device webgpu");
      assert.match(device.found, /; the tuning in .*annulus-webgpu-tuning.json is not used: /);
      assert.match(doctor.stderr, /^annulus: webgpu: the tuning in .* is not used: /);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});

Deno.test({
  name: `bench --kernel shows what it measured where that cannot be kept${suffix}`,
  ignore: adapter === undefined,
  fn: async () => {
    const file = await Deno.makeTempFile({ prefix: "annulus-bench-" });
    const env = { XDG_CACHE_HOME: file, DENO_DIR: Deno.env.get("DENO_DIR") ?? denoFolder };
    try {
      const args = ["bench", "--kernel", "--head-dim", "4", "--tokens", "64", "--json"];
      const { code, stdout, stderr } = await annulus(args, { env });
      assert.equal(code, 1, stderr);
      const said = JSON.parse(stdout);
      assert.ok(said.kernels.length > 5);
      assert.equal(said.kept, undefined);
      assert.match(
        stderr,
        /annulus: Cannot keep what was measured in ".*": it needs a file that can be written: found /,
      );
    } finally {
      await Deno.remove(file);
    }
  },
});

Deno.test("bench wants to know what to measure, and sizes that a kernel can have", async () => {
  const none = await annulus(["bench"]);
  assert.equal(none.code, 2);
  assert.match(none.stderr, /bench needs to know what to do: either --kernel or --kept; see/);
  const odd = await annulus(["bench", "--kernel", "--head-dim", "6"]);
  assert.equal(odd.code, 2);
  assert.match(odd.stderr, /a multiple of 4 from 4 to 256/);
});
