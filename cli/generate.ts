/**
 * `annulus generate`: goes on with a prompt, over files that come before it.
 *
 * @module
 */
import { Effect, Result, Schema, Stream } from "effect";
import { join } from "node:path";
import { startEngine } from "../plugins/models/engine.ts";
import { greedy, type Sampling } from "../plugins/models/sampler.ts";
import { openTokenizer } from "../plugins/models/tokenizer.ts";
import type { ModelFolder } from "../plugins/models.ts";
import { InvalidProblem } from "../runtime/errors.ts";
import { misuse } from "./command_line.ts";
import { type ModelFlags, mustBeKnown, runModel } from "./model_run.ts";
import { draw, note, print, printJson, printPart } from "./output.ts";
import { textsOf } from "./texts.ts";

/** How to choose tokens, and where to stop; what is not given is the model's own. */
export interface SamplingFlags {
  readonly temperature: number | undefined;
  readonly topK: number | undefined;
  readonly topP: number | undefined;
  readonly minP: number | undefined;
  readonly repetitionPenalty: number | undefined;
  readonly seed: number;
  readonly stop: ReadonlyArray<string>;
  readonly maxTokens: number;
}

/** All that `generate` can be told. */
export interface GenerateFlags extends ModelFlags, SamplingFlags {
  /** From standard input where it is `-`, and nothing where it is absent. */
  readonly prompt: string | undefined;
  readonly file: ReadonlyArray<string>;
}

/** Of a prompt, in one step. */
export const tokensAtOnce = 8192;

const Defaults = Schema.fromJsonString(Schema.Struct({
  do_sample: Schema.optionalKey(Schema.Boolean),
  temperature: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  top_k: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  top_p: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  min_p: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  repetition_penalty: Schema.optionalKey(Schema.NullOr(Schema.Number)),
  eos_token_id: Schema.optionalKey(
    Schema.NullOr(Schema.Union([Schema.Number, Schema.Array(Schema.Number)])),
  ),
}));
const decodeDefaults = Schema.decodeUnknownResult(Defaults);

/** What the model's `generation_config.json` says, with what the user says instead. */
export const samplingOf = Effect.fn("samplingOf")(function* (
  { folder, config }: ModelFolder,
  flags: SamplingFlags,
) {
  const text = yield* Effect.promise(() =>
    Deno.readTextFile(join(folder, "generation_config.json")).catch(() => "{}")
  );
  const found = decodeDefaults(text);
  if (Result.isFailure(found)) {
    yield* note(
      `annulus: ignoring generation_config.json of "${folder}": ${found.failure.message}`,
    );
  }
  const own = Result.isSuccess(found) ? found.success : {};
  const usual = own.do_sample === true ? own.temperature ?? 1 : 0;
  const sampling: Sampling = {
    temperature: flags.temperature ?? usual,
    topK: flags.topK ?? own.top_k ?? greedy.topK,
    topP: flags.topP ?? own.top_p ?? greedy.topP,
    minP: flags.minP ?? own.min_p ?? greedy.minP,
    repetitionPenalty: flags.repetitionPenalty ?? own.repetition_penalty ??
      greedy.repetitionPenalty,
    seed: flags.seed,
  };
  const ends = new Set([own.eos_token_id ?? config.eos_token_id ?? []].flat());
  return { sampling, ends };
});

const stdin = Effect.promise(() => new Response(Deno.stdin.readable).text());

/** Prints what the model says, as it says it. */
export const runGenerate = Effect.fn("runGenerate")(function* (flags: GenerateFlags) {
  const prompt = flags.prompt === "-" ? yield* stdin : flags.prompt ?? "";
  const texts = flags.file.length === 0 ? [] : yield* textsOf(flags.file);
  if (prompt === "" && texts.length === 0) {
    return yield* misuse("generate needs a prompt: an argument, - for standard input, or --file");
  }
  const { folder, open } = yield* runModel(flags);
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
  if (ids.length === 0) {
    return yield* misuse("generate needs a token at least: found none in its prompt and files");
  }
  yield* mustBeKnown(ids, folder.model.vocabulary);
  const { longest } = folder.model;
  if (ids.length + flags.maxTokens > longest) {
    return yield* new InvalidProblem({
      what: "the text with what is to come",
      needed: `at most the ${longest} tokens that the model was made for`,
      found: `${ids.length} and up to ${flags.maxTokens} more`,
    });
  }
  let ring = 0;
  const engine = yield* startEngine({
    open: Effect.map(open(ids.length + flags.maxTokens), ({ crew, session }) => {
      ring = crew.ring;
      return session;
    }),
    tokens,
    piece: tokensAtOnce,
    lost: ({ message }) => note(`annulus: beginning anew, since: ${message}`),
  });
  const began = performance.now();
  const terminal = Deno.stderr.isTerminal() && !flags.json;
  let first = 0;
  const said: Array<number> = [];
  let text = "";
  let end = "length";
  const limits = { most: flags.maxTokens, ends, stops: flags.stop };
  yield* Stream.runForEach(
    engine.say({ prompt: ids, sampling, limits }),
    (heard) =>
      Effect.suspend(() => {
        if ("read" in heard) {
          const left = (performance.now() - began) / 1000 * (heard.of / heard.read - 1);
          return terminal
            ? draw(`\x1b[2K\r${heard.read} of ${heard.of} tokens read, ${left.toFixed(0)} s left`)
            : Effect.void;
        }
        const clear = terminal && first === 0 ? draw("\x1b[2K\r") : Effect.void;
        first ||= performance.now() - began;
        said.push(heard.id);
        text += heard.text;
        end = heard.end ?? end;
        return flags.json ? Effect.void : Effect.andThen(clear, printPart(heard.text));
      }),
  );
  const all = performance.now() - began;
  if (!flags.json) {
    yield* print("");
    return yield* note(
      `annulus: ${ids.length} tokens read in ${(first / 1000).toFixed(1)} s, ${said.length} ` +
        `said in ${((all - first) / 1000).toFixed(1)} s, ${ring} ranks`,
    );
  }
  yield* printJson({
    ...{ text, end, prompt_tokens: ids.length, tokens: said, ring },
    files: files.map(({ name, ids }) => ({ name, tokens: ids.length })),
    seconds: { first: first / 1000, all: all / 1000 },
  });
}, Effect.scoped);
