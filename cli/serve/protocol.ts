/**
 * What clients of the OpenAI API send, and what they get: the parts of it that a model on a ring has.
 *
 * @module
 */
import { Schema } from "effect";
import type { Piece } from "../../plugins/models/continuation.ts";
import type { PromptRead } from "../../plugins/models/prompt_read.ts";
import { cacheUsage } from "../hear.ts";

const text = Schema.String;
const share = Schema.Number.check(Schema.isBetween({ minimum: 0, maximum: 1 }));
const count = Schema.Natural;

/** A message's content: a text, or parts that are texts. */
const Content = Schema.Union([
  text,
  Schema.Array(Schema.Struct({ type: Schema.Literal("text"), text })),
]);

const common = {
  model: Schema.optionalKey(text),
  max_tokens: Schema.optionalKey(Schema.NullOr(count)),
  temperature: Schema.optionalKey(
    Schema.NullOr(Schema.Number.check(Schema.isBetween({ minimum: 0, maximum: 2 }))),
  ),
  top_p: Schema.optionalKey(Schema.NullOr(share)),
  top_k: Schema.optionalKey(Schema.NullOr(count)),
  min_p: Schema.optionalKey(Schema.NullOr(share)),
  repetition_penalty: Schema.optionalKey(
    Schema.NullOr(Schema.Number.check(Schema.isGreaterThan(0))),
  ),
  seed: Schema.optionalKey(Schema.NullOr(Schema.Int)),
  stop: Schema.optionalKey(Schema.NullOr(Schema.Union([text, Schema.Array(text)]))),
  n: Schema.optionalKey(Schema.NullOr(Schema.Literal(1))),
  stream: Schema.optionalKey(Schema.NullOr(Schema.Boolean)),
  stream_options: Schema.optionalKey(
    Schema.NullOr(Schema.Struct({ include_usage: Schema.optionalKey(Schema.Boolean) })),
  ),
};

/** The body of `/v1/chat/completions`. */
export const ChatRequest = Schema.Struct({
  ...common,
  messages: Schema.NonEmptyArray(Schema.Struct({ role: text, content: Content })),
  max_completion_tokens: Schema.optionalKey(Schema.NullOr(count)),
  logprobs: Schema.optionalKey(Schema.NullOr(Schema.Boolean)),
  top_logprobs: Schema.optionalKey(
    Schema.NullOr(count.check(Schema.isLessThanOrEqualTo(20))),
  ),
});
/** The body of `/v1/completions`. */
export const TextRequest = Schema.Struct({
  ...common,
  prompt: Schema.Union([text, Schema.Array(Schema.Natural)]),
  logprobs: Schema.optionalKey(Schema.NullOr(count.check(Schema.isLessThanOrEqualTo(20)))),
});

/** What both kinds of requests have. */
export type CommonRequest = Omit<typeof TextRequest.Type, "prompt" | "logprobs">;

/** The text of a content. */
export const contentOf = (content: typeof Content.Type): string =>
  typeof content === "string" ? content : content.map(({ text }) => text).join("");

/** What a client did wrong, or we. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string | null = null,
    readonly param: string | null = null,
  ) {
    super(message);
  }

  /** As the API says it. */
  get body() {
    const type = this.status < 500 ? "invalid_request_error" : "server_error";
    return { error: { message: this.message, type, param: this.param, code: this.code } };
  }
}

/** How much was read and said, and of what was read, how much was there already and how the rest was read. */
export const usageOf = (prompt: number, said: number, read: PromptRead) => ({
  prompt_tokens: prompt,
  completion_tokens: said,
  total_tokens: prompt + said,
  prompt_tokens_details: cacheUsage(read),
});

/** Names of tokens and what they had, as `logprobs` of a chat says it. */
export const chatLogprobs = (
  pieces: ReadonlyArray<Piece>,
  nameOf: (id: number) => string,
) => ({
  content: pieces.map(({ id, logprob, top }) => ({
    ...named(nameOf(id), logprob),
    top_logprobs: top.map(([id, logprob]) => named(nameOf(id), logprob)),
  })),
  refusal: null,
});
const named = (token: string, logprob: number) => ({
  token,
  logprob,
  bytes: [...new TextEncoder().encode(token)],
});

/** The same as `logprobs` of a text says it. */
export const textLogprobs = (
  pieces: ReadonlyArray<Piece>,
  nameOf: (id: number) => string,
) => {
  let at = 0;
  return {
    tokens: pieces.map(({ id }) => nameOf(id)),
    token_logprobs: pieces.map(({ logprob }) => logprob),
    top_logprobs: pieces.map(({ top }) =>
      Object.fromEntries(top.map(([id, logprob]) => [nameOf(id), logprob]))
    ),
    text_offset: pieces.map(({ id }) => {
      const offset = at;
      at += nameOf(id).length;
      return offset;
    }),
  };
};
