/**
 * Rings against the bare kernel, in one process on one device: what the ring itself costs, and how much of its
 * communication it hides when links are slow. All runs take turns in each round, so that drift of the machine meets
 * them alike, and what the last round computed is judged.
 *
 * @module
 */
import { Context, Effect, Layer, Result } from "effect";
import { causal as causalAttention } from "../plugins/attention.ts";
import { memoryLinks } from "../plugins/memory.ts";
import { attend } from "../runtime/attend.ts";
import { Crew } from "../runtime/crew.ts";
import { Device } from "../runtime/device.ts";
import type { DeviceFailed, DeviceUnavailable } from "../runtime/errors.ts";
import type { DeviceInfo } from "../runtime/kernel.ts";
import type { Links } from "../runtime/link.ts";
import { type Plan, planOf, type Problem } from "../runtime/plan.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";
import { hiddenFraction } from "../runtime/timeline.ts";
import { forward, type Inputs, sharesOf, wholeOf } from "./bare.ts";
import { inputsOf, type Shape, titleOf } from "./job.ts";
import { judge, referenceOf, type Verdict } from "./judge.ts";
import type { BenchOptions } from "./kernels.ts";
import { throttled } from "./throttled_links.ts";

/** One run. */
export interface RingSample {
  readonly seconds: number;
  /** Seconds of the same round's bare kernel, which has the whole sequence in one block. */
  readonly kernel: number;
  /** Seconds of the same round's calls that this ring makes of the device, without the ring. */
  readonly calls: number;
  /** Of a ring: the share of its communication during which no rank stood still for want of a block. */
  readonly hidden?: number;
  /** With a slow link: 1 − (time − time with a free link) / time on the link. */
  readonly hiddenByTime?: number;
}

/** All runs of one kind. */
export interface RingRow {
  readonly name: string;
  readonly samples: ReadonlyArray<RingSample>;
  /** Of what a ring computed; the calls alone leave it in parts. */
  readonly verdict?: Verdict;
}

/** One device. */
export interface RingTable {
  readonly title: string;
  readonly device: DeviceInfo;
  readonly flops: number;
  readonly rows: ReadonlyArray<RingRow>;
}

/** What is measured. */
export interface RingOptions extends Pick<BenchOptions, "rounds" | "progress" | "exclusively"> {
  readonly shape: Shape;
  readonly rings: ReadonlyArray<number>;
  /** How long a block would travel, as shares of the time of the calls of one step. */
  readonly shares: ReadonlyArray<number>;
}

const unbounded = { concurrency: "unbounded" } as const;

/** Adds how long it took. */
const lasting = <A extends object, E, R>(work: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const began = performance.now();
    return Effect.map(work, (value) => ({ ...value, seconds: (performance.now() - began) / 1000 }));
  });

/** What annulus promises for o. */
const bound = 2e-6;

/** A ring of this size, and what its ranks ask of the device. */
interface Ring {
  readonly size: number;
  readonly plan: Plan;
  readonly shares: ReturnType<typeof sharesOf>;
}

