/**
 * `annulus verify` prints the errors of rings of every size, and judges them.
 *
 * @module
 */
import assert from "node:assert/strict";
import { annulus, twoAtOnce } from "../support/cli.ts";

interface Row {
  readonly ring: number;
  readonly layout: string;
  readonly attention: string;
  readonly wire: string;
  readonly o: number;
  readonly lse: number;
}

// On other devices the table takes longer than a test may: waiting for a GPU costs 20 ms a block.
const device = "reference";

Deno.test("verify passes the reference device, for people and programs", async () => {
  const [json, words] = await twoAtOnce(
    [["--json"], []],
    (flags) => annulus(["verify", "--tokens", "97", "--device", device, ...flags]),
  );
  assert.deepEqual([json!.code, json!.stderr], [0, ""]);
  const { tokens, cases, growth, device: info } = JSON.parse(json!.stdout);
  assert.equal(tokens, 97);
  assert.equal(info.name, device);
  if (/llvmpipe|lavapipe|swiftshader|JavaScript/i.test(info.backend)) assert.ok(info.software);
  const rows: ReadonlyArray<Row> = cases;
  const sizes = rows.filter(({ layout, attention, wire }) =>
    layout === "zigzag" && attention === "causal" && wire === "f32"
  ).map(({ ring }) => ring);
  assert.deepEqual(sizes.slice(0, 16), Array.from({ length: 16 }, (_, i) => i + 1));
  for (const layout of ["contiguous", "striped", "zigzag"]) {
    for (const kind of ["causal", "bidirectional", "window(size: 20)"]) {
      assert.ok(rows.some((row) => row.layout === layout && row.attention === kind));
    }
  }
  assert.deepEqual([...new Set(rows.map(({ wire }) => wire))], ["f32", "f16", "bf16"]);
  for (const { o, lse } of rows) assert.ok(o > 0 && o <= 2e-6 && lse <= 1e-5);
  const flat = rows.slice(0, 16).map(({ o }) => o);
  assert.equal(growth, Math.max(...flat) / Math.min(...flat));
  assert.ok(growth <= 1.5);

  assert.equal(words!.code, 0);
  const lines = words!.stdout.trim().split("\n");
  assert.match(lines[0]!, /^N +layout +attention +wire +error of o +error of lse$/);
  assert.equal(lines.length, rows.length + 2);
  assert.match(lines.at(-1)!, /^largest over smallest error of o for N = 1…16: 1\.\d\d$/);
  assert.match(words!.stderr, /^97 tokens, .*\n$/);
  if (info.software) assert.match(words!.stderr, /\(software\)/);
});
