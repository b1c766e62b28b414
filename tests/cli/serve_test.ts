/** `annulus serve` with the client that most programs have: the official one of OpenAI. */
import { Effect } from "effect";
import assert from "node:assert/strict";
import OpenAI, { APIError } from "openai";
import { writeConstructedModel } from "../../examples/08_constructed_model.ts";
import { Annulus, annulus } from "../support/cli.ts";
import { inFolder } from "../support/in_folder.ts";
import { missingServer, natsServer } from "../support/nats.ts";

/** A text in which every name is once, with what is asked for behind it. */
const facts = Array.from({ length: 12 }, (_, i) => {
  const name = `Q${String.fromCharCode(66 + i)}Z${i % 10}K`;
  return { name, value: `${31 * i + 100}${7 * i + 10}` };
});
const book = `In the beginning was a list.\n${
  facts.map(({ name, value }) => `The code of ${name}=${value};\n`).join("")
}It ends here.\n`;
const question = (i: number) => `${book}And the code of ${facts[i]!.name}=`;

/** A server over a model in a folder, and a client. */
const serving = async (
  folder: string,
  args: ReadonlyArray<string>,
  use: (client: OpenAI, server: Annulus, url: string) => Promise<void>,
) => {
  await writeConstructedModel(`${folder}/tiny`);
  await using server = new Annulus([
    ...["serve", `${folder}/tiny`, "--port", "0", "--json", ...args],
  ]);
  const { url } = JSON.parse(await server.line(/"event":"serving"/));
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "the key", maxRetries: 0 });
  await use(client, server, url);
  server.interrupt();
  assert.equal((await server.finished()).code, 130);
};

const local = ["--device", "reference", "--ring", "2", "--api-key", "the key"];

inFolder("the official client chats, streams, stops and cancels", async (folder) => {
  await serving(folder, local, async (client, _, url) => {
    assert.deepEqual((await client.models.list()).data.map(({ id }) => id), ["tiny"]);
    const ask = (i: number) => ({
      model: "tiny",
      messages: [{ role: "user", content: question(i) }] as const,
      max_tokens: 40,
    });
    const whole = await client.chat.completions.create({
      ...ask(3),
      messages: [...ask(3).messages],
      stop: [";"],
      logprobs: true,
      top_logprobs: 2,
    });
    const [choice] = whole.choices;
    assert.equal(choice!.message.content, facts[3]!.value);
    assert.equal(choice!.finish_reason, "stop");
    assert.equal(whole.usage!.prompt_tokens, question(3).length);
    assert.equal(whole.usage!.completion_tokens, facts[3]!.value.length + 1);
    const { content } = choice!.logprobs!;
    assert.equal(content![0]!.token, facts[3]!.value[0]);
    assert.ok(content![0]!.logprob > -0.1 && content![0]!.top_logprobs.length === 2);

    const stream = await client.chat.completions.create({
      ...ask(5),
      messages: [...ask(5).messages],
      max_tokens: 4,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "", reason: string | null = null, tokens = 0;
    for await (const { choices: [choice], usage } of stream) {
      text += choice?.delta.content ?? "";
      reason = choice?.finish_reason ?? reason;
      tokens = usage?.completion_tokens ?? tokens;
    }
    assert.deepEqual([text, reason, tokens], [facts[5]!.value.slice(0, 4), "length", 4]);

    const plain = await client.completions.create({
      ...{ model: "tiny", prompt: question(1), max_tokens: 30, stop: ";", logprobs: 1 },
    });
    assert.equal(plain.choices[0]!.text, facts[1]!.value);
    assert.equal(plain.choices[0]!.logprobs!.tokens!.join(""), `${facts[1]!.value};`);

    // What begins like a text that was there need not be read again.
    const again = await client.chat.completions.create({
      model: "tiny",
      messages: [
        { role: "user", content: question(3) },
        { role: "assistant", content: facts[3]!.value },
        { role: "user", content: `;\nAnd the code of ${facts[7]!.name}=` },
      ],
      ...{ max_tokens: 40, stop: [";"] },
    });
    assert.equal(again.choices[0]!.message.content, facts[7]!.value);
    assert.equal(
      again.usage!.prompt_tokens_details!.cached_tokens,
      question(3).length + facts[3]!.value.length,
    );
    const { cached_from, read_by } = again.usage!.prompt_tokens_details as unknown as Record<
      string,
      unknown
    >;
    assert.equal(cached_from, "memory");
    const read = `;\nAnd the code of ${facts[7]!.name}=`.length;
    assert.deepEqual(read_by, { ring: 0, star: read });

    // A client that goes away leaves nothing behind that grows.
    const controller = new AbortController();
    const endless = await client.chat.completions.create({
      ...ask(0),
      messages: [...ask(0).messages],
      max_tokens: 100_000,
      stream: true,
    }, { signal: controller.signal });
    let seen = 0;
    for await (const _ of endless) {
      if (++seen === 5) controller.abort();
    }
    const headers = { authorization: "Bearer the key" };
    const metrics = async () => await (await fetch(`${url}/metrics`, { headers })).text();
    for (;;) {
      // Each of these is a step of the texts that there are.
      await client.completions.create({ model: "tiny", prompt: "a", max_tokens: 1 });
      if (/^annulus_active_texts(\{.*\})? 0$/m.test(await metrics())) break;
    }
    const text_ = await metrics();
    assert.match(text_, /^annulus_time_to_first_token_seconds_count(\{.*\})? \d+$/m);
    for (const name of ["generated_tokens", "hop_seconds_count", "link_bytes", "cache_tokens"]) {
      const [, value] = new RegExp(`^annulus_${name}(?:\\{.*\\})? (\\d+)$`, "m").exec(text_) ?? [];
      assert.ok(Number(value) > 0, `${name}: ${value}`);
    }
  });
});

inFolder("eight clients at once get what each of them would alone", async (folder) => {
  await serving(folder, local, async (client) => {
    const answers = await Promise.all(
      facts.slice(0, 8).map(async (_, i) => {
        const { choices } = await client.completions.create({
          ...{ model: "tiny", prompt: question(i), max_tokens: 30, stop: ";" },
        });
        return choices[0]!.text;
      }),
    );
    assert.deepEqual(answers, facts.slice(0, 8).map(({ value }) => value));
  });
});

inFolder("what a client may not ask is refused as the API refuses it", async (folder) => {
  await serving(folder, local, async (client, _, url) => {
    const refused = async (status: number, sentence: RegExp, asking: Promise<unknown>) => {
      const error = await asking.then(() => undefined, (error) => error);
      assert.ok(error instanceof APIError, String(error));
      assert.equal(error.status, status, error.message);
      assert.match(error.message, sentence);
    };
    const text = (more: object) =>
      client.completions.create({ model: "tiny", prompt: "abc", max_tokens: 3, ...more });
    await refused(404, /this server has "tiny": found "gpt-9"/, text({ model: "gpt-9" }));
    await refused(400, /the prompt must be one token at least: found none/, text({ prompt: "" }));
    await refused(400, /to come must be one token at least: found 0/, text({ max_tokens: 0 }));
    await refused(
      400,
      /at most \d+ tokens: found 3 and up to 16777216 more/,
      text({ max_tokens: 2 ** 24 }),
    );
    const long = await text({ max_tokens: 2 ** 24 }).catch((error) => error);
    assert.equal(long.code, "context_length_exceeded", String(long));
    await refused(400, /temperature/, text({ temperature: 9 }));
    await refused(400, /\bn\b/, text({ n: 2 }));
    await refused(400, /id from 0 to 255.*found 300/, text({ prompt: [1, 300] }));
    await refused(
      400,
      /messages/,
      client.chat.completions.create({ model: "tiny", messages: [] }),
    );
    const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "another", maxRetries: 0 });
    await refused(401, /API key/, stranger.models.list());
    const odd = await fetch(`${url}/v1/completions`, {
      method: "POST",
      headers: { authorization: "Bearer the key" },
      body: "{",
    });
    assert.equal(odd.status, 400);
    assert.ok((await odd.json()).error.message.length > 0);
    // And it still answers.
    assert.equal((await text({})).choices.length, 1);
  });
});

