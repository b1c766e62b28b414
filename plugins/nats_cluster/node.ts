/**
 * A node: answers roll calls and takes ranks of one run at a time. What it has computed of a rank outlives the links of
 * an epoch, so that a run goes on after another node was lost; where nobody asks for it, it is let go.
 *
 * @module
 */
import { Effect, Exit, Fiber, FiberSet, Result, Scope } from "effect";
import type { Device } from "../../runtime/device.ts";
import type { NotPermitted, ServerUnavailable } from "../../runtime/errors.ts";
import { isInference, jobOf, type Work } from "../../runtime/job.ts";
import { Links } from "../../runtime/link.ts";
import type { Answer, NodeCard, RankEvent, Request } from "../../runtime/membership.ts";
import type { RankError } from "../../runtime/rank.ts";
import { runRank } from "../../runtime/run_rank.ts";
import { Tenure } from "../../runtime/tenure.ts";
import type { Definition } from "../../runtime/variant.ts";
import { version } from "../../runtime/version.ts";
import type { Nats } from "../nats.ts";
import { type Roster, rosterOf } from "../nats_roster.ts";
import {
  answers,
  barredFrom,
  cards,
  events,
  nameIn,
  requests,
  subjects,
  subscribed,
} from "./control.ts";

/** The state of a node, told to its operator. */
export type NodeState =
  | { readonly state: "waiting" }
  | { readonly state: "working"; readonly run: string; readonly rank: number }
  | {
    readonly state: "failed";
    readonly run: string;
    readonly rank: number;
    readonly reason: string;
  };

/** How long a driver may take to hear why a rank failed. */
const accountWithin = "1 second";

/** How long a device may take to end what it has begun when the node ends: one that hangs never does. */
const stopWithin = "10 seconds";

/** What is computed of a rank is kept for so long while no driver asks for it. */
const grace = "4 seconds";

/** After these a rank's state is as good as before: something else than this node failed. */
const keptAfter: ReadonlyArray<RankError["_tag"]> = ["LinkFailed", "LinkClosed"];

/** A rank in the hands of this node. */
interface HeldRank {
  readonly tenure: Tenure;
  readonly scope: Scope.Closeable;
  /** What it does in this epoch. */
  work: Fiber.Fiber<void> | undefined;
}

/** The run that a node works for. */
interface Holding {
  readonly run: string;
  epoch: number;
  readonly ranks: Map<number, HeldRank>;
  stopping: boolean;
  /** Lets go of everything when nobody asks in time. */
  lettingGo: Fiber.Fiber<void> | undefined;
}

/**
 * Makes this process a node. Ends only with its server, or where that does not let it be one.
 *
 * @param card All but the state, which changes.
 * @param known The attention variants that it computes.
 * @param roster The same that the node's links have.
 */
