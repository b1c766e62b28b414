/**
 * `annulus serve`: a model on a ring behind the OpenAI API, for clients that know that.
 *
 * @module
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { basename, resolve } from "node:path";
import { Effect, Exit, Fiber, Metric, Result, Schema, Stream } from "effect";
import { PrometheusMetrics } from "effect/observability";
import type { Asked, Piece } from "../plugins/models/continuation.ts";
import { type Said, startEngine } from "../plugins/models/engine.ts";
import { mustBeKnown, mustFit } from "../plugins/models/prompt.ts";
import { PromptWatch } from "../plugins/models/prompt_read.ts";
import { openTokenizer } from "../plugins/models/tokenizer.ts";
import { type InvalidProblem, PortUnavailable } from "../runtime/errors.ts";
import { isLoopback } from "../plugins/nats_connection.ts";
import { misuse } from "./command_line.ts";
import { type CachesFlags, type ModelFlags, runModel } from "./model_run.ts";
import { note, print } from "./output.ts";
import { samplingOf } from "./sampling.ts";
import * as metrics from "./serve/metrics.ts";
import {
  chatLogprobs,
  ChatRequest,
  type CommonRequest,
  contentOf,
  Refusal,
  textLogprobs,
  TextRequest,
  usageOf,
} from "./serve/protocol.ts";

/** All that `serve` can be told. */
export interface ServeFlags extends ModelFlags, CachesFlags {
  readonly host: string;
  readonly port: number;
  /** What clients must know. */
  readonly apiKey: string | undefined;
  readonly seed: number;
  /** Tokens of texts that have ended and are kept for those that begin like them. */
  readonly kept: number;
}

/** Bytes of a request's body, at most. */
const largestBody = 64 * 1024 * 1024;

const json = (value: unknown, status = 200): Response => Response.json(value, { status });

/** The body of a request as this schema has it. */
const bodyOf = async <S extends Schema.Decoder<unknown>>(
  request: Request,
  schema: S,
): Promise<S["Type"]> => {
  const parts: Array<Uint8Array<ArrayBuffer>> = [];
  let size = 0;
  for await (const part of request.body ?? []) {
    size += part.length;
    if (size > largestBody) {
      throw new Refusal(413, `a request may have ${largestBody} bytes: found more`);
    }
    parts.push(part);
  }
  const text = await new Blob(parts).text();
  const decoded = Schema.decodeUnknownResult(Schema.fromJsonString(schema))(text);
  if (Result.isFailure(decoded)) {
    throw new Refusal(400, decoded.failure.message.replaceAll(/\s*\n\s*/g, " "));
  }
  return decoded.success;
};

/** Says whether a client may ask, in a time that tells nothing of the key. */
const knows = (request: Request, key: string): boolean => {
  const [, given = ""] = /^Bearer (.*)$/.exec(request.headers.get("authorization") ?? "") ?? [];
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(given), digest(key));
};

/** What listens, or why it cannot. */
const listening = <A>({ host, port }: ServeFlags, listen: () => A) =>
  Effect.try({
    try: listen,
    catch: (cause) =>
      new PortUnavailable({
        address: `${host}:${port}`,
        found: cause instanceof Error ? cause.message : String(cause),
      }),
  });

