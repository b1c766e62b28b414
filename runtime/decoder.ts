/**
 * One rank of a model: its part of every sequence, and what it does for each turn. Layer after layer it makes queries, keys
 * and values of its own tokens, keeps keys and values, and has its queries meet those of all ranks.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import { Cache } from "./cache.ts";
import type { Programs } from "./device.ts";
import { bytesOf, firstNonFinite } from "./dtype.ts";
import { NonFinite } from "./errors.ts";
import { meet, type MeetingError, type MeetingParts } from "./meeting.ts";
import { turnsAt } from "./model.ts";
import { before, joined, type Placement, placementOf, positionsOf, tokensIn } from "./placement.ts";
import { ProgramWriter } from "./program.ts";
import { apart, concatenated, resized } from "./rows.ts";
import { type Share, type Turn, wantedOf } from "./turn.ts";

/** What a rank works with. */
export interface DecoderParts extends MeetingParts {
  readonly programs: Programs;
}

/** A sequence as this rank sees it: where all its tokens are, and its own keys and values. */
interface Sequence {
  placement: Placement;
  readonly cache: Cache;
}

/** A sequence in a turn. */
interface Growing {
  readonly past: number;
  readonly tokens: number;
  readonly sequence: Sequence;
  /** Where its new tokens go, and of these the ones whose logits are asked for. */
  readonly arriving: Placement;
  readonly wanted: Placement;
}

/** What goes wrong in a turn. */
export type TurnError = MeetingError | NonFinite;

/** One rank of a model. */
export class Decoder {
  readonly #parts: DecoderParts;
  readonly #sequences = new Map<number, Sequence>();
  #steps = 0;

  constructor(parts: DecoderParts) {
    this.#parts = parts;
  }

  /** Bytes of keys and values that are here. */
  get cacheBytes(): number {
    return [...this.#sequences.values()].reduce((sum, { cache }) => sum + cache.bytes, 0);
  }

  /**
   * Begins sequences with the first tokens of others, and forgets those that nobody needs any more.
   */
  regroup({ shared, dropped }: Pick<Turn, "shared" | "dropped">): void {
    for (const share of shared) this.#share(share);
    for (const id of dropped) this.#sequences.delete(id);
  }

  /**
   * Lets sequences grow, and gives the logits of this rank's tokens that were asked for, [tokens, vocabulary].
   *
   * @param ids Of this rank's new tokens, sequence by sequence.
   */
  turn(
    { sequences }: Pick<Turn, "sequences">,
    ids: Uint32Array,
  ): Effect.Effect<Float32Array, TurnError, Scope.Scope> {
    return Effect.gen({ self: this }, function* () {
      const { rank, model, device, programs, recorder } = this.#parts;
      const growing = sequences.map((growth) => this.#grow(growth));
      const counts = growing.map(({ arriving }) => tokensIn(arriving[rank]!));
      const positions = growing.flatMap(({ arriving }) => positionsOf(arriving[rank]!));
      const turns = turnsAt(model, positions);
      const rows = this.#wantedRows(growing);
      const wanted = { rows, turns: turnsAt(model, Array.from(rows, (row) => positions[row]!)) };
      const last = model.layers - 1;
      const run = (writer: ProgramWriter) =>
        recorder.timed(
          { activity: "compute", step: 0, block: -1, bytes: 0 },
          programs.run(writer.program),
        );

      let writer = new ProgramWriter();
      let x = model.embed(writer, ids);
      for (let layer = 0; layer < model.layers; layer++) {
        const queries = layer === last ? "wanted" : "arriving";
        const { q, k, v } = model.project(
          ...[writer, layer, x, turns] as const,
          layer === last ? wanted : undefined,
        );
        writer.give(q, k, v);
        writer.keep(x);
        const given = (yield* run(writer)).map((all) =>
          resized(all, model.ownHeadDim, model.headDim)
        );
        const width = model.heads * model.headDim;
        const asked = apart(
          given[0]!,
          growing.map((one) => width * tokensIn(one[queries][rank]!)),
        );
        const kept = x;
        const [keys, values] = given.slice(1).map((all) =>
          apart(all, counts.map((count) => model.kvHeads * model.headDim * count))
        );
        for (const [i, { sequence }] of growing.entries()) {
          sequence.cache.put(layer, keys![i]!, values![i]!);
        }
        const o = yield* meet(
          this.#parts,
          layer,
          this.#steps++,
          growing.map((one, i) => ({
            ...{ past: one.past, tokens: one.tokens, queries: one[queries], values: asked[i]! },
            ...{ keys: one.sequence.placement, cache: one.sequence.cache },
          })),
        ).pipe(
          // The device outlives the session.
          Effect.onError(() => Effect.ignore(programs.run({ steps: [], kept: [], given: [kept] }))),
        );
        writer = new ProgramWriter();
        const residual = layer === last ? writer.pick(x, rows) : x;
        const attended = resized(concatenated(o), model.headDim, model.ownHeadDim);
        const put = writer.put(attended, model.heads * model.ownHeadDim);
        x = model.combine(writer, layer, residual, put);
      }
      writer.give(model.logits(writer, x));
      const [logits] = yield* run(writer);
      const index = firstNonFinite("f32", bytesOf(logits!));
      if (index < 0) return logits!;
      const found = String(logits![index]);
      return yield* new NonFinite({
        device: device.info.name,
        rank,
        tensor: "logits",
        index,
        found,
      });
    });
  }

  /** A sequence that is here. */
  sequence(id: number): { readonly placement: Placement; readonly cache: Cache } {
    const found = this.#sequences.get(id);
    if (found === undefined) throw new RangeError(`sequence ${id} is not there`);
    return found;
  }

  /** A new sequence that begins with the first of these tokens, and the memory for this rank's, which is still empty. */
  begin(id: number, whole: Placement, tokens: number): Cache {
    const { job, rank, model } = this.#parts;
    const placement = whole.map((spans) => before(spans, tokens));
    const cache = new Cache({ ...model, dtype: job.cache });
    cache.extend(placement[rank]!);
    this.#sequences.set(id, { placement, cache });
    return cache;
  }

  #share({ id, from, tokens }: Share): void {
    const { placement, cache } = this.sequence(from);
    const own = placement.map((spans) => before(spans, tokens));
    const count = tokensIn(own[this.#parts.rank]!);
    this.#sequences.set(id, { placement: own, cache: cache.first(count) });
  }

  #grow(growth: Turn["sequences"][number]): Growing {
    const { job, rank, model } = this.#parts;
    const { id, past, tokens } = growth;
    const sequence = this.#sequences.get(id) ?? {
      placement: Array.from({ length: job.ring }, () => []),
      cache: new Cache({ ...model, dtype: job.cache }),
    };
    this.#sequences.set(id, sequence);
    const arriving = placementOf(past, tokens, job.ring);
    sequence.placement = sequence.placement.map((spans, i) => joined(spans, arriving[i]!));
    sequence.cache.extend(arriving[rank]!);
    return { past, tokens, sequence, arriving, wanted: wantedOf(growth, arriving) };
  }

  /** Which of this rank's new tokens are asked for. */
  #wantedRows(growing: ReadonlyArray<Growing>): Uint32Array {
    const { rank } = this.#parts;
    const rows: Array<number> = [];
    let begin = 0;
    for (const { arriving, wanted } of growing) {
      const asked = new Set(positionsOf(wanted[rank]!));
      for (const position of positionsOf(arriving[rank]!)) {
        if (asked.has(position)) rows.push(begin);
        begin++;
      }
    }
    return Uint32Array.from(rows);
  }
}
