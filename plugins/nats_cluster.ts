/**
 * Clusters over NATS: how nodes say that they are there and take ranks, and how a driver finds them. Tensors travel
 * elsewhere, over `nats_links.ts`.
 *
 * | subject | from | to |
 * | --- | --- | --- |
 * | `annulus.<cluster>.ctl.roll` | driver | every node, which answers with its card |
 * | `annulus.<cluster>.ctl.node.<id>` | driver | one node, which accepts or refuses a rank |
 * | `annulus.<cluster>.ctl.run.<run>.<rank>` | node | driver: what the rank is doing |
 *
 * @module
 */
import type { Msg } from "@nats-io/transport-node";
import { Context, Effect, Layer, Queue, Result, Schema, type Scope } from "effect";
import { Crew } from "../runtime/crew.ts";
import type { Device } from "../runtime/device.ts";
import {
  NodeRefused,
  NotEnoughNodes,
  RankFailed,
  ServerUnavailable,
  VersionMismatch,
} from "../runtime/errors.ts";
import { cardOf, type Job, jobOf } from "../runtime/job.ts";
import type { Links } from "../runtime/link.ts";
import type { Definition } from "../runtime/variant.ts";
import { Answer, NodeCard, Offer, RankEvent } from "../runtime/membership.ts";
import { attendRank } from "../runtime/rank.ts";
import { version } from "../runtime/version.ts";
import { connectNats, type Nats, type NatsLine } from "./nats.ts";
import { natsLinks } from "./nats_links.ts";

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

const subjects = (cluster: string) => ({
  roll: `annulus.${cluster}.ctl.roll`,
  node: (id: string) => `annulus.${cluster}.ctl.node.${id}`,
  run: (run: string, rank: number) => `annulus.${cluster}.ctl.run.${run}.${rank}`,
});

/** Control messages are small, but for the tables of an attention; a larger one is not ours. */
const largestMessage = 512 * 1024;

const codec = <S extends Schema.Codec<unknown, unknown>>(schema: S) => {
  const json = Schema.fromJsonString(schema);
  const decodeJson = Schema.decodeUnknownResult(json);
  return {
    encode: Schema.encodeSync(json),
    decode: (message: Msg): Result.Result<S["Type"], string> =>
      message.data.byteLength > largestMessage
        ? Result.fail(
          `a message of at most ${largestMessage} bytes: found ${message.data.byteLength}`,
        )
        : Result.mapError(decodeJson(message.string()), (error) => error.message),
  };
};
const cards = codec(NodeCard);
const offers = codec(Offer);
const answers = codec(Answer);
const events = codec(RankEvent);

const bytesOf = (text: string) => new TextEncoder().encode(text);

/** A subscription whose messages are handled one by one by fibers of ours. */
const subscribed = (line: NatsLine, subject: string) =>
  Effect.gen(function* () {
    const inbox = yield* Queue.unbounded<Msg>();
    yield* Effect.acquireRelease(
      Effect.sync(() => line.subscribe(subject, (_, message) => Queue.offerUnsafe(inbox, message))),
      (unsubscribe) => Effect.sync(unsubscribe),
    );
    return inbox;
  });

/** What cannot be said now, is said again or not missed. */
const say = (send: () => unknown): Effect.Effect<void> => Effect.ignore(Effect.try(send));

/**
 * Makes this process a node: answers roll calls, and takes one rank after the other. Ends only with its server.
 *
 * @param card All but the state, which changes.
 * @param known The attention variants that it computes.
 */
