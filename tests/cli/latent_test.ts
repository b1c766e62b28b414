/**
 * `annulus attend` and `annulus plan` where latents travel in place of keys and values.
 *
 * @module
 */
import assert from "node:assert/strict";
import { denseAttention, expandedLatents } from "../../kernels/oracle.ts";
import { relativeL2 } from "../support/closeness.ts";
import { annulus, scratch } from "../support/cli.ts";
import { noNatsServer } from "../support/nats.ts";
import { normals } from "../support/random.ts";
import { fileOfTensors, type Tensor, tensorsOf } from "../support/tensors.ts";

const shape = { batch: 1, tokens: 150, heads: 4, headDim: 24, rank: 16, rope: 8, value: 12 };
const { tokens, heads, headDim, rank, rope, value } = shape;

const tensor = (seed: number, shape: ReadonlyArray<number>, dtype: Tensor["dtype"] = "f32") => {
  const values = normals(seed, shape.reduce((a, b) => a * b));
  return { dtype, shape, values };
};
const file = {
  q: tensor(1, [1, tokens, heads, headDim]),
  latent: tensor(2, [1, tokens, rank + rope]),
  kv_b: tensor(3, [heads, headDim - rope + value, rank]),
};

const expected = () => {
  const { k, v } = expandedLatents(shape, file.latent.values, file.kv_b.values);
  const rules = { sees: () => true };
  const judged = { ...shape, kvHeads: heads, scale: 1 / Math.sqrt(headDim), rules };
  return denseAttention(judged, file.q.values, k, v).o.filter((_, i) => i % headDim < value);
};

for (const link of ["memory", "nats"] as const) {
  const missing = link === "nats" && noNatsServer;
  Deno.test({
    name: `attend reads latents, moves them as they are, and knows the answer, over ${link}` +
      (missing ? " (not here: there is no nats-server)" : ""),
    ignore: missing,
    fn: async () => {
      await using folder = await scratch();
      const [input, out] = [`${folder.path}/in.st`, `${folder.path}/out.st`];
      await Deno.writeFile(input, fileOfTensors(file));
      const { code, stdout, stderr } = await annulus([
        ...["attend", input, "--out", out, "--ring", "3", "--layout", "zigzag"],
        ...["--device", "reference", "--link", link, "--verify", "--json"],
      ]);
      assert.equal(code, 0, stderr);
      const { o } = tensorsOf(out);
      assert.deepEqual(o!.shape, [1, tokens, heads, value]);
      assert.ok(relativeL2(o!.values, expected()) <= 2e-6);
      const { bytes_sent: sent } = JSON.parse(stdout);
      // Each rank sends its own on and one more, of the whole sequence's thirds.
      assert.deepEqual(sent, Array(3).fill(2 * tokens / 3 * (rank + rope) * 4));
    },
  });
}

Deno.test("attend --verify judges what latents in float16 are, and finds a wrong answer", async () => {
  await using folder = await scratch();
  const input = `${folder.path}/in.st`;
  await Deno.writeFile(input, fileOfTensors({ ...file, latent: { ...file.latent, dtype: "f16" } }));
  const run = (...flags: ReadonlyArray<string>) =>
    annulus([
      ...["attend", input, "--out", `${folder.path}/out.st`, "--ring", "2", "--device"],
      ...["reference", "--verify", "--json", ...flags],
    ]);
  const { code, stdout, stderr } = await run();
  assert.equal(code, 0, stderr);
  const { error, bytes_sent: sent } = JSON.parse(stdout);
  assert.ok(error.o <= 2e-6, `${error.o}`);
  assert.deepEqual(sent, Array(2).fill(tokens / 2 * (rank + rope) * 2));
  const rounded = await run("--wire", "bf16");
  assert.equal(rounded.code, 0, rounded.stderr);
  assert.ok(JSON.parse(rounded.stdout).error.o > 1e-4, "nothing was rounded");
});

Deno.test("plan of DeepSeek-V3's sizes: 576 numbers of each token travel, not 128 · 320", async () => {
  const plan = (tokens: number, ...flags: ReadonlyArray<string>) =>
    annulus([
      ...["plan", "--tokens", `${tokens}`, "--heads", "128", "--head-dim", "192", "--ring", "8"],
      ...["--latent", "512,64,128", "--wire", "f16", ...flags],
    ]);
  const [json, words, short] = [
    await plan(65_536, "--layout", "zigzag", "--json"),
    await plan(65_536, "--layout", "zigzag"),
    await plan(512, "--layout", "zigzag", "--json"),
  ];
  assert.deepEqual([json.code, words.code, short.code], [0, 0, 0], json.stderr + words.stderr);
  const { layers: [layer], everything } = JSON.parse(json.stdout);
  const c = 65_536 / 8;
  // What each rank is sent in each of seven hops.
  assert.deepEqual(layer.bytesReceived, Array(8).fill(7 * 576 * c * 2));
  assert.equal(everything.sentBytes, 8 * 7 * 128 * 320 * c * 2);
  assert.deepEqual(layer.latentForms, Array(8).fill("expand"));
  assert.match(words.stdout, /8 of 8 ranks expand keys and values of latents/);
  assert.match(words.stdout, /504 MiB travel, 1\.4 % of full attention's/);
  // Sixty-four queries are sooner absorbed than 512 keys and values made.
  assert.deepEqual(JSON.parse(short.stdout).layers[0].latentForms, Array(8).fill("absorb"));
});

Deno.test("plan says what is wrong with latents", async () => {
  for (
    const [latent, code, sentence] of [
      ["512,64", 2, /--latent needs RANK,ROPE,VALUE, three whole numbers: found "512,64"/],
      ["512,,128", 2, /--latent needs RANK,ROPE,VALUE/],
      [
        "510,64,128",
        1,
        /the rank of the latents must be a multiple of 4 from 4 to 4096: found 510/,
      ],
      ["512,128,64", 2, /a --head-dim of more than its rope, 128, and .* value, 64: found 128/],
      ["512,64,256", 2, /a --head-dim of .* no less than its value, 256: found 128/],
    ] as const
  ) {
    const { code: found, stderr } = await annulus([
      ...["plan", "--tokens", "100", "--head-dim", "128", "--latent", latent],
    ]);
    assert.equal(found, code, stderr);
    assert.match(stderr, sentence);
  }
});
