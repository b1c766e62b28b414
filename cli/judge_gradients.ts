/**
 * Compares finished gradients with the float64 reference: dq of random rows, dk and dv of random keys, as many of each
 * for every rank, while the input streams past.
 *
 * @module
 */
import { Effect } from "effect";
import { KeyGradientOracle, QueryGradientOracle } from "../kernels/gradient_oracle.ts";
import type { SafetensorsFile } from "../plugins/safetensors.ts";
import { decode } from "../runtime/dtype.ts";
import type { FileInvalid } from "../runtime/errors.ts";
import type { Plan } from "../runtime/plan.ts";
import type { Input } from "./inputs.ts";
import { type ErrorFigures, pickRows } from "./judge.ts";

/** Tokens read at once. */
const chunkTokens = 128;

/**
 * A gradient whose terms cancel, as those of a row that sees one key do, cannot be closer than its terms are rounded:
 * it counts as this share of them at least. Where signs are random it is most of them.
 */
const leastShare = 0.1;

/** ‖a − b‖ and ‖b‖, squared and summed up piece by piece. */
export class Distance {
  #apart = 0;
  #norm = 0;
  #terms = 0;
  /** @param squares Of the terms of which each expected number is the sum. */
  add(
    actual: ArrayLike<number>,
    expected: ArrayLike<number>,
    squares: ArrayLike<number> = [],
  ): void {
    for (let i = 0; i < expected.length; i++) {
      this.#apart += (actual[i]! - expected[i]!) ** 2;
      this.#norm += expected[i]! ** 2;
      this.#terms += squares[i] ?? 0;
    }
  }
  get relative(): number {
    const size = Math.max(this.#norm, leastShare ** 2 * this.#terms);
    return Math.sqrt(size === 0 ? this.#apart : this.#apart / size);
  }
}

/**
 * Judges `result`, which holds `o`, `lse`, `dq`, `dk` and `dv`, by its `input`. What dk and dv get from a query row
 * depends on its o and lse, which are taken from the result: `judge` has compared those.
 */
export const judgeGradients = Effect.fn("judgeGradients")(function* (
  input: Input,
  result: SafetensorsFile,
  plan: Plan,
  rowsPerRank: number,
): Effect.fn.Return<Required<Pick<ErrorFigures, "dq" | "dk" | "dv">>, FileInvalid> {
  const { tokens, heads, kvHeads, headDim, batch, scale } = plan.problem;
  const widths = {
    q: heads,
    do: heads,
    o: heads,
    dq: heads,
    k: kvHeads,
    v: kvHeads,
    dk: kvHeads,
    dv: kvHeads,
  };
  /** `count` tokens of one batch entry, from token `first` on. */
  const rows = (name: keyof typeof widths, b: number, first: number, count: number) => {
    const width = widths[name] * headDim;
    const [file, dtype] = name === "q" || name === "k" || name === "v" || name === "do"
      ? [input.file, input.dtypes[name]] as const
      : [result, "f32"] as const;
    const where = { offset: (b * tokens + first) * width, length: count * width };
    return Effect.map(file.read(name, [where]), (bytes) => decode(dtype, bytes));
  };
  const gather = Effect.fnUntraced(function* (
    name: keyof typeof widths,
    b: number,
    positions: ReadonlyArray<number>,
  ) {
    const width = widths[name] * headDim;
    const gathered = new Float32Array(positions.length * width);
    for (const [row, position] of positions.entries()) {
      gathered.set(yield* rows(name, b, position, 1), row * width);
    }
    return gathered;
  });
  const chunks = Array.from(
    { length: Math.ceil(tokens / chunkTokens) },
    (_, i) => [i * chunkTokens, Math.min(chunkTokens, tokens - i * chunkTokens)] as const,
  );

  const picked = pickRows(plan, rowsPerRank);
  const [dq, dk, dv] = [new Distance(), new Distance(), new Distance()];
  for (let b = 0; b < batch; b++) {
    const positions = picked[b]!;
    const shape = {
      ...{ heads, kvHeads, headDim, scale, rules: plan.attention, entry: b, positions },
    };
    const q = yield* gather("q", b, positions);
    const ofQueries = new QueryGradientOracle({ ...shape, q }, yield* gather("do", b, positions));
    for (const pass of ["prepare", "absorb"] as const) {
      for (const [first, count] of chunks) {
        ofQueries[pass](
          first,
          yield* rows("k", b, first, count),
          yield* rows("v", b, first, count),
        );
        yield* Effect.sleep(1); // a turn of the event loop, for signals
      }
    }
    dq.add(yield* gather("dq", b, positions), ofQueries.finish(), ofQueries.squares);

    const [k, v] = [yield* gather("k", b, positions), yield* gather("v", b, positions)];
    const ofKeys = new KeyGradientOracle({ ...shape, k, v });
    for (const [first, count] of chunks) {
      const lse = yield* result.read(
        "lse",
        Array.from({ length: heads }, (_, h) => ({
          offset: (b * heads + h) * tokens + first,
          length: count,
        })),
      );
      ofKeys.absorb(first, {
        q: yield* rows("q", b, first, count),
        cotangent: yield* rows("do", b, first, count),
        o: yield* rows("o", b, first, count),
        lse: decode("f32", lse),
      });
      yield* Effect.sleep(1);
    }
    const expected = ofKeys.finish();
    dk.add(yield* gather("dk", b, positions), expected.dk, expected.squares);
    dv.add(yield* gather("dv", b, positions), expected.dv);
  }
  return { dq: dq.relative, dk: dk.relative, dv: dv.relative };
});
