/** Every example runs as its first comment says, and ends by itself. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const says: Record<string, RegExp> = {
  "01_one_process.ts": /ring of 4, zigzag: differs from one device by \d/,
  "02_four_nodes.ts": /16000 outputs and 1000 log-sum-exps/,
  "03_own_device.ts": /differs from the reference device by \d/,
  "05_long_sequence.ts":
    /4096 tokens over 4 nodes.*\n.* tokens\/s.*\nthe fullest node held 1 MiB of the 2 MiB/,
  "06_attention.ts":
    /packed: \d+ pairs, \d+ bytes moved.*\ncausal: \d+ pairs.*\na ring of four differs from one device by \d/,
  "07_latents.ts": /latents: \d+ bytes moved; keys and values: \d+\n30720 outputs differ by \d/,
  "08_constructed_model.ts": /holds a constructed model: 5-gram induction over bytes, two layers/,
  "09_book.ts":
    /The event of the measure is \.\.\. yet unknown to me\nthe book says so at character \d+ of 8356/,
  "10_repository.ts":
    /^\d files, .*const upperWindow = \(\nplugins\/models\/families\/qwen2\.ts:\d+\n$/,
  "11_contract.ts":
    /Rent: 900 a month, and now 960 a month\nNotice by the owner: six.*three months\nSmall.*\nPets: none, and now nothing\nGarden.*\n12 questions of \d+ tokens, \d+ of which were not read/,
  "04_gradients.ts":
    /dk of a ring of three says \d.*\nrank 0 sent \d+ bytes of K and V and \d+ of gradients/,
};

for (const entry of Deno.readDirSync(`${root}examples`)) {
  Deno.test(`examples/${entry.name} runs`, async () => {
    const expected = says[entry.name];
    assert.ok(expected !== undefined, "nothing is expected of it");
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", `examples/${entry.name}`],
      cwd: root,
    }).output();
    const text = new TextDecoder().decode(stdout);
    assert.equal(code, 0, new TextDecoder().decode(stderr));
    assert.match(text, expected);
  });
}
