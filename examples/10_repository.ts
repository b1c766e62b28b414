/**
 * Where is a symbol defined? A repository is given whole, file after file; the model quotes the definition, and the quote is
 * looked up in the files. A model may be wrong, and what it quotes is in the files or is not.
 *
 * ```sh
 * deno run -A examples/10_repository.ts                                  # seconds
 * deno run -A examples/10_repository.ts "class Decoder" runtime          # 340,000 tokens: minutes
 * deno run -A examples/10_repository.ts "Quote the line that defines Decoder, and nothing else." runtime .ts MODEL
 * ```
 *
 * MODEL is a folder as Hugging Face writes it. Without one it is the model of 08_constructed_model.ts, which understands
 * nothing: asked with the begin of the definition it goes on with what followed there, as long as its last fifteen bytes
 * were nowhere else, so that only the first bytes of its quote are taken.
 *
 * @module
 */
import { Effect } from "effect";
import {
  chooseDevice,
  cpu,
  inProcess,
  modelsIn,
  openModel,
  reference,
  startModel,
  webgpu,
} from "../mod.ts";
import { constructedModel } from "./08_constructed_model.ts";

const [
  question = "const upperWindow",
  folderOfFiles = "plugins/models/families",
  ending = ".ts",
  given,
] = Deno.args;

interface Source {
  readonly path: string;
  readonly text: string;
}

const sourcesIn = async (folder: string): Promise<ReadonlyArray<Source>> => {
  const found: Array<Source> = [];
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    const path = `${folder}/${name}`;
    if (name.startsWith(".") || name === "node_modules") continue;
    if (isDirectory) found.push(...await sourcesIn(path));
    else if (name.endsWith(ending)) found.push({ path, text: await Deno.readTextFile(path) });
  }
  return found.sort((a, b) => a.path < b.path ? -1 : 1);
};

/** Where a text stands first in each file, as `path:line`. */
const placesOf = (text: string, sources: ReadonlyArray<Source>): ReadonlyArray<string> =>
  sources.flatMap(({ path, text: all }) => {
    const at = all.indexOf(text);
    return text === "" || at < 0 ? [] : [`${path}:${all.slice(0, at).split("\n").length}`];
  });

const sources = await sourcesIn(folderOfFiles);
const repository = sources.map(({ path, text }) => `=== ${path} ===\n${text}`).join("\n");

const program = Effect.gen(function* () {
  const folder = yield* openModel(given ?? (yield* constructedModel(15)));
  const device = yield* chooseDevice([webgpu, cpu, reference], "auto");
  const ask = Effect.gen(function* () {
    const model = yield* startModel(folder, { ring: 4 });
    return yield* model.reply(
      [{ role: "user", content: `${repository}\n\n${question}` }],
      given === undefined ? { most: 12, stops: ["\n"] } : { stops: ["\n"] },
    );
  });
  return yield* Effect.provide(ask, inProcess(device, modelsIn([folder])));
});

const { text } = await program.pipe(Effect.scoped, Effect.runPromise);
const quote = given === undefined ? question + text : text.trim();
const places = placesOf(quote, sources);
console.log(`${sources.length} files, ${repository.length} characters: ${quote}`);
console.log(places.length === 0 ? "that is in none of the files" : places.join("\n"));
