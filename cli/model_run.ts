/**
 * A model on a crew, as every command that runs one finds it: the folder is checked before anybody is asked, and nodes
 * have the same.
 *
 * @module
 */
import { Effect, Exit, Schedule, Scope } from "effect";
import { openModel } from "../plugins/models.ts";
import { CacheFolder } from "../plugins/models/cache_folder.ts";
import { openSavedTexts } from "../plugins/models/saved_texts.ts";
import { contextRefusal, longestContext, turnLimits } from "../runtime/context.ts";
import { openSession } from "../runtime/session.ts";
import type { DType } from "../runtime/dtype.ts";
import type { Interval } from "../runtime/timeline.ts";
import type { AccessFlags } from "./access.ts";
import { findCrew } from "./crews.ts";
import { linkOf } from "./link_choice.ts";
import { draw, note, sizeInWords } from "./output.ts";
import { knownPlugins } from "./plugins.ts";

/** What every command that runs a model can be told. */
export interface ModelFlags extends AccessFlags {
  readonly model: string;
  readonly ring: number | undefined;
  readonly device: string;
  readonly plugin: ReadonlyArray<string>;
  readonly link: "memory" | "nats" | undefined;
  readonly nats: string | undefined;
  readonly cluster: string | undefined;
  readonly cache: DType;
  readonly json: boolean;
}

/** Where to keep keys and values of texts beyond the process. */
export interface CachesFlags {
  readonly caches: string | undefined;
  /** Bytes of all that is there. */
  readonly cachesLimit: number;
}

/** Nodes that a lost session has left may not know it yet. */
const waitForNodes = { times: 20, schedule: Schedule.spaced("500 millis") };

/**
 * Lines for standard error that wait until an answer has been printed, which would have them in its middle.
 */
export const laterNotes = () => {
  const lines: Array<string> = [];
  return {
    tell: (line: string) => Effect.sync(() => void lines.push(line)),
    flush: Effect.suspend(() => Effect.forEach(lines.splice(0), note, { discard: true })),
  };
};

/**
 * Opens the folder, and says how to find or start a crew that runs the model with so many tokens: once, and again after it
 * was lost.
 */
export const runModel = Effect.fn("runModel")(function* (
  flags: ModelFlags & Partial<CachesFlags> & { readonly window?: number | undefined },
  interval?: (interval: Interval) => Effect.Effect<void>,
  tell: (line: string) => Effect.Effect<void> = note,
) {
  const link = yield* linkOf(flags);
  const folder = yield* openModel(flags.model);
  const apart = flags.cluster !== undefined;
  const caches = flags.caches === undefined
    ? undefined
    : yield* CacheFolder.open(flags.caches, flags.cachesLimit ?? Infinity);
  const { devices } = yield* knownPlugins(flags.plugin, flags.device);
  const terminal = Deno.stderr.isTerminal() && !flags.json;
  const progress = (done: number, all: number) =>
    terminal
      ? draw(
        done < all ? `\x1b[2K\rloading ${sizeInWords(done)} of ${sizeInWords(all)}` : "\x1b[2K\r",
      )
      : Effect.void;
  const openWith = Effect.fnUntraced(function* (wanted: number | undefined, tokens: number) {
    // The session says goodbye to its members before they are let go.
    const scope = yield* Effect.acquireRelease(
      Scope.make(),
      (scope) => Scope.close(scope, Exit.void),
    );
    const crew = yield* Scope.provide(
      findCrew({ ...flags, ring: wanted, link, devices, model: { folder, progress }, caches }),
      scope,
    );
    const { ring, equipment } = crew;
    const placing = { model: folder.model, ring, cache: flags.cache, equipment };
    const refusal = contextRefusal(placing, tokens);
    if (refusal !== undefined) return yield* refusal;
    const session = yield* openSession({
      ...{ model: folder.hash, shape: folder.model, ring },
      cache: flags.cache,
      ...turnLimits(placing),
      parts: caches !== undefined,
      ...(flags.window === undefined ? {} : { window: flags.window }),
      ...(interval === undefined ? {} : { interval }),
    }).pipe(Effect.provideContext(crew.services));
    const without = session.parts?.there.indexOf(undefined) ?? -1;
    if (without >= 0) {
      yield* note(
        `annulus: no text is kept: rank ${without} has no folder for it (node --caches DIR)`,
      );
    }
    return { crew, session, longest: Math.min(folder.model.longest, longestContext(placing)) };
  });
  let opened = false;
  const open = (tokens: number) =>
    Effect.suspend(() => {
      if (!opened || flags.cluster === undefined) {
        opened = true;
        return openWith(flags.ring, tokens);
      }
      // With whoever is left.
      return Effect.retry(openWith(undefined, tokens), {
        ...waitForNodes,
        while: (error) => error._tag === "NotEnoughNodes",
      });
    });
  const saved = caches && (yield* openSavedTexts({
    ...{ folder: caches, model: folder.hash, apart },
    shape: { ...folder.model, dtype: flags.cache },
    wrote: ({ name, tokens, bytes, seconds }) =>
      tell(
        `annulus: cache ${name} has ${tokens} tokens, ${sizeInWords(bytes)}, written in ` +
          `${seconds.toFixed(1)} s`,
      ),
    tell: (words) => tell(`annulus: ${words}`),
  }));
  return { folder, open, ...(saved === undefined ? {} : { saved }) };
});