/** Serves until it is interrupted. */
export const runServe = Effect.fn("runServe")(function* (flags: ServeFlags) {
  // One that everybody knows is none.
  const apiKey = flags.apiKey === "" ? undefined : flags.apiKey;
  if (!isLoopback(flags.host) && apiKey === undefined) {
    return yield* misuse(
      `--host ${flags.host} lets other machines ask: it needs --api-key, or ANNULUS_API_KEY`,
    );
  }
  const { folder, open, ...keeping } = yield* runModel(
    flags,
    ({ activity, begin, end, bytes }) =>
      activity !== "receive" ? Effect.void : Effect.andThen(
        Metric.update(metrics.hop, (end - begin) / 1000),
        Metric.update(metrics.linkBytes, bytes),
      ),
  );
  const tokens = yield* openTokenizer(folder.folder);
  const usual = yield* samplingOf(folder, { seed: flags.seed });
  const { vocabulary } = folder.model;
  /** Tokens that a text may have here. */
  let { longest } = folder.model;
  const model = basename(resolve(folder.folder));
  const engine = yield* startEngine({
    open: Effect.map(open(0), (opened) => {
      longest = opened.longest;
      return opened.session;
    }),
    kept: flags.kept,
    room: () => longest,
    ...keeping,
    tokens,
    lost: ({ message }) =>
      Effect.andThen(
        Metric.update(metrics.sessions, 1),
        note(`annulus: beginning anew, since: ${message}`),
      ),
  });
  const run = Effect.runPromiseWith(yield* Effect.context<never>());
  const fork = Effect.runForkWith(yield* Effect.context<never>());

  const asked = (
    body: CommonRequest,
    prompt: ReadonlyArray<number>,
    most: number | null | undefined,
    top: number,
  ): Asked => {
    const room = longest - prompt.length;
    const wanted = most ?? Math.max(1, Math.min(room, 4096));
    const must = (check: Effect.Effect<void, InvalidProblem>, code: string | null) => {
      const found = Effect.runSync(Effect.result(check));
      if (Result.isFailure(found)) throw new Refusal(400, found.failure.message, code);
    };
    must(mustBeKnown(prompt, vocabulary), null);
    must(
      mustFit(prompt.length, wanted, longest),
      wanted > room ? "context_length_exceeded" : null,
    );
    const { sampling, ends } = usual;
    return {
      prompt,
      sampling: {
        temperature: body.temperature ?? sampling.temperature,
        topK: body.top_k ?? sampling.topK,
        topP: body.top_p ?? sampling.topP,
        minP: body.min_p ?? sampling.minP,
        repetitionPenalty: body.repetition_penalty ?? sampling.repetitionPenalty,
        seed: body.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]!,
      },
      limits: { most: wanted, ends, stops: [body.stop ?? []].flat().filter((stop) => stop !== "") },
      top,
    };
  };

  /** What the model says, measured. */
  const say = (asked: Asked): Stream.Stream<Said, Refusal> => {
    let last = performance.now();
    let first = true;
    return engine.say(asked).pipe(
      Stream.tap((said) =>
        Effect.gen(function* () {
          yield* Metric.update(metrics.activeTexts, engine.active());
          yield* Metric.update(metrics.cacheTokens, engine.held());
          if ("read" in said) return;
          const now = performance.now();
          if (first) yield* Metric.update(metrics.promptTokens, asked.prompt.length);
          yield* Metric.update(
            first ? metrics.firstToken : metrics.betweenTokens,
            (now - last) / 1000,
          );
          yield* Metric.update(metrics.saidTokens, 1);
          [first, last] = [false, now];
        })
      ),
      Stream.mapError((error) => new Refusal(503, error.message)),
    );
  };

  /** The answer to a request, at once or as it comes. */
  const answer = async (
    body: CommonRequest,
    asked: Asked,
    gone: Promise<unknown>,
    form: {
      readonly object: string;
      readonly chunk: string;
      /** A choice, of the text of these pieces. */
      readonly choice: (text: string, pieces: ReadonlyArray<Piece>) => object;
      readonly delta: (text: string, pieces: ReadonlyArray<Piece>) => object;
      readonly begin?: object;
    },
  ): Promise<Response> => {
    const about = (object: string) => ({
      id: `${form.chunk === form.object ? "cmpl" : "chatcmpl"}-${crypto.randomUUID()}`,
      ...{ object, created: Math.floor(Date.now() / 1000), model },
    });
    const reason = (pieces: ReadonlyArray<Piece>) => pieces.at(-1)?.end ?? null;
    if (body.stream !== true) {
      const collecting = fork(Stream.runCollect(say(asked)));
      gone.catch(() => fork(Fiber.interrupt(collecting)));
      const exit = await run(Fiber.await(collecting));
      if (Exit.isFailure(exit)) {
        const error = Exit.findErrorOption(exit);
        throw error._tag === "Some" ? error.value : new Refusal(499, "the client has gone");
      }
      const pieces = exit.value.filter((said) => "id" in said);
      const read = new PromptWatch();
      for (const said of exit.value) read.see(said);
      const text = pieces.map(({ text }) => text).join("");
      return json({
        ...about(form.object),
        choices: [{
          ...{ index: 0, finish_reason: reason(pieces) },
          ...form.choice(text, pieces),
        }],
        usage: usageOf(asked.prompt.length, pieces.length, read),
      });
    }
    const same = about(form.chunk);
    const withUsage = body.stream_options?.include_usage === true;
    const event = (value: unknown) => `data: ${JSON.stringify(value)}\n\n`;
    const chunk = (choice: object, finish_reason: string | null) =>
      event({
        ...same,
        choices: [{ index: 0, ...choice, finish_reason }],
        ...(withUsage ? { usage: null } : {}),
      });
    let said = 0;
    const read = new PromptWatch();
    const encoder = new TextEncoder();
    const begin = form.begin === undefined ? "" : chunk(form.begin, null);
    const events = say(asked).pipe(
      Stream.tap((said) => Effect.sync(() => read.see(said))),
      Stream.map((said) =>
        "read" in said
          ? `: ${said.read} of ${said.of} tokens read\n\n`
          : chunk(form.delta(said.text, [said]), said.end ?? null)
      ),
      Stream.tap((text) => Effect.sync(() => void (said += text.startsWith("data") ? 1 : 0))),
      Stream.catch((error) => Stream.make(event(error.body))),
    );
    const whole = Stream.concat(
      Stream.concat(Stream.fromIterable(begin === "" ? [] : [begin]), events),
      Stream.suspend(() =>
        Stream.make(
          (withUsage
            ? event({
              ...same,
              choices: [],
              usage: usageOf(asked.prompt.length, said, read),
            })
            : "") + "data: [DONE]\n\n",
        )
      ),
    );
    return new Response(
      Stream.toReadableStream(Stream.map(whole, (text) => encoder.encode(text))),
      { headers: { "content-type": "text/event-stream", "cache-control": "no-store" } },
    );
  };
  const nameOf = (id: number) => tokens.decode([id]);

  const handle = async (request: Request, gone: Promise<unknown>): Promise<Response> => {
    const { pathname } = new URL(request.url);
    if (apiKey !== undefined && !knows(request, apiKey)) {
      throw new Refusal(401, "the API key is not the one of this server", "invalid_api_key");
    }
    const route = `${request.method} ${pathname}`;
    if (route === "GET /metrics") {
      return new Response(await run(PrometheusMetrics.format()), {
        headers: { "content-type": "text/plain; version=0.0.4" },
      });
    }
    const card = { id: model, object: "model", created: 0, owned_by: "annulus" };
    if (route === "GET /v1/models") return json({ object: "list", data: [card] });
    if (route === `GET /v1/models/${model}`) return json(card);
    const mustBeOurs = (name: string | undefined) => {
      if (name === undefined || name === model) return;
      throw new Refusal(404, `this server has "${model}": found "${name}"`, "model_not_found");
    };
    if (route === "POST /v1/chat/completions") {
      const body = await bodyOf(request, ChatRequest);
      mustBeOurs(body.model);
      const text = await run(Effect.result(tokens.chat(
        body.messages.map(({ role, content }) => ({ role, content: contentOf(content) })),
      )));
      if (Result.isFailure(text)) throw new Refusal(400, text.failure.message);
      const top = body.logprobs === true ? body.top_logprobs ?? 0 : 0;
      const most = body.max_completion_tokens ?? body.max_tokens;
      const prompt = tokens.encode(text.success, false);
      const logprobs = (pieces: ReadonlyArray<Piece>) => ({
        logprobs: body.logprobs === true ? chatLogprobs(pieces, nameOf) : null,
      });
      return await answer(body, asked(body, prompt, most, top), gone, {
        ...{ object: "chat.completion", chunk: "chat.completion.chunk" },
        begin: { delta: { role: "assistant", content: "" }, logprobs: null },
        choice: (content, pieces) => ({
          message: { role: "assistant", content, refusal: null },
          ...logprobs(pieces),
        }),
        delta: (content, pieces) => ({
          delta: content === "" ? {} : { content },
          ...logprobs(pieces),
        }),
      });
    }
    if (route === "POST /v1/completions") {
      const body = await bodyOf(request, TextRequest);
      mustBeOurs(body.model);
      const prompt = typeof body.prompt === "string" ? tokens.encode(body.prompt) : body.prompt;
      const choice = (text: string, pieces: ReadonlyArray<Piece>) => ({
        text,
        logprobs: body.logprobs == null ? null : textLogprobs(pieces, nameOf),
      });
      return await answer(
        body,
        asked(body, prompt, body.max_tokens, body.logprobs ?? 0),
        gone,
        { object: "text_completion", chunk: "text_completion", choice, delta: choice },
      );
    }
    throw new Refusal(404, `there is no ${route}`, "unknown_url");
  };

  const goodbye = new AbortController();
  const server = yield* Effect.acquireRelease(
    listening(flags, () =>
      Deno.serve({
        ...{ hostname: flags.host, port: flags.port, signal: goodbye.signal },
        onListen: () => {},
      }, async (request, { completed }) => {
        completed.catch(() => {}); // the client has gone, and `gone` tells
        let response: Response;
        try {
          response = await handle(request, completed);
        } catch (cause) {
          const refusal = cause instanceof Refusal
            ? cause
            : new Refusal(500, cause instanceof Error ? cause.message : String(cause));
          response = json(refusal.body, refusal.status);
        }
        const status = String(response.status);
        await run(Metric.update(Metric.withAttributes(metrics.requests, { status }), 1));
        return response;
      })),
    // Streams that are open would hold it until their texts end.
    (server) =>
      Effect.promise(() => {
        goodbye.abort();
        return server.finished;
      }),
  );
  const { hostname, port } = server.addr as Deno.NetAddr;
  const url = `http://${hostname.includes(":") ? `[${hostname}]` : hostname}:${port}`;
  yield* print(
    flags.json
      ? JSON.stringify({ event: "serving", url, model })
      : `${model} at ${url}/v1 until Ctrl-C`,
  );
  return yield* Effect.never;
}, Effect.scoped);
