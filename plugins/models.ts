/**
 * Models in folders, as Hugging Face writes them: `config.json`, weights and a tokenizer. A family is a file of
 * `models/families/`.
 *
 * @module
 */
import { Effect, Exit, Layer, Scope, Semaphore } from "effect";
import { Device } from "../runtime/device.ts";
import { type FileInvalid, ModelInvalid } from "../runtime/errors.ts";
import { type LoadedModel, type Model, Models } from "../runtime/model.ts";
import { window } from "./attention.ts";
import { type Config, parseConfig } from "./models/config.ts";
import { type Family, modelOf } from "./models/family.ts";
import { llama } from "./models/families/llama.ts";
import { mistral } from "./models/families/mistral.ts";
import { qwen2 } from "./models/families/qwen2.ts";
import { qwen3 } from "./models/families/qwen3.ts";
import {
  asInFiles,
  checkWeights,
  fillWeights,
  hashOf,
  openWeights,
  readText,
  type WeightFiles,
} from "./models/files.ts";

/** All that are known. */
export const families: ReadonlyArray<Family> = [llama, mistral, qwen2, qwen3];

/** A folder that was found to hold a model. */
export interface ModelFolder {
  readonly folder: string;
  readonly config: Config;
  readonly model: Model;
  /** Of the config and all weights. */
  readonly hash: string;
  readonly weights: WeightFiles;
}

/** Opens a model's folder and checks what is in it; its files are closed with the scope. */
export const openModel: (
  folder: string,
) => Effect.Effect<ModelFolder, FileInvalid | ModelInvalid, Scope.Scope> = Effect.fn("openModel")(
  function* (folder) {
    const text = yield* readText(folder, "config.json");
    const config = yield* Effect.fromResult(parseConfig(folder, text));
    const family = families.find(({ architecture }) => config.architectures.includes(architecture));
    if (family === undefined) {
      return yield* new ModelInvalid({
        model: folder,
        needed: `its architecture must be one of ${
          families.map(({ architecture }) => architecture).join(", ")
        }`,
        found: config.architectures.join(", ") || "none",
      });
    }
    const known = yield* Effect.fromResult(modelOf(folder, family, config));
    const weights = yield* openWeights(folder);
    yield* checkWeights(folder, known.weights, weights);
    const model = { ...known, weights: asInFiles(known.weights, weights) };
    return { folder, config, model, weights, hash: yield* hashOf(text, weights) };
  },
);

/** Makes models of folders ready to run on this process's device: loaded once, when they are first asked for. */
export const modelsIn = (
  folders: ReadonlyArray<ModelFolder>,
  progress: (done: number, all: number) => Effect.Effect<void> = () => Effect.void,
): Layer.Layer<Models, never, Device> =>
  Layer.effect(
    Models,
    Effect.gen(function* () {
      const { info, programs } = yield* Device;
      const scope = yield* Effect.scope;
      const loaded = new Map(
        yield* Effect.forEach(folders, ({ hash, folder, model, weights }) =>
          Effect.gen(function* () {
            const one = yield* Semaphore.make(1);
            let there: LoadedModel | undefined;
            const load = Effect.gen(function* () {
              if (programs === undefined) {
                return yield* new ModelInvalid({
                  model: folder,
                  needed: "its device must run programs",
                  found: `"${info.name}", which knows attention alone`,
                });
              }
              // What is not loaded to its end leaves no memory behind, and may be tried again.
              const own = yield* Scope.fork(scope);
              return yield* Effect.gen(function* () {
                const place = yield* Scope.provide(programs(model.weights), own);
                yield* fillWeights(model.weights, weights, place, progress);
                return there = { model, programs: place };
              }).pipe(
                Effect.onExit((exit) =>
                  Exit.isSuccess(exit) ? Effect.void : Scope.close(own, exit)
                ),
              );
            });
            const open = Effect.suspend(() => there === undefined ? load : Effect.succeed(there));
            return [hash, Semaphore.withPermits(one, 1)(open)] as const;
          })),
      );
      return Models.of({
        open: (hash, size) => {
          const found = loaded.get(hash);
          if (found !== undefined) {
            return size === undefined ? found : Effect.map(found, (loaded) => ({
              ...loaded,
              model: {
                ...loaded.model,
                attention: (layer) => [...loaded.model.attention(layer), window({ size })],
              },
            }));
          }
          return Effect.fail(
            new ModelInvalid({
              model: hash.slice(0, 12),
              needed: "every member must have a folder with the same config and weights",
              found: loaded.size === 0
                ? "no model"
                : [...loaded.keys()].map((hash) => hash.slice(0, 12)).join(", "),
            }),
          );
        },
      });
    }),
  );
