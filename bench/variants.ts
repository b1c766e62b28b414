/**
 * Attention variants over a ring, against plain causal attention over the same ring: what a mask leaves to compute and to
 * move, and whether time falls accordingly.
 *
 * @module
 */
import { Context, Effect, Layer, Result } from "effect";
import { StreamingOracle } from "../kernels/oracle.ts";
import { definitions } from "../plugins/attention.ts";
import { memoryLinks } from "../plugins/memory.ts";
import { parseAttention } from "../cli/attention.ts";
import { normals } from "../cli/random.ts";
import { attend } from "../runtime/attend.ts";
import { resolveAttention } from "../runtime/attention.ts";
import { Crew } from "../runtime/crew.ts";
import { Device } from "../runtime/device.ts";
import type { DeviceUnavailable } from "../runtime/errors.ts";
import type { DeviceInfo } from "../runtime/kernel.ts";
import { costOf, type LayoutCost } from "../runtime/layout_choice.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";
import type { AttendError } from "./ring.ts";
import type { BenchOptions } from "./kernels.ts";
import { table } from "../cli/output.ts";
import { digits, median, spread } from "./statistics.ts";
import type { Verdict } from "./judge.ts";

/** One run, and the seconds of causal attention in the same round. */
export interface VariantSample {
  readonly seconds: number;
  readonly causal: number;
}

/** All runs of one attention. */
export interface VariantRow extends LayoutCost {
  readonly name: string;
  readonly samples: ReadonlyArray<VariantSample>;
  /** Pairs that count, as a share of those of causal attention. */
  readonly pairs: number;
  readonly verdict: Verdict;
}

/** One device. */
export interface VariantTable {
  readonly title: string;
  readonly device: DeviceInfo;
  readonly rows: ReadonlyArray<VariantRow>;
}

/** What is measured. */
export interface VariantOptions extends Pick<BenchOptions, "rounds" | "progress" | "exclusively"> {
  readonly tokens: number;
  readonly ring: number;
}

const heads = 2, kvHeads = 1, headDim = 64;
const bound = 2e-6;
const rowsJudged = 32;

/** What is compared with causal attention; lengths are shares of the sequence. */
const expressions = (tokens: number): ReadonlyArray<string> => {
  const [eighth, small] = [Math.ceil(tokens / 8), Math.ceil(tokens / 512)];
  // Documents of halving lengths: the longest half of all.
  const bounds = [0];
  for (let rest = tokens; rest > 0;) {
    const length = rest <= small ? rest : Math.ceil(rest / 2);
    bounds.push(tokens - rest + length);
    rest -= length;
  }
  return [
    "causal",
    `window(${eighth})`,
    `sink-window(${small}, ${eighth})`,
    `chunked(${eighth}) & causal`,
    `documents(${JSON.stringify(bounds)}) & causal`,
    `prefix(${eighth})`,
    "alibi & causal",
    "softcap(30) & causal",
  ];
};

/** "documents(…) & causal": tables are long. */
const titleOf = (expression: string): string => expression.replace(/\[[^\]]*\]/, "…");

