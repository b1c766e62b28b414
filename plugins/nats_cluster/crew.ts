/**
 * The crew of nodes: the driver's side of a cluster. The node at index r takes rank r; when it is lost, another one does.
 *
 * @module
 */
import { type Duration, Effect, Option, Result, type Scope } from "effect";
import { Crew, type Regrouped } from "../../runtime/crew.ts";
import { NodeRefused, RankFailed, VersionMismatch } from "../../runtime/errors.ts";
import { cardOf, type Job } from "../../runtime/job.ts";
import { Links } from "../../runtime/link.ts";
import type { NodeCard } from "../../runtime/membership.ts";
import { nothing, type Standing } from "../../runtime/standing.ts";
import { version } from "../../runtime/version.ts";
import type { Line } from "../nats_links/line.ts";
import { type Roster, rosterOf } from "../nats_roster.ts";
import { ask, events, gone, largestMessage, nameIn, requests } from "./control.ts";

/** How often the server may answer before a node does, to an offer, or asked what it holds; else the node is lost. */
const [offerPatience, patience] = [10, 4] as const;
/** How long nodes may take to forget a run that is over. */
const releaseWithin: Duration.Input = "2 seconds";
/** How long a node may take to stop: its device ends what it has begun. */
const stopWithin: Duration.Input = "2 minutes";

const nameOf = ({ id, host }: NodeCard): string => `node ${id} on ${host}`;

const distinct = (nodes: ReadonlyArray<NodeCard>): ReadonlyArray<NodeCard> => [
  ...new Map(nodes.map((node) => [node.id, node])).values(),
];

/** Failures of a node itself, which gets nothing more to do in the run. */
const ownFailures = ["DeviceFailed", "Stuck"];

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

/** Refuses nodes of another version. */
export const sameVersion = (
  nodes: ReadonlyArray<NodeCard>,
): Effect.Effect<void, VersionMismatch> => {
  const odd = nodes.find((node) => node.version !== version);
  if (odd === undefined) return Effect.void;
  return Effect.fail(
    new VersionMismatch({ node: `${odd.id} on ${odd.host}`, has: odd.version, needed: version }),
  );
};

/**
 * The crew of these nodes.
 *
 * @param spare The nodes that wait now, for ranks that are lost.
 * @param roster The same that the driver's links have.
 */
export const crewOf = Effect.fn("natsCrew")(function* (
  control: Line,
  cluster: string,
  nodes: ReadonlyArray<NodeCard>,
  spare: Effect.Effect<ReadonlyArray<NodeCard>>,
  roster: Roster = rosterOf(),
) {
  const links = yield* Links;
  const memberOf = [...nodes];
  roster.ranks = memberOf.map(nameIn);
  const failed = new Set<string>();
  const request = (node: NodeCard, bytes: Uint8Array, patience: number) =>
    ask(control, cluster, node, bytes, patience);

  /** Gives a rank to a node, in an epoch; fails as something that another node could make up for, or not. */
  const offer = Effect.fnUntraced(function* (job: Job, rank: number, node: NodeCard) {
    const failed = (tag: string, reason: string) => {
      const { message } = new NodeRefused({ node: nameOf(node), reason });
      return new RankFailed({ rank, node: nameOf(node), tag, reason: message });
    };
    // Whoever took it before may have let go of it since.
    const refused = (reason: string) => failed(job.epoch > 0 ? "NodeLost" : "NodeRefused", reason);
    const bytes = requests.encode({
      ...{ ask: "offer", version, job: cardOf(job), rank },
      members: roster.ranks,
    });
    if (bytes.length > largestMessage) {
      return yield* refused(
        `the tables of its attention make an offer of ${bytes.length} bytes, and a node takes ` +
          `${largestMessage}`,
      );
    }
    const answer = yield* request(node, bytes, offerPatience);
    if (Option.isNone(answer)) return yield* failed("NodeLost", "it does not answer");
    if (Result.isFailure(answer.value)) {
      return yield* refused(`its answer is odd: ${answer.value.failure}`);
    }
    const said = answer.value.success;
    if (!("accepted" in said)) return yield* refused("it answers another question");
    if (!said.accepted) return yield* refused(said.reason);
  });

  /** What a node holds once it has stopped; nothing if it does not answer. */
  const stopped = (node: NodeCard, run: string, epoch: number) => {
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

  return Crew.of({
    run: (job, rank, { interval, beat, finished, failed }) => {
      const node = memberOf[rank]!;
      const blame = (tag: string, reason: string) =>
        new RankFailed({ rank, node: nameOf(node), tag, reason });
      return Effect.gen(function* () {
        const odd = oddPlugin(job, memberOf);
        if (odd !== undefined) return yield* blame("VersionMismatch", odd);
        const { run, epoch } = job;
        yield* offer(job, rank, node);
        const lane = yield* links.open({ run, epoch, self: "driver", peer: rank, lane: "events" });
        const left = Effect.flatMap(
          gone(control, cluster, node),
          () => Effect.fail(blame("NodeLost", "it is not there any more")),
        );
        yield* Effect.forkScoped(Effect.catch(left, failed));
        for (;;) {
          const heard = events.decode(yield* lane.receive);
          if (Result.isFailure(heard)) return yield* blame("NodeRefused", heard.failure);
          const event = heard.success;
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
    regroup: (run, epoch, failure) =>
      Effect.gen(function* () {
        if (failure._tag === "RankFailed" && ownFailures.includes(failure.tag)) {
          failed.add(memberOf[failure.rank]!.id);
        }
        const members = distinct(memberOf).filter(({ id }) => !failed.has(id));
        const [held, waiting] = yield* Effect.all([
          Effect.forEach(members, (node) => stopped(node, run, epoch), {
            concurrency: "unbounded",
          }),
          spare,
        ], { concurrency: "unbounded" });
        const holds = new Map(members.map(({ id }, i) => [id, held[i]]));
        const alive = members.filter(({ id }) => holds.get(id) !== undefined && !failed.has(id));
        const others = waiting.filter(({ id }) =>
          !failed.has(id) && !members.some((node) => node.id === id)
        );
        const ranksOf = (node: NodeCard) => memberOf.filter(({ id }) => id === node.id).length;
        const moved: Array<Regrouped["moved"][number]> = [];
        const standings: Array<Standing> = [];
        for (const [rank, node] of memberOf.entries()) {
          if (alive.includes(node)) {
            standings.push(holds.get(node.id)!.get(rank) ?? nothing);
            continue;
          }
          const [next] = others.length > 0
            ? others.splice(0, 1)
            : alive.toSorted((a, b) => ranksOf(a) - ranksOf(b));
          if (next === undefined) {
            const reason = `no other node is there to take it, after: ${failure.message}`;
            return yield* new RankFailed({ rank, node: nameOf(node), tag: "NodeLost", reason });
          }
          memberOf[rank] = next;
          if (!alive.includes(next)) {
            alive.push(next);
            holds.set(next.id, new Map());
          }
          standings.push(nothing);
          moved.push({ rank, to: nameOf(next) });
        }
        roster.ranks = memberOf.map(nameIn);
        return { standings, moved };
      }).pipe(Effect.scoped, Effect.raceFirst(control.lost)),
    ended: (run) => {
      const release = requests.encode({ ask: "release", run });
      return Effect.forEach(
        distinct(memberOf),
        (node) => request(node, release, patience),
        { concurrency: "unbounded", discard: true },
      ).pipe(Effect.timeoutOption(releaseWithin), Effect.asVoid);
    },
  });
});