export const serveNode = Effect.fn("serveNode")(function* (
  { control }: Nats,
  cluster: string,
  card: Omit<NodeCard, "state">,
  known: ReadonlyArray<Definition>,
  tell: (state: NodeState) => Effect.Effect<void>,
) {
  const names = subjects(cluster);
  const roll = yield* subscribed(control, names.roll);
  const asked = yield* subscribed(control, names.node(card.id));
  yield* Effect.promise(() => control.flush());
  let busy = false;

  const introduce = Effect.forever(Effect.gen(function* () {
    const message = yield* Queue.take(roll);
    yield* say(() => message.respond(cards.encode({ ...card, state: busy ? "busy" : "idle" })));
  }));

  const work = Effect.fnUntraced(function* (job: Job, rank: number) {
    const emit = (event: RankEvent) =>
      say(() => control.publish(names.run(job.run, rank), bytesOf(events.encode(event))));
    const failed = (tag: string, reason: string) => emit({ event: "failed", tag, reason });
    yield* tell({ state: "working", run: job.run, rank });
    yield* attendRank(job, rank, {
      interval: (interval) => emit({ event: "interval", interval }),
      finished: (summary) => emit({ event: "finished", summary }),
      failed: (error) => failed(error._tag, error.message),
    }).pipe(
      // A node outlives whatever a job does to it.
      Effect.catchDefect((defect) =>
        Effect.andThen(failed("Defect", String(defect)), Effect.fail(new Error(String(defect))))
      ),
      Effect.catch(({ message }) => tell({ state: "failed", run: job.run, rank, reason: message })),
      // Before anybody hears that it ended.
      Effect.ensuring(Effect.sync(() => void (busy = false))),
    );
    yield* emit({ event: "ended" });
    yield* tell({ state: "waiting" });
  });

  const takeOffers = Effect.forever(Effect.gen(function* () {
    const message = yield* Queue.take(asked);
    const accepted = Result.flatMap(
      Result.mapError(offers.decode(message), (why) => `it does not understand the offer: ${why}`),
      ({ version: theirs, job, rank }) => {
        if (theirs !== version) {
          return Result.fail(`it runs annulus ${version}, the driver ${theirs}`);
        }
        const ring = job.weights.length;
        if (rank >= ring) return Result.fail(`rank ${rank} is none of a ring of ${ring}`);
        if (busy) return Result.fail("it is busy with another run");
        return Result.map(jobOf(job, known), (job) => ({ job, rank }));
      },
    );
    if (Result.isFailure(accepted)) {
      const reason = accepted.failure;
      yield* say(() => message.respond(answers.encode({ accepted: false, reason })));
      return;
    }
    busy = true;
    yield* say(() => message.respond(answers.encode({ accepted: true })));
    yield* Effect.forkScoped(work(accepted.success.job, accepted.success.rank));
  }));

  yield* tell({ state: "waiting" });
  return yield* Effect.raceAllFirst<
    Effect.Effect<never, ServerUnavailable, Device | Links | Scope.Scope>
  >([
    introduce,
    takeOffers,
    control.lost,
  ]);
}, Effect.scoped);

/** How long a cluster's nodes have to answer a roll call. */
const rollCallMilliseconds = 1000;

/** The nodes that answer within a second, by id. */
export const rollCall = Effect.fn("rollCall")(function* (
  { control }: Nats,
  cluster: string,
) {
  const connection = control.connection();
  if (connection === undefined) return [];
  const found: Array<NodeCard> = [];
  yield* Effect.tryPromise({
    try: async () => {
      const replies = await connection.requestMany(subjects(cluster).roll, "", {
        strategy: "timer",
        maxWait: rollCallMilliseconds,
      });
      for await (const reply of replies) {
        const card = cards.decode(reply);
        if (Result.isSuccess(card)) found.push(card.success);
      }
    },
    // "No responders" is an answer: there is no node.
    catch: String,
  }).pipe(Effect.ignore);
  return found.sort((a, b) => a.id < b.id ? -1 : 1);
});

