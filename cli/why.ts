/**
 * `annulus why`: what every rank was doing when a run failed, who waited for whom, and since when.
 *
 * @module
 */
import { join } from "node:path";
import { Effect, Result, Schema } from "effect";
import { FileInvalid } from "../runtime/errors.ts";
import { Flight, type FlightEvent, FlightRecorder } from "../runtime/flight.ts";
import { note, print, printJson, table } from "./output.ts";

/** The file of a flight recorder, in its folder. */
const flightName = "flight.json";

/** Writes what was recorded of a run that failed; a folder that cannot be written to must not hide why it did. */
export const writeFlight = (folder: string, recorder: FlightRecorder, failure: string) =>
  Effect.flatMap(recorder.written(failure), (flight) =>
    Effect.tryPromise(async () => {
      await Deno.mkdir(folder, { recursive: true });
      await Deno.writeTextFile(join(folder, flightName), JSON.stringify(flight));
    })).pipe(Effect.catch(({ cause }) => note(`annulus: nothing is recorded: ${cause}`)));

/** What a rank did last. */
interface Last {
  readonly rank: number;
  /** Of the blocks that it computes on, so many were merged. */
  readonly merged: number;
  readonly required: number;
  /** Milliseconds of the run at which it was heard last. */
  readonly heard: number | undefined;
  readonly doing: string;
  /** And since when. */
  readonly since: number | undefined;
  /** Whom it waited for. */
  readonly waitsFor: number | "driver" | undefined;
}

const seconds = (milliseconds: number | undefined): string =>
  milliseconds === undefined ? "never" : `${(milliseconds / 1000).toFixed(1)} s`;

const lastOf = ({ ranks, events }: Flight, rank: number): Last => {
  const { required, receives, sends } = ranks[rank]!;
  const mine = events.filter((event) => event.rank === rank);
  const beats = mine.flatMap((event: FlightEvent) =>
    "beat" in event.event ? [{ at: event.at, ...event.event, beat: event.event.beat }] : []
  );
  const last = beats.at(-1);
  const common = { rank, required, heard: mine.at(-1)?.at };
  if (last === undefined) {
    const doing = "had not begun";
    return { ...common, merged: 0, doing, since: undefined, waitsFor: undefined };
  }
  const { beat, at } = last;
  const since = (milliseconds: number) => at - beat.at + milliseconds;
  const first = (...names: ReadonlyArray<string>) =>
    beat.doing.find(({ activity }) => names.includes(activity));
  const found = (doing: string, begun: number | undefined, waitsFor?: number | "driver"): Last => ({
    ...{ ...common, merged: beat.merged, doing, waitsFor },
    since: begun === undefined ? undefined : since(begun),
  });
  // A device that works waits for nobody; one that does not is what the others are about.
  const compute = first("compute");
  if (compute !== undefined) return found(`computed on block ${compute.block}`, compute.since);
  const edge = first("begin", "finish");
  if (edge !== undefined) {
    return found(`let its device ${edge.activity} its part`, edge.since);
  }
  const wait = first("wait");
  if (wait !== undefined) {
    const from = receives.find(({ block }) => block === wait.block)?.from;
    const whom = from === undefined ? "" : ` from rank ${from}`;
    return found(`waited for block ${wait.block}${whom}`, wait.since, from);
  }
  const load = first("load", "home");
  if (load !== undefined) {
    const what = load.activity === "load" ? "took its inputs from" : "gave its rows to";
    return found(`${what} the driver`, load.since, "driver");
  }
  const forward = first("forward");
  if (forward !== undefined) {
    const to = sends.find(({ block }) => block === forward.block)?.to;
    return found(`sent block ${forward.block} to rank ${to}`, forward.since, to);
  }
  return found("had nothing to do", undefined);
};

/** Who waited for whom, from the rank that waited longest to the one that waited for nobody. */
const chainOf = (ranks: ReadonlyArray<Last>): ReadonlyArray<string> => {
  const waiting = ranks.filter(({ waitsFor }) => typeof waitsFor === "number")
    .toSorted((a, b) => a.since! - b.since!);
  const lines: Array<string> = [];
  const seen = new Set<number>();
  let next: Last | undefined = waiting[0];
  while (next !== undefined && !seen.has(next.rank)) {
    seen.add(next.rank);
    const { rank, doing, since, heard, waitsFor } = next;
    lines.push(
      `rank ${rank} ${doing}${since === undefined ? "" : ` since ${seconds(since)}`}` +
        `, and was heard last at ${seconds(heard)}`,
    );
    next = typeof waitsFor === "number" ? ranks[waitsFor] : undefined;
  }
  return lines;
};

/** Reads what a failed run left in a folder, and says why it failed. */
export const explain = Effect.fn("explain")(function* (
  { folder, json }: { readonly folder: string; readonly json: boolean },
) {
  const path = join(folder, flightName);
  const invalid = (needed: string, found: string) =>
    new FileInvalid({ attempted: "explain", file: path, needed, found });
  const text = yield* Effect.tryPromise({
    try: () => Deno.readTextFile(path),
    catch: (cause) =>
      invalid(
        "what `attend --record` writes must be there",
        cause instanceof Deno.errors.NotFound ? "no such file" : String(cause),
      ),
  });
  const decoded = Schema.decodeUnknownResult(Schema.fromJsonString(Flight))(text);
  if (Result.isFailure(decoded)) {
    return yield* invalid("it must be what `attend --record` writes", decoded.failure.message);
  }
  const flight = decoded.success;
  const ranks = flight.ranks.map((_, rank) => lastOf(flight, rank));
  const chain = chainOf(ranks);
  if (json) {
    const { failure, at, recoveries } = flight;
    return yield* printJson({ failure, at, recoveries, ranks, chain });
  }
  yield* print(`at ${seconds(flight.at)} the run failed: ${flight.failure}\n`);
  for (const { at, epoch, cause } of flight.recoveries) {
    yield* print(`at ${at.toFixed(1)} s epoch ${epoch} began, after: ${cause}`);
  }
  yield* print(table([
    ["rank", "merged", "heard last", "what it did then", "since"],
    ...ranks.map(({ rank, merged, required, heard, doing, since }) => [
      ...[String(rank), `${merged} of ${required}`, seconds(heard), doing],
      since === undefined ? "" : seconds(since),
    ]),
  ]));
  if (chain.length > 0) yield* print(`\n${chain.join(",\n")}`);
});
