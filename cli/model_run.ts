/**
 * A model on a crew, as every command that runs one finds it: the folder is checked before anybody is asked, and nodes
 * have the same.
 *
 * @module
 */
import { Effect, Exit, Schedule, Scope } from "effect";
import { openModel } from "../plugins/models.ts";
import { contextRefusal, longestContext } from "../runtime/context.ts";
import { openSession } from "../runtime/session.ts";
import type { DType } from "../runtime/dtype.ts";
import type { Interval } from "../runtime/timeline.ts";
import type { AccessFlags } from "./access.ts";
import { findCrew } from "./crews.ts";
import { linkOf } from "./link_choice.ts";
import { draw, sizeInWords } from "./output.ts";
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

/** Nodes that a lost session has left may not know it yet. */
const waitForNodes = { times: 20, schedule: Schedule.spaced("500 millis") };

/**
 * Opens the folder, and says how to find or start a crew that runs the model with so many tokens: once, and again after it
 * was lost.
 */
export const runModel = Effect.fn("runModel")(function* (
  flags: ModelFlags & { readonly window?: number | undefined },
  interval?: (interval: Interval) => Effect.Effect<void>,
) {
  const link = yield* linkOf(flags);
  const folder = yield* openModel(flags.model);
  const { devices } = yield* knownPlugins(flags.plugin, flags.device);
  const terminal = Deno.stderr.isTerminal() && !flags.json;
  const progress = (done: number, all: number) =>
    terminal
      ? draw(
        done < all ? `\x1b[2K\rloading ${sizeInWords(done)} of ${sizeInWords(all)}` : "\x1b[2K\r",
      )
      : Effect.void;
  const openWith = Effect.fnUntraced(function* (ring: number | undefined, tokens: number) {
    // The session says goodbye to its members before they are let go.
    const scope = yield* Effect.acquireRelease(
      Scope.make(),
      (scope) => Scope.close(scope, Exit.void),
    );
    const crew = yield* Scope.provide(
      findCrew({ ...flags, ring, link, devices, model: { folder, progress } }),
      scope,
    );
    const placing = {
      ...{ model: folder.model, ring: crew.ring, cache: flags.cache, memory: crew.memory },
      together: link === "memory",
    };
    const refusal = contextRefusal(placing, tokens);
    if (refusal !== undefined) return yield* refusal;
    const session = yield* openSession({
      ...{ model: folder.hash, vocabulary: folder.model.vocabulary, ring: crew.ring },
      cache: flags.cache,
      ...(flags.window === undefined ? {} : { window: flags.window }),
      ...(interval === undefined ? {} : { interval }),
    }).pipe(Effect.provideContext(crew.services));
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
  return { folder, open };
});
