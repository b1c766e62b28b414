/**
 * What a rank does about parts: tells which it has, keeps its part of a sequence and begins another with one that was kept,
 * while turns go on.
 *
 * @module
 */
import { Cause, Effect, Exit, Option, type Scope, Semaphore } from "effect";
import type { Decoder } from "./decoder.ts";
import type { Inference } from "./inference.ts";
import type { LinkError } from "./errors.ts";
import type { Link } from "./link.ts";
import type { Model } from "./model.ts";
import { type KeptPart, type PartHead, Parts } from "./parts.ts";
import { type Order, tell, type Told } from "./parts_messages.ts";
import { tokensIn } from "./placement.ts";

/** The model of a job as parts are of it: a window changes keys and values as other weights would. */
export const modelOf = ({ model, window }: Pick<Inference, "model" | "window">): string =>
  window === undefined ? model : `${model} window ${window}`;

/** Begins, and gives what carries out an order: it returns at once, and what became of it is told later. */
export const tendParts = Effect.fn("tendParts")(function* (
  job: Inference,
  rank: number,
  model: Model,
  decoder: Decoder,
  link: Link,
): Effect.fn.Return<(order: Order) => Effect.Effect<void>, LinkError, Scope.Scope> {
  const scope = yield* Effect.scope;
  const found = yield* Effect.serviceOption(Parts);
  const one = yield* Semaphore.make(1);
  let n = 0;
  const say = (message: Told) =>
    Semaphore.withPermits(one, 1)(Effect.suspend(() => tell(link, job, rank, n++, message)));
  const place = Option.isSome(found);
  yield* say({ told: "there", place, parts: place ? yield* found.value.there : [] });

  const headOf = (name: string, part: number, tokens: number): PartHead => ({
    ...{ name, part, ring: job.ring, model: modelOf(job), tokens },
    shape: {
      ...{ layers: model.layers, kvHeads: model.kvHeads, headDim: model.headDim },
      dtype: job.cache,
    },
  });
  const done = Effect.fnUntraced(function* (order: Order) {
    if (!place) return yield* Effect.fail(new Error("it has no folder for caches"));
    const parts = found.value;
    switch (order.order) {
      case "keep": {
        const { cache } = decoder.sequence(order.id);
        return yield* parts.keep(headOf(order.name, rank, cache.tokens), cache);
      }
      case "use": {
        const { part, sum } = order.parts[rank]!;
        const cache = decoder.begin(order.id, order.placement, order.tokens);
        const tokens = tokensIn(order.placement[rank]!);
        return yield* parts.read(headOf(order.name, part, tokens), sum, cache);
      }
      case "forget":
        return yield* parts.forget(order.name);
    }
  });
  const reply = ({ op }: Order, exit: Exit.Exit<KeptPart | void, Error>): Told => {
    if (Exit.isSuccess(exit)) {
      return { told: "done", op, ...(exit.value === undefined ? {} : { kept: exit.value }) };
    }
    const cause = Cause.squash(exit.cause);
    const reason = cause instanceof Error ? cause.message : String(cause);
    return { told: "failed", op, reason };
  };
  return (order) =>
    done(order).pipe(
      Effect.exit,
      // A link that fails is noticed by the turns.
      Effect.flatMap((exit) => Effect.ignore(say(reply(order, exit)))),
      // From now on: the next turn may change what the order is about.
      Effect.forkIn(scope, { startImmediately: true }),
      Effect.asVoid,
    );
});
