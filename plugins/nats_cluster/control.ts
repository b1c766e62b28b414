/**
 * How drivers and nodes speak to each other besides tensors: small JSON behind its CRC-32, asked again until it is answered.
 *
 * | subject | from | to |
 * | --- | --- | --- |
 * | `annulus.<cluster>.ctl.roll` | driver | every node, which answers with its card |
 * | `annulus.<cluster>.ctl.node.<name>.<id>` | driver | one node, which answers what it is asked |
 * | `annulus.<cluster>.ctl.answer.<random>.<name>` | node of that name | the driver that asked |
 *
 * What a rank is doing travels on a link of its own, the lane `events`.
 *
 * @module
 */
import { Effect, Option, Queue, Result, Schedule, Schema, type Scope } from "effect";
import { crc32 } from "node:zlib";
import { NotPermitted } from "../../runtime/errors.ts";
import { Answer, NodeCard, RankEvent, Request } from "../../runtime/membership.ts";
import { pulsesOfPatience } from "../nats_links/conversation.ts";
import type { Line } from "../nats_links/line.ts";
import { anyone } from "../nats_roster.ts";

/** Where members of a cluster hear each other. */
export const subjects = (cluster: string) => ({
  roll: `annulus.${cluster}.ctl.roll`,
  node: (node: Addressee) => `annulus.${cluster}.ctl.node.${nameIn(node)}.${node.id}`,
  /** Everybody that answers puts its name behind it. */
  answers: () => `annulus.${cluster}.ctl.answer.${crypto.randomUUID()}`,
});

/** What of a node's card its subject needs. */
type Addressee = Pick<NodeCard, "id" | "name">;

/** The name under which a node answers. */
export const nameIn = ({ name = anyone }: Addressee): string => name;

/** Control messages are small, but for the tables of an attention; a larger one is not ours. */
export const largestMessage = 512 * 1024;
/** Bytes that wait to be handled on a subject; what comes beyond them is dropped, and asked again. */
const mostWaiting = 8 * largestMessage;
/** However small a message is, it costs memory. */
const leastCharge = 512;

/** Between two times of asking the same. */
const askAgain = "500 millis";

/** Bytes of a CRC-32, little-endian, in front of what is said. */
const sealBytes = 4;

/** Text with its seal: one digit of it in another state would be another job. */
export const sealed = (text: Uint8Array): Uint8Array<ArrayBuffer> => {
  const bytes = new Uint8Array(sealBytes + text.length);
  new DataView(bytes.buffer).setUint32(0, crc32(text), true);
  bytes.set(text, sealBytes);
  return bytes;
};

/** What was sealed, copied; undefined if a bit of it has changed. Nothing is nothing: it needs no seal. */
const unsealed = (bytes: Uint8Array): Uint8Array | undefined => {
  if (bytes.length === 0) return bytes;
  if (bytes.length < sealBytes) return undefined;
  const text = new Uint8Array(bytes.subarray(sealBytes));
  const seal = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  return crc32(text) === seal ? text : undefined;
};

const codec = <S extends Schema.Codec<unknown, unknown>>(schema: S) => {
  const json = Schema.fromJsonString(schema);
  const [encode, decode] = [Schema.encodeSync(json), Schema.decodeUnknownResult(json)];
  return {
    encode: (value: S["Type"]) => new TextEncoder().encode(encode(value)),
    decode: (bytes: Uint8Array): Result.Result<S["Type"], string> =>
      bytes.byteLength > largestMessage
        ? Result.fail(`a message of at most ${largestMessage} bytes: found ${bytes.byteLength}`)
        : Result.mapError(
          decode(new TextDecoder().decode(bytes)),
          (error) => error.message,
        ),
  };
};
/** The same for what is published, and heard where it is `subscribed` to. */
const sealedCodec = <S extends Schema.Codec<unknown, unknown>>(schema: S) => {
  const { encode, decode } = codec(schema);
  return { encode: (value: S["Type"]) => sealed(encode(value)), decode };
};
/** How a node introduces itself. */
export const cards = sealedCodec(NodeCard);
/** What a driver asks. */
export const requests = sealedCodec(Request);
/** What a node answers. */
export const answers = sealedCodec(Answer);
/** What a node reports of a rank, on a link. */
export const events = codec(RankEvent);

/** Something that was heard, and where an answer is waited for. */
export interface Heard {
  readonly bytes: Uint8Array;
  readonly reply: string | undefined;
  readonly subject: string;
}

