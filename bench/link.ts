/**
 * A NATS link against bare publish and subscribe over the same server: what exactness costs, in fair weather and in bad,
 * and how long it stands still when the server does. Both ends are in this process; every byte is compared.
 *
 * @module
 */
import { Context, Effect, Layer, Scope } from "effect";
import { crc32 } from "node:zlib";
import { table } from "../cli/output.ts";
import { connectNats, type Nats } from "../plugins/nats.ts";
import { natsLinks } from "../plugins/nats_links.ts";
import type { Lines } from "../plugins/nats_links/line.ts";
import { startNatsServer } from "../plugins/nats_server.ts";
import type { LinkError, ServerUnavailable } from "../runtime/errors.ts";
import { Links } from "../runtime/link.ts";
import { type Faults, faultyLines } from "../tests/support/faulty_lines.ts";
import type { BenchOptions } from "./kernels.ts";
import { median, spread } from "./statistics.ts";

/** One transfer. */
export interface LinkSample {
  readonly seconds: number;
  /** The bytes of one second, as a share of bare publish and subscribe and of the clean link in the same round. */
  readonly ofBare: number;
  readonly ofClean: number;
  /** Milliseconds between two frames at most. */
  readonly stall: number;
  /** Frames that were sent again. */
  readonly resent: number;
}

/** All transfers of one kind. */
export interface LinkRow {
  readonly name: string;
  readonly samples: ReadonlyArray<LinkSample>;
  /** All frames came, in order and unharmed. */
  readonly exact: boolean;
}

/** All kinds. */
export interface LinkTable {
  readonly title: string;
  readonly mebibytes: number;
  readonly rows: ReadonlyArray<LinkRow>;
}

/** What is measured. */
export interface LinkOptions extends Pick<BenchOptions, "rounds" | "progress" | "exclusively"> {
  readonly mebibytes: number;
  /** Seconds for which the server is away or frozen. */
  readonly away: number;
  readonly frozen: number;
}

const cluster = "bench";
const windowFrames = 8;
const ends = [{ run: "run", self: 0, peer: 1 }, { run: "run", self: 1, peer: 0 }] as const;

/** Frames are cut from random bytes, no two from the same place. */
const noise = (() => {
  const bytes = new Uint8Array(8 << 20);
  for (let at = 0; at < bytes.length; at += 1 << 16) {
    crypto.getRandomValues(bytes.subarray(at, at + (1 << 16)));
  }
  return bytes;
})();
const frameAt = (i: number, size: number) => {
  const from = (i * 4099) % (noise.length - size);
  return noise.subarray(from, from + size);
};

const twoMembers = (url: string) =>
  Effect.all([connectNats(url), connectNats(url)]) as Effect.Effect<
    [Nats, Nats],
    ServerUnavailable,
    Scope.Scope
  >;

/** Seconds of bare publish and subscribe, with as many messages on their way as the link has. */
const bare = (url: string, frames: number, size: number) =>
  Effect.scoped(Effect.gen(function* () {
    const [from, to] = yield* twoMembers(url);
    const all = Promise.withResolvers<void>();
    let taken = 0;
    to.bulk.subscribe("annulus.bench", () => ++taken === frames && all.resolve());
    yield* Effect.promise(() => to.bulk.flush());
    return yield* Effect.promise(async () => {
      const began = performance.now();
      for (let i = 0; i < frames; i++) {
        from.bulk.publish("annulus.bench", frameAt(i, size));
        while (i - taken >= windowFrames) await from.bulk.flush();
      }
      await all.promise;
      return (performance.now() - began) / 1000;
    });
  }));

/** What happens to the server in the middle of a transfer. */
type Event = (at: number) => Effect.Effect<void, ServerUnavailable>;

/** A transfer over a link. */
const linked = (url: string, frames: number, size: number, faults: Faults, event: Event) =>
  Effect.scoped(Effect.gen(function* () {
    const members = yield* twoMembers(url);
    const [from, to] = yield* Effect.forEach(members, (member: Lines, i) =>
      Effect.map(
        Layer.build(natsLinks(faultyLines(member, faults, i), { cluster })),
        (context) => Context.get(context, Links),
      ));
    const [near, far] = yield* Effect.all([from!.open(ends[0]), to!.open(ends[1])], {
      concurrency: "unbounded",
    });
    let stall = 0, exact = true;
    const began = performance.now();
    let last = began;
    const numbers = Array.from({ length: frames }, (_, i) => i);
    yield* Effect.all([
      Effect.forEach(numbers, (i) => near.send(frameAt(i, size)), { discard: true }),
      Effect.forEach(numbers, (i) =>
        Effect.gen(function* () {
          const frame = yield* far.receive;
          stall = Math.max(stall, performance.now() - last);
          last = performance.now();
          exact &&= crc32(frame) === crc32(frameAt(i, size));
          yield* event(i / frames);
        }), { discard: true }),
    ], { concurrency: "unbounded" });
    const seconds = (performance.now() - began) / 1000;
    return { seconds, stall, exact, resent: from!.counts()["resent"] ?? 0 };
  }));