/** The crew of these nodes: the node at index r takes rank r. Refuses nodes of another version. */
const crewOf = Effect.fn("natsCrew")(function* (
  { control }: Nats,
  cluster: string,
  nodes: ReadonlyArray<NodeCard>,
) {
  const names = subjects(cluster);
  const odd = nodes.find((node) => node.version !== version);
  if (odd !== undefined) {
    return yield* new VersionMismatch({
      node: `${odd.id} on ${odd.host}`,
      has: odd.version,
      needed: version,
    });
  }
  /** Two members that mean different things by the name of a variant: none of them begins then. */
  const oddPlugin = (job: Job): string | undefined => {
    for (const { definition: { name, hash } } of job.problem.attention) {
      if (hash === undefined) continue;
      const members = nodes.map(({ id, host, plugins }) => ({
        member: `on node ${id} on ${host}`,
        hash: plugins.find((plugin) => plugin.name === name)?.hash,
      }));
      const others = members.filter((member) => member.hash !== hash);
      const [odd] = others;
      if (odd === undefined) continue;
      const other = members.find((member) =>
        member.hash !== odd.hash && member.hash !== undefined
      ) ??
        { member: "at the driver", hash };
      const found = odd.hash === undefined ? "not there" : `${odd.hash.slice(0, 12)}`;
      return `attention "${name}" must be the same everywhere: found ${other.hash!.slice(0, 12)} ` +
        `${other.member} and ${found} ${odd.member}`;
    }
  };
  return Crew.of({
    run: (job, rank, { interval, finished, failed }) => {
      const node = nodes[rank]!;
      const name = `node ${node.id} on ${node.host}`;
      const blame = (tag: string, reason: string) =>
        new RankFailed({ rank, node: name, tag, reason });
      return Effect.gen(function* () {
        const odd = oddPlugin(job);
        if (odd !== undefined) return yield* blame("VersionMismatch", odd);
        const offer = offers.encode({ version, job: cardOf(job), rank });
        if (offer.length > largestMessage) {
          const reason =
            `the tables of its attention make an offer of ${offer.length} bytes, and ` +
            `a node takes ${largestMessage}`;
          return yield* new NodeRefused({ node: name, reason });
        }
        const inbox = yield* subscribed(control, names.run(job.run, rank));
        const answer = yield* Effect.tryPromise({
          try: async () =>
            await control.connection()!.request(names.node(node.id), offer, { timeout: 5000 }),
          catch: () => new NodeRefused({ node: name, reason: "it does not answer" }),
        });
        const read = answers.decode(answer);
        if (Result.isFailure(read)) {
          return yield* new NodeRefused({
            node: name,
            reason: `its answer is odd: ${read.failure}`,
          });
        }
        if (!read.success.accepted) {
          return yield* new NodeRefused({ node: name, reason: read.success.reason });
        }
        for (;;) {
          const heard = events.decode(yield* Queue.take(inbox));
          if (Result.isFailure(heard)) return yield* blame("NodeRefused", heard.failure);
          const event = heard.success;
          if (event.event === "interval") yield* interval(event.interval);
          if (event.event === "finished") yield* finished(event.summary);
          if (event.event === "failed") yield* failed(blame(event.tag, event.reason));
          if (event.event === "ended") return;
        }
      }).pipe(
        Effect.scoped,
        Effect.mapError((error) =>
          error._tag === "RankFailed" ? error : blame(error._tag, error.message)
        ),
      );
    },
  });
});

/** Which nodes to take. */
export interface ClusterOptions {
  /** The server, `nats://host:port`. */
  readonly url: string;
  readonly cluster: string;
  /** Ranks; all idle nodes by default. */
  readonly ring?: number | undefined;
  /** Only nodes with this device; any by default. */
  readonly device?: string | undefined;
}

/** Takes idle nodes of a cluster, by rank, and gives what a driver needs to use them. */
export const joinCluster = Effect.fn("joinCluster")(function* (
  { url, cluster, ring, device }: ClusterOptions,
) {
  const nats = yield* connectNats(url);
  const all = yield* rollCall(nats, cluster);
  const able = all.filter((node) => device === undefined || node.device.name === device);
  const idle = able.filter(({ state }) => state === "idle");
  const needed = ring ?? Math.max(1, idle.length);
  if (idle.length < needed) {
    return yield* new NotEnoughNodes({
      cluster,
      url: nats.server,
      device: device ?? "auto",
      needed,
      found: idle.length,
      busy: able.length - idle.length,
    });
  }
  const nodes = idle.slice(0, needed);
  const links = yield* Layer.build(natsLinks(nats, { cluster }));
  const services = Context.add(links, Crew, yield* crewOf(nats, cluster, nodes));
  return { services, nodes };
});

/** The idle nodes of a cluster, for `attend`. */
export const onCluster = (options: ClusterOptions): Layer.Layer<
  Crew | Links,
  NotEnoughNodes | ServerUnavailable | VersionMismatch
> => Layer.effectContext(Effect.map(joinCluster(options), ({ services }) => services));
