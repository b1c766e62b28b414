/**
 * `annulus plan` shows what layers would compute and move.
 *
 * @module
 */
import assert from "node:assert/strict";
import { cheapest } from "../../runtime/layout_choice.ts";
import { annulus } from "../support/cli.ts";

const shape = ["--tokens", "32768", "--heads", "8", "--kv-heads", "2", "--ring", "8"];

Deno.test("plan shows a pattern of layers, what each layout would cost, and the saving", async () => {
  const layers = [...Array(3).fill("window(4096)"), "causal"]
    .flatMap((attention) => ["--attention", attention]);
  const [json, words] = [
    await annulus(["plan", ...shape, ...layers, "--times", "2", "--json"]),
    await annulus(["plan", ...shape, ...layers, "--times", "2"]),
  ];
  assert.deepEqual([json.code, words.code], [0, 0]);
  const { layers: planned, total, everything } = JSON.parse(json.stdout);
  const halo = 7 * 4095 * 2 * 2 * 64 * 4;
  assert.deepEqual(
    planned.map(({ layout, hops }: { layout: string; hops: number }) => [layout, hops]),
    [...Array(3).fill(["contiguous", 1]), ["zigzag", 7]],
  );
  assert.equal(planned[0].sentBytes, halo);
  assert.deepEqual(planned[0].bytesReceived, [0, ...Array(7).fill(halo / 7)]);
  assert.equal(planned[0].pairs, 32_768 * 4096 - 4096 * 4095 / 2);
  assert.equal(planned[3].pairs, 32_768 * 32_769 / 2);
  assert.equal(total.sentBytes, 2 * (3 * halo + planned[3].sentBytes));
  assert.equal(everything.sentBytes, 8 * 7 * 2 * 32_768 * 2 * 64 * 4);
  assert.match(words.stdout, /window\(size: 4096\) +contiguous +1\.067 +1 +28\.0 MiB/);
  assert.match(words.stdout, /causal, by layout: contiguous 1\.875 \(112 MiB\), zigzag 1\.000/);
  assert.match(words.stdout, /8 layers: .* GFLOP, 21\.3 % of full attention; .* travel, 28\.1 %/);
});

Deno.test("plan takes the layout that attend would, where another is as cheap", async () => {
  const flags = ["--tokens", "64", "--ring", "2", "--attention", "causal", "--json"];
  const { stdout } = await annulus(["plan", ...flags]);
  const [{ layout, layouts }] = JSON.parse(stdout).layers;
  assert.equal(layout, "zigzag");
  assert.equal(cheapest(layouts), "contiguous");
});

Deno.test("plan says what is wrong with an attention", async () => {
  for (
    const [attention, code, sentence] of [
      ["nope", 2, /--attention needs names with & between them, of .*: found "nope"/],
      ["causal(3)", 2, /attention "causal" needs no parameters: found "3"/],
      ["window(length=3)", 2, /attention "window" needs parameters of size: found "length=3"/],
      ["window(size=4, size=60)", 2, /attention "window" needs one size: found two/],
      ["sinks([])", 1, /"sinks": it needs its parameter "logits" to be a table of at least one/],
      ["window(0)", 1, /"window": it needs its parameter "size": found 0 \(Expected/],
      ["window", 1, /"window": it needs its parameter "size": found nothing/],
      ["documents([0, 5])", 1, /cu_seqlens\[1\] to be the sequence length, 32768: found 5/],
      ["documents([1, 32768])", 1, /cu_seqlens\[0\] to be 0: found 1/],
      ["documents([0, 9, 7, 32768])", 1, /never decrease: found 7 at index 2, after 9/],
      ["blocks(1024, [1, 0])", 1, /a table of 32 × 32 blocks of 1024 .* 1024 numbers: found 2/],
      ["sinks([1, 2])", 1, /a logit for each of the 8 query heads: found 2/],
    ] as const
  ) {
    const { code: found, stderr } = await annulus(["plan", ...shape, "--attention", attention]);
    assert.equal(found, code, stderr);
    assert.match(stderr, sentence);
  }
});
