/** Commands that run models: `logits`, `generate` and `needle`, and what they refuse. */
import assert from "node:assert/strict";
import { writeConstructedModel } from "../../examples/08_constructed_model.ts";
import { Annulus, annulus } from "../support/cli.ts";
import { decoderLogits } from "../support/decoder.ts";
import { inFolder } from "../support/in_folder.ts";
import {
  asWeights,
  type ModelCase,
  modelCases,
  tensorsFor,
  writeModel,
} from "../support/models.ts";
import { missingServer } from "../support/nats.ts";
import { uniform } from "../support/random.ts";
import { tensorsOf } from "../support/tensors.ts";

const model = modelCases.find(({ name }) => name === "Qwen3 with layer types")!;
const tensors = tensorsFor(model, 7);
const ids = Array.from({ length: 53 }, (_, i) => i * i % 97);
const common = ["--device", "reference"];

const logitsOf = async (folder: string, ...args: ReadonlyArray<string>) => {
  await Deno.writeTextFile(`${folder}/ids.json`, JSON.stringify(ids));
  const flags = ["--tokens", `${folder}/ids.json`, "--out", `${folder}/out`];
  if (!args.includes("--last")) flags.push("--last", "9");
  return await annulus(["logits", `${folder}/model`, ...flags, ...common, ...args, "--json"]);
};

for (const args of [["--ring", "3"], ["--ring", "3", "--link", "nats"]]) {
  inFolder(`logits ${args.join(" ")} are those of float64`, async (folder) => {
    await writeModel(`${folder}/model`, model, tensors, 2);
    const { code, stdout, stderr } = await logitsOf(folder, ...args);
    assert.equal(code, 0, stderr);
    assert.deepEqual(JSON.parse(stdout).shape, [9, 97]);
    const { logits } = tensorsOf(`${folder}/out`);
    const needed = decoderLogits(model.config, asWeights(tensors), ids, model.windowOf)
      .slice(-9).flatMap((row) => [...row]);
    const largest = Math.max(...needed.map(Math.abs));
    const apart = needed.map((x, i) => Math.abs(x - logits!.values[i]!) / largest);
    assert.ok(Math.max(...apart) < 1e-5, String(Math.max(...apart)));
  }, args.length > 2 ? missingServer : undefined);
}

