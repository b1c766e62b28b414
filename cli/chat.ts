/**
 * `annulus chat`: a conversation at the terminal, over files that come before it. Each question pays only for its own
 * tokens, as long as the template leaves what was said as it was.
 *
 * @module
 */
import { Effect, Stream } from "effect";
import { startEngine } from "../plugins/models/engine.ts";
import { mustBeKnown, mustFit } from "../plugins/models/prompt.ts";
import { type ChatMessage, openTokenizer } from "../plugins/models/tokenizer.ts";
import { hear, promptInWords, promptUsage } from "./hear.ts";
import { type CachesFlags, laterNotes, type ModelFlags, runModel } from "./model_run.ts";
import { draw, note, print } from "./output.ts";
import { type SamplingFlags, samplingOf } from "./sampling.ts";
import { textsOf } from "./texts.ts";

/** All that `chat` can be told. */
export interface ChatFlags extends ModelFlags, CachesFlags, SamplingFlags {
  readonly file: ReadonlyArray<string>;
  readonly system: string | undefined;
}

/** Talks until standard input ends. */
export const runChat = Effect.fn("runChat")(function* (flags: ChatFlags) {
  const texts = yield* textsOf(flags.file);
  const later = laterNotes();
  const { folder, open, ...keeping } = yield* runModel(flags, undefined, later.tell);
  const tokens = yield* openTokenizer(folder.folder);
  const { sampling, ends } = yield* samplingOf(folder, flags);
  let longest = 0;
  const engine = yield* startEngine({
    open: Effect.map(open(0), (opened) => {
      longest = opened.longest;
      return opened.session;
    }),
    ...keeping,
    tokens,
    kept: Infinity,
    room: () => longest,
    lost: ({ message }) => note(`annulus: beginning anew, since: ${message}`),
  });
  const terminal = Deno.stdin.isTerminal() && !flags.json;
  const messages: Array<ChatMessage> = [];
  if (flags.system !== undefined) messages.push({ role: "system", content: flags.system });
  let files = texts.map(({ text }) => text).join("\n");
  const answer = Effect.fnUntraced(function* (question: string) {
    const content = files === "" ? question : `${files}\n${question}`;
    files = "";
    messages.push({ role: "user", content });
    const prompt = tokens.encode(yield* tokens.chat(messages), false);
    yield* mustFit(prompt.length, flags.maxTokens, longest);
    yield* mustBeKnown(prompt, folder.model.vocabulary);
    const limits = { most: flags.maxTokens, ends, stops: flags.stop };
    const heard = yield* hear(engine.say({ prompt, sampling, limits }), flags.json);
    messages.push({ role: "assistant", content: heard.text });
    if (!flags.json) {
      yield* print("");
      yield* later.flush;
      return yield* note(`annulus: ${promptInWords(heard.prompt)}`);
    }
    yield* later.flush;
    yield* print(JSON.stringify({ text: heard.text, usage: promptUsage(heard.prompt) }));
  });
  const prompted = terminal ? draw("> ") : Effect.void;
  yield* prompted;
  yield* Stream.fromReadableStream({
    evaluate: () => Deno.stdin.readable,
    onError: () => "the terminal has gone" as const,
  }).pipe(
    Stream.catch(() => Stream.empty),
    Stream.decodeText(),
    Stream.splitLines,
    Stream.runForEach((line) =>
      Effect.andThen(line.trim() === "" ? Effect.void : answer(line), prompted)
    ),
  );
  // What was read is kept before the command ends.
  yield* engine.settled;
  yield* later.flush;
}, Effect.scoped);