/** Measures one device. */
export const measureRings = (
  plugin: DevicePlugin,
  { shape, rings: sizes, shares, rounds, progress, exclusively }: RingOptions,
): Effect.Effect<RingTable, DeviceFailed | DeviceUnavailable | AttendError> =>
  Effect.scoped(Effect.gen(function* () {
    const { heads, tokens, headDim, causal } = shape;
    const job = { kind: "attention", ...shape } as const;
    const tensors = inputsOf(job);
    const inputs: Inputs = { q: tensors["q"]!, k: tensors["k"]!, v: tensors["v"]! };
    const problem: Problem = {
      batch: 1,
      tokens,
      heads,
      kvHeads: heads,
      headDim,
      scale: 1 / Math.sqrt(headDim),
      attention: causal ? [causalAttention()] : [],
    };
    const device = Context.get(yield* Layer.build(plugin.layer), Device);
    const reference = referenceOf(job, tensors);
    const whole = wholeOf(problem, inputs);
    const layout = causal ? "zigzag" : "contiguous";
    const rings = sizes.map((size): Ring => {
      const weights = Array.from({ length: size }, () => 1);
      const plan = Result.getOrThrow(planOf({ problem, layout, weights, wire: "f32" }));
      return { size, plan, shares: sharesOf(plan, inputs) };
    });

    /** Seconds of what the ranks of a ring ask, all of them at once. */
    const callsOf = ({ shares }: Ring) =>
      Effect.map(
        lasting(Effect.forEach(shares, (share) => forward(device, share), unbounded)),
        ({ seconds }) => seconds,
      );
    const turn = ({ size }: Ring, links: Layer.Layer<Links>) =>
      attend({ ...problem, ...inputs, layout, ring: size }).pipe(
        Effect.provide(
          Crew.local().pipe(
            Layer.provideMerge(Layer.merge(Layer.succeed(Device, device), links)),
          ),
        ),
        lasting,
      );

    const samples = new Map<string, Array<RingSample>>();
    const verdicts = new Map<string, Verdict>();
    const enter = (name: string, sample: RingSample) =>
      samples.set(name, [...(samples.get(name) ?? []), sample]);

    const round = Effect.gen(function* () {
      const { seconds: kernel, value } = yield* forward(device, whole);
      enter("bare kernel", { seconds: kernel, kernel, calls: kernel });
      verdicts.set("bare kernel", judge(reference, { ...value }, bound));
      for (const ring of rings) {
        const calls = yield* callsOf(ring);
        enter(`calls of a ring of ${ring.size}`, { seconds: calls, kernel, calls });
        const free = yield* turn(ring, memoryLinks());
        const name = `ring of ${ring.size}`;
        const of = (result: Effect.Success<ReturnType<typeof turn>>) => ({
          seconds: result.seconds,
          kernel,
          calls,
          hidden: hiddenFraction(result.timeline),
        });
        enter(name, of(free));
        verdicts.set(name, judge(reference, { o: free.o, lse: free.lse }, bound));
        if (ring.size === 1) continue;
        // Of a rank with the most of K and V; where a mask ends some blocks' ways early, ranks send less than N − 1 such.
        const { blocks, ranks } = ring.plan;
        const held = ranks.map(({ rank }) =>
          blocks.reduce((sum, { home, bytes }) => home === rank ? sum + bytes : sum, 0)
        );
        for (const share of shares) {
          // A ring of N computes N steps, during N − 1 of which its blocks travel.
          const aHop = share * calls / ring.size;
          const onLink = aHop * (ring.size - 1);
          const links = throttled(Math.max(...held) / aHop).pipe(Layer.provide(memoryLinks()));
          const slow = yield* turn(ring, links);
          const hiddenByTime = 1 - (slow.seconds - free.seconds) / onLink;
          const slowName = `${name}, link at ${Math.round(100 * share)} %`;
          enter(slowName, { ...of(slow), hiddenByTime });
          verdicts.set(slowName, judge(reference, { o: slow.o, lse: slow.lse }, bound));
        }
      }
    });

    const title = `${device.info.name}, ${titleOf(job)}`;
    yield* progress(title);
    yield* exclusively(round); // compiles what needs compiling
    samples.clear();
    for (let n = 0; n < rounds; n++) {
      yield* progress(`  round ${n + 1} of ${rounds}`);
      yield* exclusively(round);
    }
    const rows = [...samples].map(([name, samples]): RingRow => {
      const verdict = verdicts.get(name);
      return { name, samples, ...(verdict === undefined ? {} : { verdict }) };
    });
    const flops = rings[0]!.plan.flops;
    return { title, device: device.info, flops, rows };
  }));

export type AttendError = Effect.Error<ReturnType<typeof attend>>;
