/**
 * The crew of nodes: the driver's side of a cluster. The node at index r takes rank r; when it is lost, another one does.
 *
 * @module
 */
import { type Duration, Effect, Fiber, Option, Result, Schedule, type Scope } from "effect";
import { Crew, type Regrouped } from "../../runtime/crew.ts";
import {
  NodeRefused,
  type NotPermitted,
  RankFailed,
  VersionMismatch,
} from "../../runtime/errors.ts";
import { cardOf, isInference, type Job, planOfJob, type Work } from "../../runtime/job.ts";
import { lackingFor } from "../../runtime/lacking.ts";
import { Links } from "../../runtime/link.ts";
import type { NodeCard } from "../../runtime/membership.ts";
import type { Plan } from "../../runtime/plan.ts";
import { nothing, type Standing } from "../../runtime/standing.ts";
import { version } from "../../runtime/version.ts";
import type { Line } from "../nats_links/line.ts";
import { type Roster, rosterOf } from "../nats_roster.ts";
import { ask, events, gone, homecoming, largestMessage, nameIn, requests } from "./control.ts";

/** How often the server may answer before a node does, to an offer, or asked what it holds; else the node is lost. */
const [offerPatience, patience] = [10, 4] as const;
/** How often before those that wait do, and before anybody does where nobody is left otherwise. */
const [sparePatience, lastPatience] = [2, 10] as const;
/** How long nodes may take to forget a run that is over, until somebody waits for it no more. */
const releaseWithin: Duration.Input = "2 seconds";
/** How often the server may answer before a node that is cut off has heard that a run is over. */
const releasePatience = 60;
/** How often a node is asked that does not know yet that its run is over, and in between. */
const [busyAttempts, askAgain] = [20, "500 millis"] as const;
/** How long a node may take to stop: its device ends what it has begun. */
const stopWithin: Duration.Input = "2 minutes";

const placeOf = ({ id, host }: NodeCard): string => `${id} on ${host}`;
const nameOf = (node: NodeCard): string => `node ${placeOf(node)}`;

const distinct = (nodes: ReadonlyArray<NodeCard>): ReadonlyArray<NodeCard> => [
  ...new Map(nodes.map((node) => [node.id, node])).values(),
];

/** Failures of a node itself, which gets nothing more to do in the run. */
const ownFailures = ["DeviceFailed", "Stuck"];

/** What a node says that cannot take a rank at all; another one may. */
const refusals = ["NodeRefused", "PlanRefused", "VariantInvalid"];

/** Two members that mean different things by the name of a variant: none of them begins then. */
const oddPlugin = (job: Job, nodes: ReadonlyArray<NodeCard>): string | undefined => {
  for (const { definition: { name, hash } } of job.problem.attention) {
    if (hash === undefined) continue;
    const members = nodes.map((node) => ({
      member: `on ${nameOf(node)}`,
      hash: node.plugins.find((plugin) => plugin.name === name)?.hash,
    }));
    const [odd] = members.filter((member) => member.hash !== hash);
    if (odd === undefined) continue;
    const other = members.find((member) => member.hash !== odd.hash && member.hash !== undefined) ??
      { member: "at the driver", hash };
    const found = odd.hash === undefined ? "not there" : `${odd.hash.slice(0, 12)}`;
    return `attention "${name}" must be the same everywhere: found ${other.hash!.slice(0, 12)} ` +
      `${other.member} and ${found} ${odd.member}`;
  }
};

const mismatchOf = (node: NodeCard): VersionMismatch | undefined =>
  node.version === version ? undefined : new VersionMismatch({
    node: placeOf(node),
    has: node.version,
    needed: version,
  });

/** Refuses nodes of another version. */
export const sameVersion = (
  nodes: ReadonlyArray<NodeCard>,
): Effect.Effect<void, VersionMismatch> => {
  const [odd] = nodes.flatMap((node) => mismatchOf(node) ?? []);
  return odd === undefined ? Effect.void : Effect.fail(odd);
};

/** Why a node cannot have so many ranks of a job, as far as its card tells. */
const lackOf = (job: Job, plan: Plan, node: NodeCard, ranks: number): string | undefined =>
  mismatchOf(node)?.message ?? oddPlugin(job, [node]) ??
    lackingFor(job, plan, node.device, ranks)?.message;

const isBusy = (answer: Effect.Success<ReturnType<typeof ask>>): boolean =>
  Option.isSome(answer) && Result.isSuccess(answer.value) && "busy" in answer.value.success &&
  answer.value.success.busy === true;

/** Who has which rank from now on. */
interface Places extends Regrouped {
  readonly members: ReadonlyArray<NodeCard>;
}

/**
 * Leaves ranks with members that are there, and gives the others to nodes that can take them: to one that waits, or else
 * to the one with the fewest ranks. Or says which rank nobody can take, and what they lack who are there.
 *
 * @param holds What members have that are there.
 */
