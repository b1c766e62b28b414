/** A model for scripts: what it says, what it remembers, and what it refuses. */
import { Deferred, Effect, Fiber } from "effect";
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { writeConstructedModel } from "../../examples/08_constructed_model.ts";
import { inProcess } from "../../plugins/memory.ts";
import { modelsIn, openModel } from "../../plugins/models.ts";
import type { Said } from "../../plugins/models/engine.ts";
import {
  type ModelOptions,
  type RunningModel,
  startModel,
} from "../../plugins/models/start_model.ts";
import { usualOf } from "../../plugins/models/usual.ts";
import { reference } from "../../plugins/reference.ts";
import { referenceKernel } from "../../kernels/reference.ts";
import { longestContext } from "../../runtime/context.ts";
import { inFolder } from "../support/in_folder.ts";

const foreign = fileURLToPath(new URL("../foreign/qwen3", import.meta.url));

const withModel = (
  folder: string,
  options: ModelOptions,
  use: (model: RunningModel) => Effect.Effect<void, unknown>,
) =>
  Effect.gen(function* () {
    const found = yield* openModel(folder);
    yield* Effect.flatMap(startModel(found, options), use).pipe(
      Effect.provide(inProcess(reference, modelsIn([found]))),
    );
  }).pipe(Effect.scoped, Effect.runPromise);

inFolder("a model goes on with a text, and does not read again what it has", async (folder) => {
  await writeConstructedModel(folder);
  await withModel(folder, { ring: 3 }, (model) =>
    Effect.gen(function* () {
      const heard: Array<Said> = [];
      const begin = "The ship=Pequod;\nThe captain=Ahab;\n";
      const first = yield* model.goOn(`${begin}The ship=`, {
        stops: [";"],
        heard: (said) => Effect.sync(() => void heard.push(said)),
      });
      assert.deepEqual(
        [first.text, first.end, first.prompt.tokens, first.prompt.cached],
        ["Pequod", "stop", begin.length + 9, 0],
      );
      assert.equal(heard.map((said) => "text" in said ? said.text : "").join(""), "Pequod");
      const question = { role: "user", content: `${begin}And now, the captain=` };
      const reply = yield* model.reply([question], { stops: [";"] });
      assert.deepEqual([reply.text, reply.prompt.cached], ["Ahab", begin.length]);
      const next = yield* model.reply([
        question,
        { role: "assistant", content: reply.text },
        { role: "user", content: ";\nThe ship=" },
      ], { most: 3 });
      assert.deepEqual([next.text, next.end], ["Peq", "length"]);
      assert.equal(next.prompt.cached, reply.prompt.tokens + reply.text.length);
    }));
});

Deno.test("a text that is too long for the room is refused", () =>
  withModel(foreign, { ring: 1, room: 20 }, (model) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(model.goOn("What is", { most: 20 }));
      assert.match(error.message, /at most 20 tokens: found \d and up to 20 more/);
      assert.equal((yield* model.goOn("What is", { most: 3 })).ids.length, 3);
    })));

Deno.test("a model has room for what its memory holds, and is refused where it holds nothing", async () => {
  const found = await Effect.runPromise(Effect.scoped(openModel(foreign)));
  const devices = [referenceKernel().info];
  const equipment = { devices, memory: () => 0, together: true };
  const placing = { model: found.model, ring: 2, cache: "f32", equipment } as const;
  /** The least memory that has room for so many tokens. */
  const memoryFor = (tokens: number): number => {
    let [low, high] = [1, 2 ** 40];
    while (high - low > 1) {
      const memory = Math.floor((low + high) / 2);
      if (longestContext({ ...placing, memory }) >= tokens) high = memory;
      else low = memory;
    }
    return high;
  };
  const [little, more] = [memoryFor(20), memoryFor(40)];
  await withModel(foreign, { ring: 2, memory: little }, (model) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(model.goOn("What is", { most: 20 }));
      assert.match(error.message, /at most 20 tokens/);
    }));
  await withModel(
    foreign,
    { ring: 2, memory: more },
    (model) =>
      Effect.map(model.goOn("What is", { most: 20 }), ({ ids }) => assert.equal(ids.length, 20)),
  );
  const refused = (options: ModelOptions, why: RegExp) =>
    assert.rejects(withModel(foreign, options, () => Effect.void), why);
  await refused({ ring: 2, memory: 1000 }, /bytes for weights and activations on each of 2 ranks/);
  await refused({ ring: 2, memory: little, room: 40 }, /20 tokens would fit/);
  for (const ring of [0, -1, 1.5, NaN]) {
    await refused(
      { ring },
      RegExp(`the ring size must be a whole number, 1 at least: found ${ring}`),
    );
  }
  await refused({ ring: 1, memory: NaN }, /the memory must be a number of bytes.*: found NaN/);
  for (const room of [0, 1.5, Infinity]) {
    await refused({ ring: 1, room }, RegExp(`the room must be a whole number.*: found ${room}`));
  }
});

inFolder("nothing to go on from, or with, is refused, and other texts go on", async (folder) => {
  await writeConstructedModel(folder);
  await withModel(folder, { ring: 1 }, (model) =>
    Effect.gen(function* () {
      // This tokenizer adds nothing before a text.
      assert.deepEqual(model.tokens.encode(""), []);
      const refused = (asked: Effect.Effect<unknown, Error>) =>
        Effect.map(Effect.flip(asked), ({ message }) => message);
      const begun = yield* Deferred.make<void>();
      const growing = yield* Effect.forkChild(
        model.goOn("The ship=Pequod; The ship=", {
          most: 20,
          heard: () => Effect.asVoid(Deferred.succeed(begun, undefined)),
        }),
      );
      yield* Deferred.await(begun);
      assert.match(yield* refused(model.goOn("")), /the prompt must be one token at least: found/);
      for (const most of [0, -1, NaN]) {
        assert.match(
          yield* refused(model.goOn("abc", { most })),
          /what is to come must be one token at least: found (0|-1|NaN)$/,
        );
      }
      assert.equal((yield* Fiber.join(growing)).text, "Pequod; The ship=Peq");
    }));
});

inFolder("generation_config.json says how to choose tokens, or is refused", async (path) => {
  const model = { folder: path, config: { eos_token_id: 7 } as never };
  const usual = () => Effect.runPromise(Effect.result(usualOf(model)));
  const found = await usual();
  assert.ok(found._tag === "Success");
  assert.deepEqual([found.success.sampling.temperature, [...found.success.ends]], [0, [7]]);
  await Deno.writeTextFile(
    `${path}/generation_config.json`,
    JSON.stringify({ do_sample: true, top_k: 40, top_p: null, eos_token_id: [1, 2], odd: {} }),
  );
  const own = await usual();
  assert.ok(own._tag === "Success");
  const { temperature, topK, topP } = own.success.sampling;
  assert.deepEqual([temperature, topK, topP, ...own.success.ends], [1, 40, 1, 1, 2]);
  await Deno.writeTextFile(`${path}/generation_config.json`, '{"top_k": "many"}');
  const odd = await usual();
  assert.ok(odd._tag === "Failure");
  assert.match(odd.failure.message, /its generation_config\.json must say how to choose tokens/);
});