export const serveNode = Effect.fn("serveNode")(function* (
  { control }: Pick<Nats, "control">,
  cluster: string,
  card: Omit<NodeCard, "state">,
  known: ReadonlyArray<Definition>,
  tell: (state: NodeState) => Effect.Effect<void>,
  roster: Roster = rosterOf(),
) {
  const names = subjects(cluster);
  const listening = [names.roll, names.node(card)];
  const barred = yield* Effect.forkScoped(
    barredFrom(control, cluster, "be a node", listening),
    { startImmediately: true },
  );
  const roll = yield* subscribed(control, names.roll);
  const asked = yield* subscribed(control, names.node(card));
  yield* Effect.promise(() => control.flush());
  const links = yield* Links;
  const fork = yield* FiberSet.makeRuntime<Device | Links>();
  const forkAlone = Effect.runForkWith(yield* Effect.context<Device | Links>());
  let holding: Holding | undefined;
  yield* Effect.addFinalizer(() => {
    const going = forkAlone(letGo(holding?.run));
    return Effect.timeoutOption(Fiber.join(going), stopWithin);
  });

  const drop = ({ scope }: HeldRank) => Scope.close(scope, Exit.void);
  /** Ends everything that is done for a run and forgets it. */
  const letGo = (run: string | undefined) =>
    Effect.gen(function* () {
      const ending = holding;
      if (ending === undefined || ending.run !== run) return;
      yield* Fiber.interruptAll(worksOf(ending));
      for (const held of ending.ranks.values()) yield* drop(held);
      if (holding !== ending) return;
      holding = undefined;
      yield* tell({ state: "waiting" });
    }).pipe(Effect.uninterruptible);

  /** Somebody asks for what is held; false if it was let go just now. */
  const keep = (ours: Holding) =>
    Effect.gen(function* () {
      if (ours.lettingGo !== undefined) yield* Fiber.interrupt(ours.lettingGo);
      ours.lettingGo = undefined;
      return holding === ours;
    });

  /** A rank has ended its epoch: nothing is left of the run, or somebody has to ask for what is. */
  const settle = (ending: Holding) =>
    Effect.suspend(() => {
      if (holding !== ending || worksOf(ending).length > 0 || ending.stopping) return Effect.void;
      if (ending.ranks.size === 0) return letGo(ending.run);
      if (ending.lettingGo !== undefined) return Effect.void;
      ending.lettingGo = fork(Effect.delay(Effect.suspend(() => letGo(ending.run)), grace));
      return Effect.void;
    });

  const work = Effect.fnUntraced(function* (job: Work, { tenure }: HeldRank) {
    const { run, epoch } = job;
    const { rank } = tenure;
    const lane = yield* links.open({ run, epoch, self: rank, peer: "driver", lane: "events" });
    const emit = (event: RankEvent) => Effect.ignore(lane.send(events.encode(event)));
    // The first cause is heard before anything is closed for it.
    const failed = (tag: string, reason: string) =>
      Effect.andThen(
        emit({ event: "failed", tag, reason }),
        Effect.ignore(Effect.timeout(lane.drain, accountWithin)),
      );
    yield* runRank(job, tenure, {
      interval: (interval) => emit({ event: "interval", interval }),
      beat: (beat) => emit({ event: "beat", beat }),
      finished: (summary) => emit({ event: "finished", summary }),
      failed: (error) => failed(error._tag, error.message),
    });
  }, Effect.scoped);

  /** One epoch of a rank, and what becomes of the rank then. */
  const serve = (job: Work, ours: Holding, held: HeldRank) =>
    Effect.gen(function* () {
      const { rank } = held.tenure;
      yield* tell({ state: "working", run: job.run, rank });
      const exit = yield* Effect.exit(work(job, held));
      held.work = undefined;
      const error = Exit.isFailure(exit) ? Exit.findErrorOption(exit) : undefined;
      const kept = Exit.isFailure(exit) && error?._tag === "Some" &&
        keptAfter.includes(error.value._tag);
      if (Exit.isFailure(exit)) {
        const reason = error?._tag === "Some" ? error.value.message : String(exit.cause);
        yield* tell({ state: "failed", run: job.run, rank, reason });
      }
      if (!kept) {
        ours.ranks.delete(rank);
        yield* drop(held);
      }
      yield* settle(ours);
    });

  const take = (
    job: Work,
    rank: number,
    members: ReadonlyArray<string>,
  ): Effect.Effect<Answer> =>
    Effect.gen(function* () {
      const refuse = (reason: string): Answer => ({ accepted: false, reason });
      if (holding !== undefined && holding.run !== job.run) {
        return { accepted: false, reason: "it is busy with another run", busy: true };
      }
      const ours = holding ??= {
        ...{ run: job.run, epoch: job.epoch, ranks: new Map(), stopping: false },
        lettingGo: undefined,
      };
      const before = ours.ranks.get(rank);
      if (ours.stopping || job.epoch < ours.epoch) return refuse(`it is in epoch ${ours.epoch}`);
      if (job.epoch === ours.epoch && before?.work !== undefined) return { accepted: true };
      if (
        !isInference(job) && job.standings?.[rank]?.loaded && before?.tenure.loaded === undefined
      ) {
        if (ours.ranks.size === 0) holding = undefined;
        return refuse(`it has let go of rank ${rank}`);
      }
      // It was about to let go, and now it has.
      if (!(yield* keep(ours))) return yield* take(job, rank, members);
      ours.epoch = job.epoch;
      roster.ranks = members;
      const held = before ?? (yield* Effect.map(
        Scope.make(),
        (scope): HeldRank => ({
          tenure: new Tenure(rank, scope, () => ours.ranks.size),
          scope,
          work: undefined,
        }),
      ));
      ours.ranks.set(rank, held);
      held.work = forkAlone(serve(job, ours, held));
      return { accepted: true };
    });

  const regroup = (run: string, epoch: number): Effect.Effect<Answer> =>
    Effect.gen(function* () {
      const ours = holding;
      if (ours === undefined || ours.run !== run) return { holds: [] };
      if (!(yield* keep(ours))) return { holds: [] };
      if (epoch > ours.epoch) {
        ours.epoch = epoch;
        ours.stopping = true;
        fork(Effect.gen(function* () {
          yield* Fiber.interruptAll(worksOf(ours));
          for (const held of ours.ranks.values()) held.work = undefined;
          ours.stopping = false;
          yield* settle(ours);
        }));
      }
      if (ours.stopping) return { stopping: true };
      if (worksOf(ours).length === 0) yield* settle(ours);
      return {
        holds: [...ours.ranks.values()].map(({ tenure: { rank, standing } }) => ({
          rank,
          standing,
        })),
      };
    });

  const answer = (request: Request): Effect.Effect<Answer> => {
    if (request.ask === "ping") return Effect.succeed({ accepted: true });
    if (request.ask === "release") {
      // A device that has begun something ends it first; nobody else is to wait for that.
      const going = forkAlone(letGo(request.run));
      return Effect.as(Effect.timeoutOption(Fiber.join(going), accountWithin), { accepted: true });
    }
    if (request.ask === "regroup") return regroup(request.run, request.epoch);
    const { version: theirs, job, rank, members } = request;
    const refuse = (reason: string) => Effect.succeed<Answer>({ accepted: false, reason });
    if (theirs !== version) return refuse(`it runs annulus ${version}, the driver ${theirs}`);
    const ring = "kind" in job ? job.ring : job.weights.length;
    if (rank >= ring) return refuse(`rank ${rank} is none of a ring of ${ring}`);
    if ("kind" in job) return take(job, rank, members);
    return Result.match(jobOf(job, known), {
      onFailure: refuse,
      onSuccess: (job) => take(job, rank, members),
    });
  };

  const introduce = Effect.forever(Effect.gen(function* () {
    const { reply } = yield* roll;
    if (reply === undefined) return;
    const state = holding === undefined ? "idle" : "busy";
    control.publish(`${reply}.${nameIn(card)}`, cards.encode({ ...card, state }));
  }));
  const listen = Effect.forever(Effect.gen(function* () {
    const { bytes, reply } = yield* asked;
    const said = yield* Result.match(requests.decode(bytes), {
      onFailure: (why) =>
        Effect.succeed<Answer>({
          accepted: false,
          reason: `it does not understand the offer: ${why}`,
        }),
      onSuccess: answer,
    });
    if (reply !== undefined) control.publish(reply, answers.encode(said));
  }));
  yield* tell({ state: "waiting" });
  return yield* Effect.raceAllFirst<Effect.Effect<never, NotPermitted | ServerUnavailable>>([
    introduce,
    listen,
    control.lost,
    Fiber.join(barred),
  ]);
}, Effect.scoped);

const worksOf = ({ ranks }: Holding): ReadonlyArray<Fiber.Fiber<void>> =>
  [...ranks.values()].flatMap(({ work }) => work ?? []);