const place = (
  job: Job,
  plan: Plan,
  memberOf: ReadonlyArray<NodeCard>,
  holds: ReadonlyMap<string, ReadonlyMap<number, Standing>>,
  others: ReadonlyArray<NodeCard>,
): Places | { readonly rank: number; readonly lacks: ReadonlyArray<string> } => {
  const members = [...memberOf];
  const taken = new Set<string>();
  const moved: Array<Regrouped["moved"][number]> = [];
  const isThere = ({ id }: NodeCard) => holds.has(id) || taken.has(id);
  const ranksOf = ({ id }: NodeCard) => members.filter((node) => node.id === id).length;
  const standings = memberOf.map((node, rank) => holds.get(node.id)?.get(rank) ?? nothing);
  for (const [rank, node] of memberOf.entries()) {
    if (isThere(node)) continue;
    const fresh = others.filter((node) => !taken.has(node.id));
    const alive = distinct(members.filter(isThere)).toSorted((a, b) => ranksOf(a) - ranksOf(b));
    const candidates = [...fresh, ...alive];
    const lacks = candidates.map((node) =>
      lackOf(job, plan, node, isThere(node) ? ranksOf(node) + 1 : 1)
    );
    const next = candidates.find((_, i) => lacks[i] === undefined);
    if (next === undefined) {
      return {
        rank,
        lacks: candidates.map((node, i) => `${nameOf(node)}: ${lacks[i]}`),
      };
    }
    members[rank] = next;
    taken.add(next.id);
    moved.push({ rank, to: nameOf(next) });
  }
  return { members, standings, moved };
};

/**
 * The crew of these nodes.
 *
 * @param spare The nodes that wait now, for ranks that are lost; asked until the server has answered so many times.
 * @param roster The same that the driver's links have.
 */
