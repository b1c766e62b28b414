/**
 * Folders that Hugging Face's transformers wrote, with random weights: what annulus makes of them is what transformers made
 * of them on the machine that wrote them. `tests/foreign/write.py` is how; its tokenizer is trained on the script itself.
 */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { openTokenizer } from "../../plugins/models/tokenizer.ts";
import { reference } from "../../plugins/reference.ts";
import { webgpu } from "../../plugins/webgpu.ts";
import { apart, devices, everything, mostLikelyAfter, onRings } from "../support/model_rings.ts";

/** What transformers made of a folder. */
interface Expected {
  readonly ids: ReadonlyArray<number>;
  /** Of the last of these ids. */
  readonly logits: ReadonlyArray<ReadonlyArray<number>>;
  readonly prompt: ReadonlyArray<number>;
  readonly greedy: ReadonlyArray<number>;
  readonly text: string;
  readonly text_ids: ReadonlyArray<number>;
  readonly messages: ReadonlyArray<{ readonly role: string; readonly content: string }>;
  readonly chat: string;
}

/** Norms, softmax and rope are float32 there as well; 7e-6 was the most on any device and ring. */
const bound = 2e-5;

const root = fileURLToPath(new URL("../foreign", import.meta.url));
const folders = [...Deno.readDirSync(root)].filter(({ isDirectory }) => isDirectory);

for (const [i, name] of folders.map(({ name }) => name).sort().entries()) {
  const folder = `${root}/${name}`;
  const expected: Expected = JSON.parse(Deno.readTextFileSync(`${folder}/expected.json`));
  const { ids, logits, prompt, greedy } = expected;

  Deno.test(`${name}: logits and 128 of 128 tokens are those of transformers`, async () => {
    assert.equal(greedy.length, 128);
    const first = ids.length - logits.length;
    for (const { device, rings } of devices) {
      // Some of the folders on those that take longer; `deno task models` has them all.
      const here = device === reference || (device === webgpu ? i % 4 === 2 : i % 2 === 1);
      if (!here && !everything) continue;
      await onRings(folder, device, rings, (session, ring) =>
        Effect.gen(function* () {
          const where = `${device.name}, ring of ${ring}`;
          const close = (found: Float32Array, from: number, to: number) => {
            const error = apart(found, logits.slice(from - first, to - first));
            assert.ok(error < bound, `${where}, from ${from}: ${error}`);
          };
          // All at once; and in pieces.
          const [all] = yield* session.extend([{ sequence: 0, ids, wanted: logits.length }]);
          close(all!, first, ids.length);
          let at = 0;
          for (const end of [first + 7, first + 8, ids.length - 3, ids.length]) {
            const wanted = end - Math.max(first, at);
            const [some] = yield* session.extend([
              { sequence: 1, ids: ids.slice(at, end), wanted },
            ]);
            close(some!, end - wanted, end);
            at = end;
          }
          if (!everything && !(device === reference && ring === 2)) return;
          assert.deepEqual(yield* mostLikelyAfter(session, prompt, 128), greedy, where);
        }));
    }
  });

  Deno.test(`${name}: a text and a conversation become the same tokens`, async () => {
    const tokens = await Effect.runPromise(openTokenizer(folder));
    assert.deepEqual(tokens.encode(expected.text), expected.text_ids);
    assert.equal(tokens.decode(expected.text_ids), expected.text);
    assert.equal(await Effect.runPromise(tokens.chat(expected.messages)), expected.chat);
  });
}
