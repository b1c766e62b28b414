/**
 * `annulus generate`: goes on with a prompt, over files that come before it.
 *
 * @module
 */
import { Effect } from "effect";
import { startEngine } from "../plugins/models/engine.ts";
import { mustBeKnown, mustFit } from "../plugins/models/prompt.ts";
import { openTokenizer } from "../plugins/models/tokenizer.ts";
import { misuse } from "./command_line.ts";
import { hear, promptInWords, promptUsage } from "./hear.ts";
import { type CachesFlags, laterNotes, type ModelFlags, runModel } from "./model_run.ts";
import { note, print, printJson } from "./output.ts";
import { type SamplingFlags, samplingOf } from "./sampling.ts";
import { textsOf } from "./texts.ts";

/** All that `generate` can be told. */
export interface GenerateFlags extends ModelFlags, CachesFlags, SamplingFlags {
  /** From standard input where it is `-`, and nothing where it is absent. */
  readonly prompt: string | undefined;
  readonly file: ReadonlyArray<string>;
}

const stdin = Effect.promise(() => new Response(Deno.stdin.readable).text());

/** Prints what the model says, as it says it. */
export const runGenerate = Effect.fn("runGenerate")(function* (flags: GenerateFlags) {
  const prompt = flags.prompt === "-" ? yield* stdin : flags.prompt ?? "";
  const texts = yield* textsOf(flags.file);
  if (prompt === "" && texts.length === 0) {
    return yield* misuse("generate needs a prompt: an argument, - for standard input, or --file");
  }
  const later = laterNotes();
  const { folder, open, ...keeping } = yield* runModel(flags, undefined, later.tell);
  const tokens = yield* openTokenizer(folder.folder);
  const { sampling, ends } = yield* samplingOf(folder, flags);
  const files = texts.map(({ name, text }, i) => ({ name, ids: tokens.encode(text, i === 0) }));
  if (!flags.json) {
    for (const { name, ids } of files) yield* note(`annulus: ${ids.length} tokens of ${name}`);
  }
  const ids = [
    ...files.flatMap(({ ids }) => ids),
    ...tokens.encode(prompt, files.length === 0),
  ];
  yield* mustBeKnown(ids, folder.model.vocabulary);
  yield* mustFit(ids.length, flags.maxTokens, folder.model.longest);
  let ring = 0;
  const engine = yield* startEngine({
    open: Effect.map(open(ids.length + flags.maxTokens), ({ crew, session }) => {
      ring = crew.ring;
      return session;
    }),
    ...keeping,
    tokens,
    lost: ({ message }) => note(`annulus: beginning anew, since: ${message}`),
  });
  const limits = { most: flags.maxTokens, ends, stops: flags.stop };
  const heard = yield* hear(engine.say({ prompt: ids, sampling, limits }), flags.json);
  const { text, end, seconds } = heard;
  if (flags.json) {
    yield* printJson({
      ...{ text, end, tokens: heard.ids, ring, seconds },
      ...promptUsage(heard.prompt),
      files: files.map(({ name, ids }) => ({ name, tokens: ids.length })),
    });
  } else {
    yield* print("");
    yield* later.flush;
    yield* note(
      `annulus: ${promptInWords(heard.prompt)} in ${seconds.first.toFixed(1)} s, ` +
        `${heard.ids.length} said in ${(seconds.all - seconds.first).toFixed(1)} s, ${ring} ranks`,
    );
  }
  // What was read is kept before the command ends; nobody waits for that with the answer.
  yield* engine.settled;
  yield* later.flush;
}, Effect.scoped);