inFolder("what is no model is refused in one sentence", async (folder) => {
  const refused = async (
    sentence: RegExp,
    change: Partial<ModelCase["config"]>,
    edit: (all: Record<string, typeof tensors[string]>) => void = () => {},
    args: ReadonlyArray<string> = [],
  ) => {
    const all = { ...tensors };
    edit(all);
    await Deno.remove(`${folder}/model`, { recursive: true }).catch(() => {});
    await writeModel(`${folder}/model`, { config: { ...model.config, ...change } }, all);
    const { code, stdout, stderr } = await logitsOf(folder, ...args);
    assert.equal(stdout, "");
    assert.match(stderr, sentence);
    assert.ok(code === 1 || code === 2, stderr);
    assert.equal(stderr.trim().split("\n").length, 1, stderr);
  };
  await Deno.mkdir(`${folder}/model`);
  assert.match((await logitsOf(folder)).stderr, /config\.json": a model's folder must have it/);
  await refused(
    /must be one of LlamaForCausalLM, .*: found GPT2LMHeadModel/,
    { architectures: ["GPT2LMHeadModel"] },
  );
  await refused(
    /must have "model\.layers\.1\.mlp\.up_proj\.weight": found none of that name/,
    {},
    (all) => {
      delete all["model.layers.1.mlp.up_proj.weight"];
    },
  );
  await refused(/may only have tensors that its config names: found "odd"/, {}, (all) => {
    all["odd"] = tensors["model.norm.weight"]!;
  });
  await refused(
    /"lm_head\.weight" must be \[98, 40\]: found \[97, 40\]|embed_tokens\.weight" must be \[98, 40\]/,
    { vocab_size: 98 },
  );
  await refused(/hidden_act must be "silu": found "gelu"/, { hidden_act: "gelu" });
  await refused(/head dim must be an even number up to 256: found 7/, { head_dim: 7 });
  await refused(/rope scaling must be one of default, linear, llama3: found "yarn"/, {
    rope_scaling: { rope_type: "yarn", factor: 4 } as never,
  });
  await refused(/layer_types must name 3 layers: found 2/, {
    layer_types: ["full_attention", "full_attention"],
  });
  await refused(
    /--tls needs --cluster and --nats/,
    {},
    undefined,
    ["--link", "nats", "--tls", `${folder}/certs`],
  );
  await refused(/--last needs a number up to the 53 tokens/, {}, undefined, ["--last", "54"]);
  await writeModel(`${folder}/model`, model, tensors);
  const file = `${folder}/model/model.safetensors`;
  await Deno.truncate(file, Deno.statSync(file).size - 5);
  assert.match((await logitsOf(folder)).stderr, /model\.safetensors": /);
  await writeModel(`${folder}/model`, model, tensors);
  ids.push(97);
  assert.match((await logitsOf(folder)).stderr, /token 53 must be an id from 0 to 96.*: found 97/);
  ids.pop();
});

/** Words of which no two are alike for long. */
const hay = (tokens: number) => {
  const next = uniform(3);
  let text = "";
  while (text.length < tokens) {
    const length = 2 + Math.floor(8 * next());
    for (let i = 0; i < length; i++) text += "etaoinshrdlucmfwygpbv"[Math.floor(21 * next())];
    text += next() < 0.1 ? ".\n" : " ";
  }
  return text;
};

inFolder("needles are found wherever they are, and not beyond a window", async (folder) => {
  await writeConstructedModel(`${folder}/model`);
  await Deno.writeTextFile(`${folder}/hay.txt`, hay(9000));
  const flags = ["--lengths", "700,8k", "--depths", "0..100/50", "--needles", "2", "--seeds", "2"]
    .concat("--haystack", `${folder}/hay.txt`, "--out", `${folder}/out`, "--ring", "3", "--json");
  const found = await annulus(["needle", `${folder}/model`, ...flags, "--device", "cpu"]);
  assert.equal(found.code, 0, found.stderr);
  const report = JSON.parse(found.stdout);
  assert.equal(report.share, 1, JSON.stringify(report.cells));
  assert.equal(report.cells.length, 12);
  assert.match(await Deno.readTextFile(`${folder}/out/needle.svg`), />4\/4<\/text>/);
  const png = await Deno.readFile(`${folder}/out/needle.png`);
  assert.equal(new TextDecoder("latin1").decode(png.subarray(1, 4)), "PNG");
  const near = await annulus(
    ["needle", `${folder}/model`, ...flags, "--device", "cpu", "--window", "300"],
  );
  assert.equal(near.code, 0, near.stderr);
  assert.ok(JSON.parse(near.stdout).share < 0.5, near.stdout);
});

inFolder("a constructed model goes on with what followed", async (folder) => {
  await writeConstructedModel(`${folder}/model`);
  await Deno.writeTextFile(
    `${folder}/book.txt`,
    `${hay(500)}\nThe whale was white, said Ishmael.\n`,
  );
  const run = (...args: ReadonlyArray<string>) =>
    annulus([
      ...["generate", `${folder}/model`, "The whale was", "--file", `${folder}/book.txt`],
      ...["--device", "cpu", "--ring", "2", ...args],
    ]);
  const { code, stdout, stderr } = await run("--stop", ".\n", "--max-tokens", "40");
  assert.equal(code, 0, stderr);
  assert.equal(stdout, " white, said Ishmael\n");
  assert.match(stderr, /^annulus: \d+ tokens of .*book\.txt$/m);
  const json = JSON.parse((await run("--json", "--max-tokens", "6")).stdout);
  assert.deepEqual([json.text, json.end, json.tokens.length], [" white", "length", 6]);
});

inFolder("a conversation reads a file once, and each question alone", async (folder) => {
  await writeConstructedModel(`${folder}/model`);
  const book = `${hay(500)}\nThe ship=Pequod;\nThe captain=Ahab;\n`;
  await Deno.writeTextFile(`${folder}/book.txt`, book);
  await using chat = new Annulus([
    ...["chat", `${folder}/model`, "--file", `${folder}/book.txt`, "--device", "cpu"],
    ...["--ring", "2", "--stop", ";", "--max-tokens", "20", "--json"],
  ], { stdin: true });
  await chat.write("The ship=\n");
  const first = JSON.parse(await chat.line(/^\{/));
  assert.equal(first.text, "Pequod");
  assert.equal(first.usage.cached_tokens, 0);
  await chat.write(";And the captain=\n");
  const second = JSON.parse(await chat.line(/^\{/, 2));
  assert.equal(second.text, "Ahab");
  assert.equal(
    second.usage.cached_tokens,
    first.usage.prompt_tokens + first.text.length,
  );
  await chat.closeStdin();
  assert.equal((await chat.finished()).code, 0);
});

inFolder(
  "a text for which there is no room is refused before anything is loaded",
  async (folder) => {
    await writeConstructedModel(`${folder}/model`, { longest: 2 ** 30 });
    const { code, stderr } = await annulus([
      ...["generate", `${folder}/model`, "a", "--max-tokens", String(2 ** 29), "--ring", "3"],
      ...common,
    ]);
    assert.equal(code, 1);
    assert.match(
      stderr,
      /^annulus: Cannot place the run: it needs \d+ bytes for weights and activations and \d+ for keys and values of 536870913 tokens on each of 3 ranks: found \d+; \d+ tokens would fit: .*--cache f16\)$/m,
    );
  },
);