/** What is published on a subject, without its seal, to be taken one by one by fibers of ours; what is damaged is not. */
export const subscribed = (
  line: Line,
  subject: string,
): Effect.Effect<Effect.Effect<Heard>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const inbox = yield* Queue.unbounded<Heard>();
    let waiting = 0;
    const chargeOf = (bytes: Uint8Array) => Math.max(bytes.length, leastCharge);
    yield* Effect.acquireRelease(
      Effect.sync(() =>
        line.subscribe(subject, (message, reply, subject) => {
          if (waiting + chargeOf(message) > mostWaiting) return;
          const bytes = unsealed(message);
          if (bytes === undefined) return;
          waiting += chargeOf(bytes);
          Queue.offerUnsafe(inbox, { bytes, reply, subject });
        })
      ),
      (unsubscribe) => Effect.sync(unsubscribe),
    );
    return Effect.tap(
      Queue.take(inbox),
      ({ bytes }) => Effect.sync(() => void (waiting -= chargeOf(bytes))),
    );
  });

/** Returns when the server has answered so many times: a server that is away makes nobody late. */
export const pulses = (line: Line, count: number): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    let left = count;
    const done = () => {
      end();
      resume(Effect.void);
    };
    const end = line.watch({ pulse: () => --left > 0 || done(), gone: done });
    return Effect.sync(end);
  });

/** Fails when the server lets nobody speak or listen there. */
export const barredFrom = (
  line: Line,
  cluster: string,
  attempted: string,
  subjects: ReadonlyArray<string>,
): Effect.Effect<never, NotPermitted> =>
  Effect.callback((resume) => {
    const refused = (found: string, subject: string | undefined) => {
      if (subject === undefined || !subjects.includes(subject)) return;
      end();
      resume(Effect.fail(new NotPermitted({ cluster, attempted, found })));
    };
    const end = line.watch({ refused });
    return Effect.sync(end);
  });

/** Whether nodes may still be on their way back, as the server was away: not all of them find it as soon as we do. */
export const homecoming = (line: Line): Effect.Effect<() => boolean, never, Scope.Scope> =>
  Effect.suspend(() => {
    let left = 0;
    const end = line.watch({
      back: () => void (left = pulsesOfPatience),
      pulse: () => void (left = Math.max(0, left - 1)),
    });
    return Effect.as(Effect.addFinalizer(() => Effect.sync(end)), () => left > 0);
  });

/** The server itself answers for a subject that nobody listens to, with nothing; so often in turn, nobody is there. */
const nobodyIsThere = 3;

/** Asks again and again; gives what is answered until the server has answered so many times, or nobody is there. */
const answersOf = Effect.fnUntraced(function* (
  line: Line,
  cluster: string,
  node: Addressee,
  request: Uint8Array,
  awaited: () => boolean,
) {
  const names = subjects(cluster);
  const subject = names.node(node);
  const reply = `${names.answers()}.${nameIn(node)}`;
  const inbox = yield* subscribed(line, reply);
  const asking = Effect.sync(() => line.publish(subject, request, reply)).pipe(
    Effect.repeat(Schedule.spaced(askAgain)),
  );
  yield* Effect.forkScoped(asking, { startImmediately: true });
  let nothing = 0;
  /** The next answer; none where nobody is there. */
  return Effect.repeat(inbox, {
    until: ({ bytes }) => {
      nothing = bytes.length > 0 || awaited() ? 0 : nothing + 1;
      return bytes.length > 0 || nothing >= nobodyIsThere;
    },
  }).pipe(
    Effect.map(({ bytes }) =>
      bytes.length > 0 ? Option.some(answers.decode(bytes)) : Option.none()
    ),
  );
});

/**
 * The first answer to what is asked again and again, if one comes before the server has answered so many times.
 *
 * @param awaited Whether it counts for nothing that nobody is there.
 */
export const ask = (
  line: Line,
  cluster: string,
  node: Addressee,
  request: Uint8Array,
  patience: number,
  awaited: () => boolean = () => false,
): Effect.Effect<Option.Option<Result.Result<Answer, string>>> =>
  Effect.scoped(Effect.gen(function* () {
    const answer = yield* answersOf(line, cluster, node, request, awaited);
    return yield* Effect.raceFirst(answer, Effect.as(pulses(line, patience), Option.none()));
  }));

/** Returns when a node is not there any more: one that is cut off or frozen is. */
export const gone = (
  line: Line,
  cluster: string,
  node: Addressee,
  awaited: () => boolean,
): Effect.Effect<void> =>
  Effect.scoped(Effect.gen(function* () {
    const ping = requests.encode({ ask: "ping" });
    const answer = yield* answersOf(line, cluster, node, ping, awaited);
    yield* Effect.repeat(answer, { until: Option.isNone });
  }));
