/**
 * Two versions of a contract, compared: both are read once, over a ring of four, and then the model is asked for each term
 * of each version. What it says counts where that version says so.
 *
 * ```sh
 * deno run -A examples/11_contract.ts                                    # seconds
 * deno run -A examples/11_contract.ts OLD.txt NEW.txt MODEL
 * ```
 *
 * A file has a term a line: what it is about, a colon, what is agreed, and a full stop. MODEL is a folder as Hugging Face
 * writes it. Without one it is the model of 08_constructed_model.ts, which understands nothing: it goes on with a line whose
 * begin it is given, as long as its last fifteen bytes tell it from all others.
 *
 * @module
 */
import { Effect } from "effect";
import {
  type ChatMessage,
  chooseDevice,
  cpu,
  inProcess,
  type ModelFolder,
  modelsIn,
  openModel,
  reference,
  startModel,
  webgpu,
} from "../mod.ts";
import { constructedModel } from "./08_constructed_model.ts";

const lease = {
  old: `Rent: 900 a month.
Deposit: two months.
Notice by the owner: six months.
Small repairs: the tenant.
Pets: none.`,
  new: `Rent: 960 a month.
Deposit: two months.
Notice by the owner: three months.
Small repairs: the owner.
Garden: for all tenants.`,
};

const [oldFile, newFile, given] = Deno.args;
const textOf = (file: string | undefined, otherwise: string) =>
  file === undefined ? otherwise : Deno.readTextFile(file);
/** Lines as the model sees them: `Rent, old: 900 a month.` */
const termsOf = (version: string, text: string) =>
  text.trim().split("\n").map((line) => line.replace(":", `, ${version}:`));
const terms = [
  ...termsOf("old", await textOf(oldFile, lease.old)),
  ...termsOf("new", await textOf(newFile, lease.new)),
];
const subjects = new Set(terms.map((term) => term.slice(0, term.search(/, (old|new):/))));

/** What is told where the model has not said what a version has. */
const unquoted = "something that it did not quote";

const compare = Effect.fnUntraced(function* (folder: ModelFolder) {
  const model = yield* startModel(folder, { ring: 4 });
  const messages: Array<ChatMessage> = [];
  let before = `Complete the lines of this contract, word for word.\n\n${terms.join("\n")}\n\n`;
  let [read, cached] = [0, 0];
  const ask = Effect.fnUntraced(function* (begin: string) {
    messages.push({ role: "user", content: `${before}${begin}` });
    const answer = yield* model.reply(messages, { most: 60, stops: [".\n"] });
    messages.push({ role: "assistant", content: answer.text });
    before = ".\n";
    [read, cached] = [read + answer.prompt.tokens, cached + answer.prompt.cached];
    const said = answer.text.trim().replace(/\.$/, "");
    if (terms.includes(`${begin} ${said}.`)) return said;
    return terms.some((term) => term.startsWith(begin)) ? unquoted : "nothing";
  });
  for (const subject of subjects) {
    const [was, is] = [yield* ask(`${subject}, old:`), yield* ask(`${subject}, new:`)];
    if (was !== is || was === unquoted) console.log(`${subject}: ${was}, and now ${is}`);
  }
  // A conversation begins with all that was said before, of which keys and values are still there.
  console.log(`${2 * subjects.size} questions of ${read} tokens, ${cached} of which were not read`);
});

await Effect.gen(function* () {
  const folder = yield* openModel(given ?? (yield* constructedModel(15)));
  const device = yield* chooseDevice([webgpu, cpu, reference], "auto");
  yield* Effect.provide(compare(folder), inProcess(device, modelsIn([folder])));
}).pipe(Effect.scoped, Effect.runPromise);
