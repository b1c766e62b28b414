/**
 * A model's tokenizer and chat template, from its folder.
 *
 * @module
 */
import { join } from "node:path";
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import { Effect } from "effect";
import { type FileInvalid, ModelInvalid } from "../../runtime/errors.ts";
import { readText } from "./files.ts";

/** One thing that was said in a conversation. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/** Text to tokens and back. */
export interface TextTokens {
  /** @param special Whether to add what a text begins with; a chat's text has it already. */
  readonly encode: (text: string, special?: boolean) => ReadonlyArray<number>;
  /** Without special tokens. */
  readonly decode: (ids: ReadonlyArray<number>) => string;
  /** A conversation as the text whose continuation is the next answer. */
  readonly chat: (messages: ReadonlyArray<ChatMessage>) => Effect.Effect<string, ModelInvalid>;
}

const parsed = (folder: string, name: string, text: string) =>
  Effect.try({
    try: (): Record<string, unknown> => JSON.parse(text),
    catch: (cause) =>
      new ModelInvalid({
        model: folder,
        needed: `its ${name} must be JSON`,
        found: cause instanceof Error ? cause.message : String(cause),
      }),
  });

/** The text of a special token, which may be an object. */
const special = (token: unknown): string =>
  typeof token === "string"
    ? token
    : typeof token === "object" && token !== null && "content" in token
    ? String(token.content)
    : "";

/** Reads `tokenizer.json` and `tokenizer_config.json`. */
export const openTokenizer = Effect.fn("openTokenizer")(function* (
  folder: string,
): Effect.fn.Return<TextTokens, FileInvalid | ModelInvalid> {
  const read = (name: string) =>
    Effect.flatMap(readText(folder, name), (text) => parsed(folder, name, text));
  const json = yield* read("tokenizer.json");
  const config = yield* read("tokenizer_config.json");
  const own = yield* Effect.promise(() =>
    Deno.readTextFile(join(folder, "chat_template.jinja")).catch(() => undefined)
  );
  const odd = (needed: string) => (cause: unknown) =>
    new ModelInvalid({
      model: folder,
      needed,
      found: cause instanceof Error ? cause.message : String(cause),
    });
  const tokenizer = yield* Effect.try({
    try: () => new Tokenizer(json, config),
    catch: odd("its tokenizer.json must be one that is known"),
  });
  const template = own ?? config["chat_template"];
  return {
    encode: (text, special = true) =>
      text === "" && !special ? [] : tokenizer.encode(text, { add_special_tokens: special }).ids,
    decode: (ids) =>
      ids.length === 0 ? "" : tokenizer.decode([...ids], {
        skip_special_tokens: true,
        // Or a later token would change what an earlier one gave.
        clean_up_tokenization_spaces: false,
      }),
    chat: (messages) =>
      typeof template !== "string"
        ? Effect.fail(odd("it must have a chat template")("none"))
        : Effect.try({
          try: () =>
            new Template(template).render({
              messages,
              add_generation_prompt: true,
              bos_token: special(config["bos_token"]),
              eos_token: special(config["eos_token"]),
            }),
          catch: odd("its chat template must take this conversation"),
        }),
  };
});
