/**
 * `annulus logits`: tokens in, logits out. For tests, and for whoever samples elsewhere.
 *
 * @module
 */
import { Effect, Result, Schema } from "effect";
import { mustBeKnown } from "../plugins/models/prompt.ts";
import { createSafetensors } from "../plugins/safetensors.ts";
import { bytesOf } from "../runtime/dtype.ts";
import { FileInvalid, InvalidProblem } from "../runtime/errors.ts";
import { version } from "../runtime/version.ts";
import { misuse } from "./command_line.ts";
import { type ModelFlags, runModel } from "./model_run.ts";
import { print, printJson } from "./output.ts";

/** All that `logits` can be told. */
export interface LogitsFlags extends ModelFlags {
  /** A JSON array of ids. */
  readonly tokens: string;
  readonly out: string;
  /** Of how many tokens, from the last one backwards. */
  readonly last: number;
}

const decodeIds = Schema.decodeUnknownResult(
  Schema.fromJsonString(Schema.Array(Schema.Number)),
);

const readIds = Effect.fnUntraced(function* (path: string) {
  const refuse = (found: string) =>
    new FileInvalid({ attempted: "read", file: path, needed: "a JSON array of token ids", found });
  const text = yield* Effect.tryPromise({
    try: () => Deno.readTextFile(path),
    catch: (cause) => refuse(cause instanceof Deno.errors.NotFound ? "no such file" : `${cause}`),
  });
  const ids = decodeIds(text);
  if (Result.isFailure(ids)) return yield* refuse(ids.failure.message);
  if (ids.success.length === 0) return yield* refuse("an empty one");
  return ids.success;
});

/** Writes the logits of the last tokens, [last, vocabulary] in float32. */
export const runLogits = Effect.fn("runLogits")(function* (flags: LogitsFlags) {
  const ids = yield* readIds(flags.tokens);
  if (flags.last > ids.length) {
    return yield* misuse(
      `--last needs a number up to the ${ids.length} tokens of "${flags.tokens}": found ${flags.last}`,
    );
  }
  const began = performance.now();
  const { folder: { model }, open } = yield* runModel(flags);
  yield* mustBeKnown(ids, model.vocabulary);
  if (ids.length > model.longest) {
    return yield* new InvalidProblem({
      what: "the text",
      needed: `at most the ${model.longest} tokens that the model was made for`,
      found: String(ids.length),
    });
  }
  const shape = [flags.last, model.vocabulary];
  const writer = yield* createSafetensors(
    flags.out,
    [{ name: "logits", dtype: "F32", shape }],
    { format: `annulus ${version}` },
  );
  const { crew, session } = yield* open(ids.length);
  const [logits] = yield* session.extend([{ sequence: 0, ids, wanted: flags.last }]);
  yield* writer.write("logits", [{ offset: 0, length: logits!.length }], bytesOf(logits!));
  yield* writer.commit;
  const report = {
    ...{ out: flags.out, shape, tokens: ids.length, ring: crew.ring },
    devices: crew.equipment.devices.map(({ name }) => name),
    seconds: (performance.now() - began) / 1000,
  };
  if (flags.json) return yield* printJson(report);
  yield* print(
    `logits [${shape.join(", ")}] of ${ids.length} tokens in "${flags.out}", ` +
      `${crew.ring} ranks, ${report.seconds.toFixed(1)} s`,
  );
}, Effect.scoped);
