/**
 * `annulus doctor` says what is there and how to mend what is not.
 *
 * @module
 */
import assert from "node:assert/strict";
import { devices } from "../../cli/devices.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { findLibrary } from "../../runtime/library.ts";
import { version } from "../../runtime/version.ts";
import { annulus, twoAtOnce } from "../support/cli.ts";
import { noNatsServer } from "../support/nats.ts";

interface Finding {
  readonly check: string;
  readonly ok: boolean;
  readonly found: string;
  readonly fix?: string;
}
const software = /llvmpipe|lavapipe|swiftshader|OpenBLAS|JavaScript/i;
const library = findLibrary(libraryName);

Deno.test("doctor finds every device, and the same for people and programs", async () => {
  const [words, json] = await twoAtOnce([[], ["--json"]], (flags) => annulus(["doctor", ...flags]));
  const said = JSON.parse(json!.stdout);
  const findings: ReadonlyArray<Finding> = said.findings;
  assert.equal(said.version, version);
  assert.match(
    said.node_permissions,
    library === undefined ? /^--allow-net=\S+ --allow-read=\S+ --allow-env --allow-sys$/ : RegExp(
      `^--allow-net=\\S+ --allow-read=\\S+,${library} --allow-env --allow-sys --allow-ffi=${library}$`,
    ),
  );
  const healthy = findings.every(({ ok }) => ok);
  for (const { code, stderr } of [words!, json!]) {
    assert.equal(code, healthy ? 0 : 1);
    assert.equal(stderr, "");
  }
  for (const { name } of devices) {
    assert.equal(findings.filter(({ check }) => check === `device ${name}`).length, 1);
  }
  const reference = findings.find(({ check }) => check === "device reference")!;
  assert.ok(reference.ok);
  for (const { check, ok, found, fix } of findings) {
    assert.ok(words!.stdout.includes(`${ok ? "✓" : "✗"} ${check}: ${found}\n`));
    if (ok) assert.equal(fix, undefined);
    else assert.ok(words!.stdout.includes(`    fix: ${fix}\n`));
    if (check.startsWith("device ") && software.test(found)) {
      assert.match(found, /software on the CPU, not a GPU/);
      assert.doesNotMatch(found, /hardware/);
    }
  }
  const server = findings.find(({ check }) => check === "NATS server")!;
  assert.equal(server.ok, !noNatsServer);
  if (server.ok) assert.match(server.found, /^nats-server \d.*max_payload 1 MiB, started from \//);
});

Deno.test("doctor gives one fix for each thing that is missing", async () => {
  const nobody = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  nobody.close();
  const url = `nats://127.0.0.1:${(nobody.addr as Deno.NetAddr).port}`;
  // Without the second, OpenGL would stand in for Vulkan.
  const env = { VK_DRIVER_FILES: "/nonexistent", DENO_WEBGPU_BACKEND: "vulkan", PATH: "" };
  const [unreachable, bare] = await twoAtOnce(
    [{ args: ["doctor", "--nats", url] }, { args: ["doctor", "--json"], env }],
    ({ args, env }) => annulus(args, env === undefined ? {} : { env }),
  );
  assert.equal(unreachable!.code, 1);
  assert.match(
    unreachable!.stdout,
    RegExp(`^✗ NATS server ${url}: .*refused.*\n    fix: start it`, "m"),
  );

  assert.equal(bare!.code, 1);
  const findings: ReadonlyArray<Finding> = JSON.parse(bare!.stdout).findings;
  for (const check of ["Vulkan driver", "device webgpu"]) {
    const finding = findings.find((finding) => finding.check === check)!;
    assert.equal(finding.ok, false);
    assert.match(finding.fix!, /install/);
  }
});
