/**
 * Memory: what a rank holds of K and V falls with the size of the ring.
 *
 * @module
 */
import { Result } from "effect";
import assert from "node:assert/strict";
import { planOf } from "../../runtime/plan.ts";
import { annulus, scratch, twoAtOnce } from "../support/cli.ts";
import { fileOfTensors } from "../support/tensors.ts";
import { window as windowed } from "../../plugins/attention.ts";

const [tokens, heads, headDim, window] = [32_768, 2, 32, 64];
const sizes = [1, 2, 4, 8, 16];

Deno.test("kv_peak_bytes is what the plan allows, and falls as 1/N", async () => {
  await using folder = await scratch();
  const input = `${folder.path}/in.safetensors`;
  const values = new Float32Array(tokens * heads * headDim);
  const tensor = { dtype: "f32", shape: [1, tokens, heads, headDim], values } as const;
  await Deno.writeFile(input, fileOfTensors({ q: tensor, k: tensor, v: tensor }));
  const whole = 2 * values.byteLength;

  await twoAtOnce(sizes, async (ring) => {
    const flags = ["--ring", String(ring), "--window", String(window), "--layout", "contiguous"];
    const { code, stdout, stderr } = await annulus([
      ...["attend", input, "--out", `${folder.path}/out-${ring}`, "--json"],
      ...["--device", "reference", ...flags],
    ]);
    assert.deepEqual([code, stderr], [0, ""]);
    const plan = Result.getOrThrow(planOf({
      problem: {
        batch: 1,
        tokens,
        heads,
        kvHeads: heads,
        headDim,
        scale: 1,
        attention: [windowed({ size: window })],
      },
      layout: "contiguous",
      weights: Array.from({ length: ring }, () => 1),
      wire: "f32",
    }));
    const peaks: ReadonlyArray<number> = JSON.parse(stdout).kv_peak_bytes;
    assert.equal(peaks.length, ring);
    for (const [rank, peak] of peaks.entries()) {
      assert.ok(peak <= plan.ranks[rank]!.kvBytes, `rank ${rank} of ${ring}`);
      // Its own shard, and of its left neighbour's the last tokens, where its first windows begin.
      const halo = rank === 0 ? 0 : (window - 1) / tokens;
      assert.equal(peak, whole * (1 / ring + halo), `rank ${rank} of ${ring}`);
    }
  });
});

Deno.test("a rank of sixteen lets go of the blocks that it has passed on", async () => {
  await using folder = await scratch();
  const input = `${folder.path}/in.safetensors`;
  // Heads so wide that each shard of 16 tokens is one block of 256 KiB, and all of them make the round.
  const [tokens, heads, headDim, ring] = [256, 8, 256, 16];
  const values = new Float32Array(tokens * heads * headDim);
  const tensor = { dtype: "f32", shape: [1, tokens, heads, headDim], values } as const;
  await Deno.writeFile(input, fileOfTensors({ q: tensor, k: tensor, v: tensor }));
  const { code, stdout, stderr } = await annulus([
    ...["attend", input, "--out", `${folder.path}/out`, "--json"],
    ...["--device", "reference", "--ring", String(ring)],
  ]);
  assert.deepEqual([code, stderr], [0, ""]);
  const block = 2 * values.byteLength / ring;
  const { kv_peak_bytes: peaks, bytes_sent: sent } = JSON.parse(stdout);
  assert.deepEqual(sent, Array.from({ length: ring }, () => (ring - 1) * block));
  // Its own, and three on their way: received, waiting, in use.
  for (const peak of peaks) assert.ok(peak >= 2 * block && peak <= 4 * block, `${peak / block}`);
});