const nothing: Event = () => Effect.void;

/** At so many places of a transfer, evenly, `act` is started and not waited for. */
const during = (times: number, act: Effect.Effect<void, ServerUnavailable>) =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope;
    let done = 0;
    const event: Event = (at) =>
      Effect.suspend(() => {
        if (done >= times || at < (done + 1) / (times + 1)) return Effect.void;
        done++;
        return Effect.asVoid(Effect.forkIn(act, scope));
      });
    return event;
  });

/** Measures everything in turn. */
export const measureLink = (
  { mebibytes, rounds, away, frozen, progress, exclusively }: LinkOptions,
): Effect.Effect<LinkTable, LinkError | ServerUnavailable> =>
  Effect.scoped(Effect.gen(function* () {
    const size = 512 * 1024;
    const frames = 2 * mebibytes;
    const scope = yield* Effect.scope;
    const first = yield* startNatsServer();
    const { url } = first;
    const port = Number(new URL(url.replace("nats:", "http:")).port);
    let { pid } = first;
    const kill = Effect.gen(function* () {
      Deno.kill(pid, "SIGKILL");
      yield* Effect.sleep(1000 * away);
      pid = (yield* Scope.provide(startNatsServer({ port }), scope)).pid;
    });
    const freeze = Effect.gen(function* () {
      Deno.kill(pid, "SIGSTOP");
      yield* Effect.ensuring(
        Effect.sleep(1000 * frozen),
        Effect.sync(() => Deno.kill(pid, "SIGCONT")),
      );
    });
    const kinds: ReadonlyArray<
      readonly [string, Faults, Effect.Effect<Event, never, Scope.Scope>]
    > = [
      ["clean", {}, Effect.succeed(nothing)],
      [
        "1 % lost, 5 % doubled, 5 % overtaken, 1 % damaged",
        { loss: 0.01, duplicate: 0.05, reorder: 0.05, corrupt: 0.01 },
        Effect.succeed(nothing),
      ],
      [
        "10 % lost, 10 % doubled, 20 % overtaken, 5 % damaged",
        { loss: 0.1, duplicate: 0.1, reorder: 0.2, corrupt: 0.05 },
        Effect.succeed(nothing),
      ],
      [`server killed three times, away for ${away} s`, {}, during(3, kill)],
      [`server frozen for ${frozen} s`, {}, during(1, freeze)],
    ];
    const rows = new Map<string, LinkRow>();
    const add = (name: string, sample: LinkSample, exact: boolean) => {
      const before = rows.get(name);
      rows.set(name, {
        name,
        samples: [...before?.samples ?? [], sample],
        exact: exact && (before?.exact ?? true),
      });
    };
    yield* exclusively(Effect.gen(function* () {
      for (let i = 0; i < rounds; i++) {
        yield* progress(`link: round ${i + 1} of ${rounds}`);
        const bareSeconds = yield* bare(url, frames, size);
        let cleanSeconds = NaN;
        add(
          "bare publish and subscribe",
          { seconds: bareSeconds, ofBare: 1, ofClean: NaN, stall: NaN, resent: 0 },
          true,
        );
        for (const [name, faults, prepare] of kinds) {
          const transfer = Effect.flatMap(
            prepare,
            (event) => linked(url, frames, size, faults, event),
          );
          const { seconds, stall, exact, resent } = yield* transfer;
          if (name === "clean") cleanSeconds = seconds;
          const [ofBare, ofClean] = [bareSeconds / seconds, cleanSeconds / seconds];
          add(name, { seconds, ofBare, ofClean, stall, resent }, exact);
        }
      }
    }));
    const title = `${mebibytes} MiB in frames of ${size / 1024} KiB, one process, one server`;
    return { title, mebibytes, rows: [...rows.values()] };
  }));

/** One table in Markdown. */
export const linkMarkdown = ({ title, mebibytes, rows }: LinkTable): string => {
  const figure = (values: ReadonlyArray<number>) => values.some(Number.isNaN) ? "" : spread(values);
  const header = ["", "MiB/s", "of bare", "of clean", "longest stall, ms", "sent again", "exact"];
  const cells = rows.map(({ name, samples, exact }) => [
    name,
    figure(samples.map(({ seconds }) => mebibytes / seconds)),
    figure(samples.map(({ ofBare }) => ofBare)),
    figure(samples.map(({ ofClean }) => ofClean)),
    figure(samples.map(({ stall }) => stall)),
    String(median(samples.map(({ resent }) => resent))),
    exact ? "yes" : "NO",
  ]);
  const lines = [header, header.map(() => "---"), ...cells]
    .map((row) => row.flatMap((cell) => ["|", cell]).concat("|"));
  return `## ${title}\n\n${table(lines)}`;
};

/** What was wrong. */
export const linkFaults = ({ rows }: LinkTable): ReadonlyArray<string> =>
  rows.filter(({ exact }) => !exact).map(({ name }) => `"${name}" was not exact`);