inFolder("a server for other machines needs a key", async (folder) => {
  await writeConstructedModel(`${folder}/tiny`);
  const { code, stderr } = await annulus(["serve", `${folder}/tiny`, "--host", "0.0.0.0"]);
  assert.equal(code, 2);
  assert.match(stderr, /it needs --api-key/);
});

const onServer = (test: (url: string) => Promise<void>) =>
  Effect.runPromise(Effect.scoped(Effect.gen(function* () {
    const { url } = yield* natsServer();
    yield* Effect.promise(() => test(url));
  })));

inFolder(
  "a node that dies in the middle of an answer changes nothing of it",
  (folder) =>
    onServer(async (nats) => {
      await writeConstructedModel(`${folder}/tiny`);
      const member = ["--nats", nats, "--cluster", "models"];
      const node = () =>
        new Annulus([
          ...["node", ...member, "--device", "reference", "--model", `${folder}/tiny`, "--json"],
        ]);
      await using first = node();
      await using second = node();
      await using third = node();
      await Promise.all([first, second, third].map((node) => node.line(/"event":"waiting"/)));
      await serving(folder, [...member, "--ring", "3"], async (client, server) => {
        // It goes on with the list from the first name on.
        const ask = async (heard: (pieces: number) => void) => {
          const stream = await client.completions.create({
            ...{ model: "tiny", prompt: question(0), max_tokens: 150, stream: true },
          });
          let text = "", pieces = 0;
          for await (const { choices: [choice] } of stream) {
            text += choice?.text ?? "";
            heard(++pieces);
          }
          return text;
        };
        const undisturbed = await ask(() => {});
        assert.equal(undisturbed.length, 150);
        assert.ok(undisturbed.startsWith(facts[0]!.value));
        const disturbed = await ask((pieces) => {
          if (pieces === 40) second.kill("SIGKILL");
        });
        assert.equal(disturbed, undisturbed);
        await server.errorLine(/beginning anew, since: /);
      });
    }),
  missingServer,
);