export const crewOf = Effect.fn("natsCrew")(function* (
  control: Line,
  cluster: string,
  nodes: ReadonlyArray<NodeCard>,
  spare: (patience: number) => Effect.Effect<ReadonlyArray<NodeCard>, NotPermitted>,
  roster: Roster = rosterOf(),
) {
  const links = yield* Links;
  const memberOf = [...nodes];
  roster.ranks = memberOf.map(nameIn);
  const failed = new Set<string>();
  /** Nodes that could not take what they were given, and why. */
  const unfit = new Map<string, string>();
  const scope = yield* Effect.scope;
  const awaited = yield* homecoming(control);
  const request = (node: NodeCard, bytes: Uint8Array, patience: number) =>
    ask(control, cluster, node, bytes, patience, awaited);

  /** Gives a rank to a node, in an epoch. */
  const offer = Effect.fnUntraced(function* (
    work: Work,
    rank: number,
    node: NodeCard,
    blame: (tag: string, reason: string) => RankFailed,
  ) {
    const failed = (tag: string, reason: string) =>
      blame(tag, new NodeRefused({ node: placeOf(node), reason }).message);
    const bytes = requests.encode({
      ...{ ask: "offer", version, job: isInference(work) ? work : cardOf(work), rank },
      members: roster.ranks,
    });
    if (bytes.length > largestMessage) {
      return yield* failed(
        "NodeRefused",
        `the tables of its attention make an offer of ${bytes.length} bytes, and a node takes ` +
          `${largestMessage}`,
      );
    }
    // Whoever took it before may have let go of it since, and can take it anew.
    const had = !isInference(work) && work.standings?.[rank]?.loaded === true;
    const refused = (reason: string) => failed(had ? "NodeLost" : "NodeRefused", reason);
    const answer = yield* Effect.repeat(request(node, bytes, offerPatience), {
      while: isBusy,
      times: busyAttempts,
      schedule: Schedule.spaced(askAgain),
    });
    if (Option.isNone(answer)) return yield* failed("NodeLost", "it does not answer");
    if (Result.isFailure(answer.value)) {
      return yield* refused(`its answer is odd: ${answer.value.failure}`);
    }
    const said = answer.value.success;
    if (!("accepted" in said)) return yield* refused("it answers another question");
    if (!said.accepted) return yield* refused(said.reason);
  });

  /** What a node holds once it has stopped; nothing if it does not answer. */
  const stopped = (node: NodeCard, run: string, epoch: number, patience: number) => {
    const bytes = requests.encode({ ask: "regroup", run, epoch });
    const asking: Effect.Effect<
      ReadonlyMap<number, Standing> | undefined,
      never,
      Scope.Scope
    > = Effect.flatMap(
      request(node, bytes, patience),
      (answer) => {
        if (Option.isNone(answer) || Result.isFailure(answer.value)) {
          return Effect.succeed(undefined);
        }
        const said = answer.value.success;
        if ("stopping" in said) return Effect.delay(asking, "50 millis");
        if (!("holds" in said)) return Effect.succeed(undefined);
        const holds = new Map(said.holds.map(({ rank, standing }) => [rank, standing]));
        // It lets go of what nobody asks for, and others may need longer to stop.
        const again = Effect.forever(Effect.delay(request(node, bytes, patience), "1 second"));
        return Effect.as(Effect.forkScoped(again), holds);
      },
    );
    return Effect.map(Effect.timeoutOption(asking, stopWithin), Option.getOrUndefined);
  };

  // Nodes on one host share its memory.
  const shares = nodes.map(({ host, device }) =>
    device.memory / nodes.filter((other) => other.host === host).length
  );
  return Crew.of({
    equipment: {
      devices: nodes.map(({ device }) => device),
      memory: () => Math.min(...shares),
      together: false,
    },
    run: (work, rank, { interval, beat, finished, failed }) => {
      const node = memberOf[rank]!;
      // What fails after that is not for want of something.
      let begun = false;
      const blame = (tag: string, reason: string) => {
        const another = work.epoch > 0 && !begun && refusals.includes(tag);
        if (another) unfit.set(node.id, `${nameOf(node)}: ${reason}`);
        return new RankFailed({
          ...{ rank, node: nameOf(node), tag: another ? "NodeUnfit" : tag, reason },
        });
      };
      return Effect.gen(function* () {
        const odd = isInference(work) ? undefined : oddPlugin(work, memberOf);
        if (odd !== undefined) return yield* blame("VersionMismatch", odd);
        const { run, epoch } = work;
        yield* offer(work, rank, node, blame);
        const lane = yield* links.open({ run, epoch, self: "driver", peer: rank, lane: "events" });
        const left = Effect.flatMap(
          gone(control, cluster, node, awaited),
          () => Effect.fail(blame("NodeLost", "it is not there any more")),
        );
        yield* Effect.forkScoped(Effect.catch(left, failed));
        for (;;) {
          const heard = events.decode(yield* lane.receive);
          if (Result.isFailure(heard)) return yield* blame("NodeRefused", heard.failure);
          const event = heard.success;
          begun ||= event.event === "interval";
          // It speaks for its own rank, whatever it says.
          if (event.event === "interval") yield* interval({ ...event.interval, rank });
          if (event.event === "beat") yield* beat({ ...event.beat, rank });
          if (event.event === "finished") yield* finished({ ...event.summary, rank });
          if (event.event === "failed") yield* failed(blame(event.tag, event.reason));
        }
      }).pipe(
        Effect.scoped,
        // The lane closes when the rank has ended.
        Effect.catchTag(
          "LinkClosed",
          (error) => error.done ? Effect.void : Effect.fail(blame(error._tag, error.message)),
        ),
        Effect.mapError((error) =>
          error._tag === "RankFailed" ? error : blame(error._tag, error.message)
        ),
      );
    },
    regroup: (job, epoch, failure) =>
      Effect.gen(function* () {
        if (failure._tag === "RankFailed" && ownFailures.includes(failure.tag)) {
          failed.add(memberOf[failure.rank]!.id);
        }
        const plan = yield* Effect.orDie(planOfJob(job));
        const isOut = ({ id }: NodeCard) => failed.has(id) || unfit.has(id);
        const members = distinct(memberOf).filter((node) => !isOut(node));
        /** What is held by members that have answered; by those that wait, nothing. */
        const holds = new Map<string, ReadonlyMap<number, Standing>>();
        let others: ReadonlyArray<NodeCard> = [];
        const inquire = Effect.fnUntraced(function* (patience: number, sparePatience: number) {
          const silent = members.filter(({ id }) => !holds.has(id));
          const [held, waiting] = yield* Effect.all([
            Effect.forEach(silent, (node) => stopped(node, job.run, epoch, patience), {
              concurrency: "unbounded",
            }),
            // A server that lets us call nobody any more has nobody.
            Effect.orElseSucceed(spare(sparePatience), () => []),
          ], { concurrency: "unbounded" });
          for (const [i, { id }] of silent.entries()) {
            if (held[i] !== undefined) holds.set(id, held[i]);
          }
          others = waiting.filter((node) =>
            !isOut(node) && !members.some(({ id }) => id === node.id)
          );
        });
        const placed = () => place(job, plan, memberOf, holds, others);

        yield* inquire(patience, sparePatience);
        let places = placed();
        if ("rank" in places) {
          yield* inquire(lastPatience, lastPatience);
          places = placed();
        }
        if ("rank" in places) {
          const { rank, lacks } = places;
          const why = [...unfit.values(), ...lacks];
          const after = failure._tag === "RankFailed" && failure.tag === "NodeUnfit"
            ? ""
            : `, after: ${failure.message}`;
          const reason = `no other node is there to take it${
            why.length === 0 ? "" : ` (${why.join("; ")})`
          }${after}`;
          const node = nameOf(memberOf[rank]!);
          return yield* new RankFailed({ rank, node, tag: "NodeLost", reason });
        }
        memberOf.splice(0, memberOf.length, ...places.members);
        roster.ranks = memberOf.map(nameIn);
        return places;
      }).pipe(Effect.scoped, Effect.raceFirst(control.lost)),
    ended: (run) => {
      const release = requests.encode({ ask: "release", run });
      return Effect.forEach(
        distinct(memberOf),
        (node) => request(node, release, releasePatience),
        { concurrency: "unbounded", discard: true },
      ).pipe(
        // One that is cut off hears of it when it is back.
        Effect.forkIn(scope),
        Effect.flatMap(Fiber.join),
        Effect.timeoutOption(releaseWithin),
        Effect.asVoid,
      );
    },
  });
});