/** Measures one device. */
export const measureVariants = (
  plugin: DevicePlugin,
  { tokens, ring, rounds, progress, exclusively }: VariantOptions,
): Effect.Effect<VariantTable, DeviceUnavailable | AttendError> =>
  Effect.scoped(Effect.gen(function* () {
    const random = normals(5);
    const inputs = {
      q: random(tokens * heads * headDim),
      k: random(tokens * kvHeads * headDim),
      v: random(tokens * kvHeads * headDim),
    };
    const shape = { batch: 1, tokens, heads, kvHeads, headDim };
    const device = Context.get(yield* Layer.build(plugin.layer), Device);
    const services = Crew.local().pipe(
      Layer.provideMerge(Layer.merge(Layer.succeed(Device, device), memoryLinks())),
    );
    const positions = Array.from(
      { length: rowsJudged },
      (_, i) => Math.round(i * (tokens - 1) / (rowsJudged - 1)),
    );
    const width = heads * headDim;
    const contenders = expressions(tokens).map((expression) => {
      const attention = Result.getOrThrow(parseAttention(expression, definitions));
      const rules = Result.getOrThrow(resolveAttention(attention, shape));
      const q = new Float32Array(positions.length * width);
      positions.forEach((position, r) =>
        q.set(inputs.q.subarray(position * width, (position + 1) * width), r * width)
      );
      const scale = 1 / Math.sqrt(headDim);
      const oracle = new StreamingOracle({ ...shape, scale, rules, entry: 0, positions, q });
      oracle.absorb(0, inputs.k, inputs.v);
      return { name: titleOf(expression), attention, expected: oracle.finish().o };
    });

    const turn = (attention: typeof contenders[number]["attention"]) =>
      Effect.suspend(() => {
        const began = performance.now();
        return attend({ ...shape, ...inputs, attention, ring }).pipe(
          Effect.provide(services),
          Effect.map((result) => ({ result, seconds: (performance.now() - began) / 1000 })),
        );
      });
    const rows = new Map<string, VariantRow>();
    let causalPairs = 1;
    const round = (counts: boolean) =>
      Effect.gen(function* () {
        let causal = 0;
        for (const { name, attention, expected } of contenders) {
          const { result: { o, plan }, seconds } = yield* turn(attention);
          if (name === "causal") [causal, causalPairs] = [seconds, plan.pairs];
          let apart = 0, norm = 0;
          positions.forEach((position, r) => {
            for (let c = 0; c < width; c++) {
              const wanted = expected[r * width + c]!;
              apart += (o[position * width + c]! - wanted) ** 2;
              norm += wanted ** 2;
            }
          });
          const error = Math.sqrt(apart / norm);
          const before = counts ? rows.get(name)?.samples ?? [] : [];
          rows.set(name, {
            ...costOf(plan),
            name,
            samples: counts ? [...before, { seconds, causal }] : [],
            pairs: plan.pairs / causalPairs,
            verdict: { error, right: error <= bound },
          });
        }
      });

    const title =
      `${device.info.name}, ${tokens} tokens, ${heads}/${kvHeads} heads of ${headDim}, ring of ${ring}`;
    yield* progress(title);
    yield* exclusively(round(false)); // compiles what needs compiling
    for (let n = 0; n < rounds; n++) {
      yield* progress(`  round ${n + 1} of ${rounds}`);
      yield* exclusively(round(true));
    }
    return { title, device: device.info, rows: [...rows.values()] };
  }));

/** One table in Markdown. */
export const variantMarkdown = ({ title, device, rows }: VariantTable): string => {
  const header = [
    "",
    "ms",
    "time of causal",
    "pairs of causal",
    "MiB moved",
    "hops",
    "layout",
    "balance",
    "error",
  ];
  const cells = rows.map(({ name, samples, pairs, sentBytes, hops, layout, balance, verdict }) => [
    name,
    spread(samples.map(({ seconds }) => 1000 * seconds)),
    digits(median(samples.map(({ seconds, causal }) => seconds / causal))),
    digits(pairs),
    (sentBytes / 2 ** 20).toFixed(2),
    String(hops),
    layout,
    balance.toFixed(3),
    `${verdict.error.toExponential(1)}${verdict.right ? "" : " WRONG"}`,
  ]);
  const lines = [header, header.map(() => "---"), ...cells]
    .map((row) => row.flatMap((cell) => ["|", cell]).concat("|"));
  const kind = device.software ? " (software, not a GPU)" : "";
  return `## ${title}\n\n${device.backend}${kind}.\n\n${table(lines)}`;
};

/** What makes the bench fail, in sentences. */
export const variantFaults = (tables: ReadonlyArray<VariantTable>): ReadonlyArray<string> =>
  tables.flatMap(({ title, rows }) =>
    rows.filter(({ verdict }) => !verdict.right).map(({ name, verdict }) =>
      `${title}: ${name} is wrong, its relative error is ${verdict.error.toExponential(1)}`
    )
  );
