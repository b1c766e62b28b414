/**
 * The verbs of models and their flags.
 *
 * @module
 */
import { Config, Effect, Option } from "effect";
import { Argument, Command, Flag } from "effect/cli";
import { dtypes } from "../runtime/dtype.ts";
import { listCaches, removeCaches, verifyCaches } from "./caches.ts";
import { runChat } from "./chat.ts";
import { atLeast, boolean, caches as cachesOptions, crew, json, optional } from "./flags.ts";
import { runGenerate } from "./generate.ts";
import { runLogits } from "./logits.ts";
import { runNeedle } from "./needle.ts";
import { runPull } from "./pull.ts";
import { runServe } from "./serve.ts";

/** How every command that runs a model finds it and who computes. */
const modelFlags = {
  model: Argument.String("MODEL").pipe(
    Argument.withDescription("A folder with config.json and weights, as Hugging Face writes it"),
  ),
  ...crew,
  cache: Flag.Literals("cache", [...dtypes]).pipe(
    Flag.withDefault("f32"),
    Flag.withDescription("Format in which keys and values are held"),
  ),
  json,
};

/** `annulus logits`. */
export const logits = Command.make(
  "logits",
  {
    ...modelFlags,
    tokens: Flag.String("tokens").pipe(Flag.withDescription("A JSON array of token ids")),
    out: Flag.String("out").pipe(
      Flag.withDescription("Where to write logits [last, vocabulary], a safetensors file"),
    ),
    last: Flag.Int("last").pipe(
      atLeast(1),
      Flag.withDefault(1),
      Flag.withDescription("Of how many tokens, from the last one backwards"),
    ),
  },
  runLogits,
).pipe(Command.withDescription("The logits of a model, of tokens in a file"));

const share = (flag: Flag.Flag<number>) =>
  Flag.filter(flag, (value) => value >= 0 && value <= 1, () => "a number from 0 to 1");
/** How tokens are chosen. */
const samplingFlags = {
  temperature: optional(Flag.Finite("temperature").pipe(atLeast(0))),
  topK: optional(Flag.Int("top-k").pipe(atLeast(0))),
  topP: optional(Flag.Finite("top-p").pipe(share)),
  minP: optional(Flag.Finite("min-p").pipe(share)),
  repetitionPenalty: optional(
    Flag.Finite("repetition-penalty").pipe(Flag.filter((x) => x > 0, () => "a number above 0")),
  ),
  seed: Flag.Int("seed").pipe(Flag.withDefault(0)),
  stop: Flag.String("stop").pipe(
    Flag.atLeast(0),
    Flag.withDescription("A text that ends the answer; may be given several times"),
  ),
  maxTokens: Flag.Int("max-tokens").pipe(atLeast(1), Flag.withDefault(256)),
};

/** `annulus generate`. */
export const generate = Command.make(
  "generate",
  {
    ...modelFlags,
    prompt: Argument.String("PROMPT").pipe(
      Argument.withDescription("What to go on with; - reads standard input"),
      Argument.optional,
      Argument.map(Option.getOrUndefined),
    ),
    file: Flag.String("file").pipe(
      Flag.atLeast(0),
      Flag.withDescription("A text file, or a folder of such, to come before the prompt"),
    ),
    ...cachesOptions,
    ...samplingFlags,
  },
  runGenerate,
).pipe(Command.withDescription("Goes on with a text"));

/** `annulus chat`. */
export const chat = Command.make(
  "chat",
  {
    ...modelFlags,
    file: Flag.String("file").pipe(
      Flag.atLeast(0),
      Flag.withDescription("A text file, or a folder of such, to talk about"),
    ),
    system: optional(
      Flag.String("system").pipe(Flag.withDescription("What the model is told before all else")),
    ),
    ...cachesOptions,
    ...samplingFlags,
  },
  runChat,
).pipe(Command.withDescription("A conversation, a question a line"));

