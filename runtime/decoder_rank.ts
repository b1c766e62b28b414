/**
 * One rank of a model, wherever it runs: loads the weights, and does turn after turn until the driver has enough.
 *
 * @module
 */
import { Effect, Option, Result } from "effect";
import { beating } from "./beat.ts";
import { Decoder } from "./decoder.ts";
import { Device } from "./device.ts";
import { bytesOf } from "./dtype.ts";
import { FrameRejected, ModelInvalid } from "./errors.ts";
import type { Inference } from "./inference.ts";
import { type Ends, Links, type Slot, slotName } from "./link.ts";
import { openMark } from "./manifest.ts";
import { Models } from "./model.ts";
import type { Observer } from "./rank.ts";
import { tendParts } from "./rank_parts.ts";
import { Recorder } from "./recorder.ts";
import { whileSound } from "./sound.ts";
import { receiveBytes, sendBytes } from "./transfer.ts";
import { countsOf, decodeTurn, largestTurn, transfersOf } from "./turn.ts";

/** Runs one rank of a model until the driver closes its link. */
export const inferRank = Effect.fn("inferRank")(function* (
  job: Inference,
  rank: number,
  observer: Observer,
) {
  const device = yield* Device;
  const links = yield* Links;
  const recorder = yield* Recorder.start(rank, observer.interval);
  let turns = 0;
  yield* Effect.forkScoped(
    beating(rank, recorder, () => ({ merged: turns, ranks: 1 }), observer.beat),
  );
  const peers = Array.from({ length: job.ring }, (_, peer) => peer).filter((peer) => peer !== rank);
  const openAll = (peers: ReadonlyArray<Slot>, lane: Pick<Ends, "lane"> = {}) =>
    Effect.map(
      Effect.forEach(
        peers,
        (peer) =>
          Effect.map(
            links.open({ run: job.run, epoch: job.epoch, self: rank, peer, ...lane }),
            (link) => [peer, link] as const,
          ),
        { concurrency: "unbounded" },
      ),
      (opened) => new Map(opened),
    );
  const [opened, answers, lanes] = yield* Effect.all([
    openAll(["driver", ...peers]),
    openAll(peers, { lane: "answers" }),
    openAll(job.parts === true ? ["driver"] : [], { lane: "parts" }),
  ], { concurrency: "unbounded" });
  const driver = opened.get("driver")!;
  // Only now: it may take minutes, and nobody waits so long for a link to open.
  const models = yield* Effect.serviceOption(Models);
  if (Option.isNone(models)) {
    return yield* new ModelInvalid({
      ...{ model: job.model, needed: "a member needs its folder (--model)", found: "no model" },
    });
  }
  const { model, programs } = yield* models.value.open(job.model, job.window);
  const decoder = new Decoder({
    ...{ job, rank, model, device, programs, recorder, links: opened, answers },
  });
  const lane = lanes.get("driver");
  const tend = lane === undefined ? undefined : yield* tendParts(job, rank, model, decoder, lane);

  const odd = (field: string, needed: string, found: string) =>
    new FrameRejected({
      ...{ run: job.run, peer: slotName("driver"), what: "a turn", field, needed, found },
    });
  const next = Effect.gen(function* () {
    const transfers = transfersOf(job, rank, turns);
    const length = openMark(yield* receiveBytes(driver, transfers.length));
    if (length > largestTurn) {
      return yield* odd("length", `at most ${largestTurn} bytes`, `${length}`);
    }
    const text = yield* receiveBytes(driver, transfers.turn(length));
    const turn = decodeTurn(text);
    if (Result.isFailure(turn)) return yield* odd("text", "a turn", turn.failure);
    const { arriving, wanted } = countsOf(turn.success, job.ring, rank);
    const ids = yield* receiveBytes(driver, transfers.ids(arriving));
    decoder.regroup(turn.success);
    if (tend !== undefined) yield* Effect.forEach(turn.success.orders, tend);
    // It may be about what is kept alone.
    if (turn.success.sequences.length > 0) {
      const logits = yield* Effect.scoped(decoder.turn(turn.success, new Uint32Array(ids.buffer)));
      const bytes = 4 * wanted * model.vocabulary;
      yield* sendBytes(driver, transfers.logits(bytes), bytesOf(logits));
    }
    turns++;
  });
  yield* whileSound([...opened, ...answers, ...lanes].map(([, link]) => link), Effect.forever(next))
    .pipe(
      Effect.catchTag(
        "LinkClosed",
        (error) =>
          error.done && error.peer === slotName("driver") ? Effect.void : Effect.fail(error),
      ),
    );
  yield* observer.finished({
    ...{ rank, device: device.info, sentBytes: 0, sentGradientBytes: 0 },
    kvPeakBytes: decoder.cacheBytes,
    rssBytes: Deno.memoryUsage().rss,
    links: links.counts(),
  });
});
