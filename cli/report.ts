/**
 * The report of a run, as `--json` prints it and as a person reads it.
 *
 * @module
 */
import type { Recovery, RunRecord } from "../runtime/driver.ts";
import type { DeviceInfo } from "../runtime/kernel.ts";
import { balanceOf } from "../runtime/plan.ts";
import { hiddenFraction, type Interval } from "../runtime/timeline.ts";
import type { ErrorFigures } from "./judge.ts";
import { sizeInWords } from "./output.ts";

/** What the members of a ring compute on; one entry where all are alike. */
const deviceOf = (infos: ReadonlyArray<DeviceInfo>) => {
  const distinct = [...new Map(infos.map((info) => [info.name + info.backend, info])).values()];
  const joined = (of: (info: DeviceInfo) => string) => [...new Set(distinct.map(of))].join(" + ");
  return {
    name: joined(({ name }) => name),
    backend: joined(({ backend }) => backend),
    software: distinct.some(({ software }) => software),
  };
};

const lasting = (intervals: ReadonlyArray<Interval>): number =>
  intervals.reduce((sum, { begin, end }) => sum + end - begin, 0);

/**
 * The report of a run. Milliseconds are wall time on the rank; `pairs` are (query, key) pairs that count, per head and
 * batch entry; `hidden_fraction` is the share of the time in which blocks arrived that no rank stood still for;
 * `balance` is the largest share of the pairs over the mean.
 */
export const reportOf = (
  { plan, timeline, ranks, seconds, recoveries }: RunRecord,
  error: ErrorFigures | undefined,
) => {
  // Looked up once for each rank and step: there are as many of those as intervals.
  const keyOf = ({ rank, block, activity }: Pick<Interval, "rank" | "block" | "activity">) =>
    `${rank} ${block} ${activity}`;
  const byKey = Map.groupBy(timeline, keyOf);
  const activities = (rank: number, block: number, activity: Interval["activity"]) =>
    byKey.get(keyOf({ rank, block, activity })) ?? [];
  return {
    ring: plan.ring,
    layout: plan.layout,
    attention: plan.problem.attention.map(({ definition: { name }, params }) => ({
      name,
      params,
    })),
    wire: plan.wire,
    device: deviceOf(ranks.map(({ device }) => device)),
    tokens: plan.problem.tokens,
    seconds,
    tokens_per_second: plan.problem.tokens / seconds,
    flops: plan.flops,
    gradients: plan.gradients === true,
    bytes_sent: ranks.map(({ sentBytes }) => sentBytes),
    gradient_bytes_sent: ranks.map(({ sentGradientBytes }) => sentGradientBytes),
    kv_peak_bytes: ranks.map(({ kvPeakBytes }) => kvPeakBytes),
    rss_bytes: ranks.map(({ rssBytes }) => rssBytes),
    links: ranks.map(({ links }) => links),
    hidden_fraction: hiddenFraction(timeline),
    balance: balanceOf(plan),
    pairs: plan.pairs,
    recoveries,
    counted: plan.counted,
    hops: Math.max(0, ...plan.blocks.map(({ path }) => path.length)),
    ranks: plan.ranks.map(({ rank, tokens, pairs, steps }) => ({
      rank,
      tokens,
      pairs,
      steps: steps.map(({ block, distance, state, pairs }) => ({
        block: block.id,
        home: block.home,
        step: distance,
        state,
        compute_ms: lasting(activities(rank, block.id, "compute")),
        wait_ms: lasting(activities(rank, block.id, "wait")),
        pairs,
      })),
    })),
    ...(error === undefined ? {} : { error: judged(error) }),
  };
};

/** The figures of `--verify`; those of gradients where there are any. */
const judged = (error: ErrorFigures) => {
  const { largestLse: _, ...figures } = error;
  return figures;
};

/** One failure that a run survived, in a sentence. */
export const recoveryInWords = ({ epoch, cause, moved }: Recovery): string =>
  `${cause}; the run goes on in epoch ${epoch}` +
  moved.map(({ rank, to }) => `, rank ${rank} on ${to}`).join("");

/** A report of a run. */
export type Report = ReturnType<typeof reportOf>;

/** The reports of several layers, and what they took together. */
export const reportOfLayers = (layers: ReadonlyArray<Report>) => ({
  tokens: layers[0]!.tokens,
  seconds: layers.reduce((sum, { seconds }) => sum + seconds, 0),
  flops: layers.reduce((sum, { flops }) => sum + flops, 0),
  bytes_sent: layers[0]!.bytes_sent.map((_, rank) =>
    layers.reduce((sum, { bytes_sent }) => sum + bytes_sent[rank]!, 0)
  ),
  layers,
});

/** The reports of several layers. */
export type LayersReport = ReturnType<typeof reportOfLayers>;

/** "webgpu (WebGPU on llvmpipe …), which is software on the CPU, not a GPU" */
export const deviceInWords = ({ name, backend, software }: Report["device"]): string =>
  `${name} (${backend})${software ? ", which is software on the CPU, not a GPU" : ""}`;

/** The report in lines for a person; of several layers, what they took together after those of each. */
export const reportInWords = (report: Report | LayersReport): ReadonlyArray<string> => {
  if (!("layers" in report)) return layerInWords(report);
  const { layers, seconds, flops, bytes_sent } = report;
  const most = Math.max(...bytes_sent);
  return [
    ...layers.flatMap((layer, i) => [
      `layer ${i}    ${layer.attention.map(({ name }) => name).join(" & ") || "bidirectional"}`,
      ...layerInWords(layer),
      "",
    ]),
    `all        ${layers.length} layers in ${seconds.toFixed(2)} s, ${
      (flops / seconds / 1e9).toFixed(1)
    } GFLOP/s; the busiest rank sent ${most === 0 ? "nothing" : sizeInWords(most)}`,
  ];
};

const layerInWords = (report: Report): ReadonlyArray<string> => {
  const most = Math.max(...report.bytes_sent);
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  return [
    `ring       ${report.ring} rank${
      report.ring === 1 ? "" : "s"
    }, ${report.layout}, K and V travel as ${report.wire}`,
    `device     ${deviceInWords(report.device)}`,
    `tokens     ${report.tokens} in ${report.seconds.toFixed(2)} s: ${
      Math.round(report.tokens_per_second)
    } tokens/s, ${(report.flops / report.seconds / 1e9).toFixed(1)} GFLOP/s`,
    `balance    ${report.balance.toFixed(3)} (pairs of the busiest rank over the mean)`,
    most === 0
      ? "sent       nothing from rank to rank"
      : `sent       ${sizeInWords(most)} by the busiest rank; ${
        percent(report.hidden_fraction)
      } of the time it took was hidden`,
    ...(report.error === undefined ? [] : [
      `error      o ${report.error.o.toExponential(1)} (relative L2), lse ${
        report.error.lse.toExponential(1)
      } (largest), against float64 over ${report.error.rows} rows`,
      ...(["dq", "dk", "dv"] as const).flatMap((name) => {
        const apart = report.error?.[name];
        return apart === undefined
          ? []
          : [`           ${name} ${apart.toExponential(1)} (relative L2)`];
      }),
    ]),
  ];
};