/** `annulus pull`. */
export const pull = Command.make(
  "pull",
  {
    name: Argument.String("ORG/NAME"),
    revision: Flag.String("revision").pipe(Flag.withDefault("main")),
    out: optional(
      Flag.String("out").pipe(
        Flag.withDescription("Where to put it; a folder of its name by default"),
      ),
    ),
    offline: boolean("offline").pipe(
      Flag.withDescription("Ask nobody: only look whether all is there as it was"),
    ),
    silence: Flag.Finite("silence").pipe(
      Flag.filter((seconds) => seconds > 0, () => "more than 0 seconds"),
      Flag.withDefault(60),
      Flag.withDescription(
        "Seconds without a byte after which a connection is given up, and that of a file tried again",
      ),
    ),
    json,
  },
  runPull,
).pipe(
  Command.withDescription("Fetches a model from the Hugging Face hub, or from HF_ENDPOINT"),
);

/** `annulus serve`. */
export const serve = Command.make(
  "serve",
  {
    ...modelFlags,
    host: Flag.String("host").pipe(Flag.withDefault("127.0.0.1")),
    port: Flag.Int("port").pipe(
      Flag.filter((port) => port >= 0 && port < 65_536, () => "a number from 0 to 65535"),
      Flag.withDefault(8080),
      Flag.withDescription("0 for one that is free"),
    ),
    apiKey: optional(
      Flag.String("api-key").pipe(
        Flag.withFallbackConfig(Config.String("ANNULUS_API_KEY")),
        Flag.withDescription("What clients must know; ANNULUS_API_KEY by default"),
      ),
    ),
    ...cachesOptions,
    seed: samplingFlags.seed,
    kept: Flag.Int("kept").pipe(
      atLeast(0),
      Flag.withDefault(2 ** 17),
      Flag.withDescription("Tokens of texts that have ended, kept for those that begin like them"),
    ),
  },
  runServe,
).pipe(Command.withDescription("A model behind the OpenAI API"));

const cachesFlags = {
  dir: Argument.String("DIR").pipe(Argument.withDescription("The folder of --caches")),
  names: Argument.String("NAME").pipe(
    Argument.variadic(),
    Argument.withDescription("Some of them; all by default"),
  ),
  json,
};

/** `annulus caches`. */
export const caches = Command.make("caches").pipe(
  Command.withDescription("What --caches has kept of texts"),
  Command.withSubcommands([
    Command.make("list", cachesFlags, listCaches).pipe(
      Command.withDescription("Which texts there are"),
    ),
    Command.make(
      "verify",
      cachesFlags,
      Effect.fn(function* (flags) {
        if (!(yield* verifyCaches(flags))) Deno.exitCode = 1;
      }),
    ).pipe(Command.withDescription("Reads all files, and says which are not as they were")),
    Command.make("remove", cachesFlags, removeCaches).pipe(
      Command.withDescription("Removes them"),
    ),
  ]),
);

/** `annulus needle`. */
export const needle = Command.make(
  "needle",
  {
    ...modelFlags,
    lengths: Flag.String("lengths").pipe(
      Flag.withDefault("4k,16k,64k"),
      Flag.withDescription("Tokens of the texts, question and answer included"),
    ),
    depths: Flag.String("depths").pipe(
      Flag.withDefault("0..100/10"),
      Flag.withDescription("Where the first needle is, in per cent of the text"),
    ),
    seeds: Flag.Int("seeds").pipe(atLeast(1), Flag.withDefault(1)),
    needles: Flag.Int("needles").pipe(
      atLeast(1),
      Flag.withDefault(1),
      Flag.withDescription("In one text; each is asked for"),
    ),
    haystack: Flag.String("haystack").pipe(
      Flag.atLeast(0),
      Flag.withDescription("A text file or a folder of such; speeches in the public domain else"),
    ),
    window: optional(
      Flag.Int("window").pipe(
        atLeast(1),
        Flag.withDescription("Let no layer see more than W tokens, for comparison"),
      ),
    ),
    out: Flag.String("out").pipe(
      Flag.withDescription("A folder for needle.json, needle.svg and needle.png"),
    ),
  },
  runNeedle,
).pipe(Command.withDescription("Is what is hidden in a long text found again?"));
