/**
 * `deno task bench`: what a ring costs over its bare kernel, on every device that is here. One run interleaves all
 * contenders round by round, so that drift of the machine meets them alike; figures are medians with their range, and
 * the ratio to the bare kernel of the same round is the one to quote.
 *
 * Prints a Markdown table and writes it with the JSON to `bench/results/`.
 *
 * @module
 */
import { Context, Effect, Layer, Result } from "effect";
import { devices } from "../cli/devices.ts";
import { normals } from "../cli/normals.ts";
import { table } from "../cli/output.ts";
import { inProcess } from "../plugins/memory.ts";
import { attend } from "../runtime/attend.ts";
import { Device } from "../runtime/device.ts";
import type { Mask } from "../runtime/mask.ts";
import { planOf } from "../runtime/plan.ts";
import { hiddenFraction } from "../runtime/timeline.ts";
import { version } from "../runtime/version.ts";

const heads = 8, kvHeads = 2, headDim = 64;
const mask: Mask = { kind: "causal" };
const rounds = 5;
const rings = [1, 2, 4, 8];

const median = (values: ReadonlyArray<number>): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]!;

/** Median and range, in three digits. */
const spread = (values: ReadonlyArray<number>): string =>
  `${median(values).toPrecision(3)} [${Math.min(...values).toPrecision(3)}..${
    Math.max(...values).toPrecision(3)
  }]`;

const measure = Effect.fnUntraced(function* (plugin: typeof devices[number], tokens: number) {
  const services = yield* Layer.build(inProcess(plugin));
  const device = Context.get(services, Device);
  const random = normals(1);
  const [q, k, v] = [heads, kvHeads, kvHeads].map((n) => random(tokens * n * headDim)) as [
    Float32Array,
    Float32Array,
    Float32Array,
  ];
  const problem = { batch: 1, tokens, heads, kvHeads, headDim, scale: 1 / 8, mask };
  const plan = Result.getOrThrow(
    planOf({ problem, layout: "contiguous", weights: [1], wire: "f32" }),
  );

  /** Seconds in which the device alone attends over the whole sequence, block by block. */
  const bare = Effect.scoped(Effect.gen(function* () {
    const accumulator = yield* device.begin({
      ...problem,
      dtype: "f32",
      bytes: new Uint8Array(q.buffer),
    });
    let busy = 0;
    for (const { block: { row, span }, tiles } of plan.ranks[0]!.steps) {
      const bytes = new Uint8Array(new SharedArrayBuffer(2 * span.count * kvHeads * headDim * 4));
      const part = (x: Float32Array) =>
        new Uint8Array(x.buffer, row * kvHeads * headDim * 4, bytes.byteLength / 2);
      bytes.set(part(k));
      bytes.set(part(v), bytes.byteLength / 2);
      busy += yield* accumulator.absorb(
        { tokens: span.count, dtype: "f32", bytes },
        tiles,
        plan.band,
      );
    }
    return busy / 1000;
  }));

  const samples = new Map<string, Array<{ gflops: number; ratio: number; hidden: number }>>();
  const note = (name: string, seconds: number, ceiling: number, hidden: number) => {
    const sample = { gflops: plan.flops / seconds / 1e9, ratio: ceiling / seconds, hidden };
    samples.set(name, [...(samples.get(name) ?? []), sample]);
  };
  yield* bare; // compiles what needs compiling
  for (let round = 0; round < rounds; round++) {
    const ceiling = yield* bare;
    note("bare kernel", ceiling, ceiling, 1);
    for (const ring of rings) {
      const run = attend({ tokens, heads, kvHeads, headDim, q, k, v, mask, ring });
      const { seconds, timeline } = yield* Effect.provideContext(run, services);
      note(`ring of ${ring}`, seconds, ceiling, hiddenFraction(timeline));
    }
  }
  return { device: device.info, tokens, rounds, samples: Object.fromEntries(samples) };
});

const results = await Effect.runPromise(Effect.gen(function* () {
  const measured = [];
  for (const plugin of devices) {
    if ((yield* plugin.score) === 0) continue;
    // The reference device is slow and need not be waited for.
    const tokens = plugin.name === "reference" ? 1024 : 4096;
    measured.push(yield* Effect.scoped(measure(plugin, tokens)));
  }
  return measured;
}));

const lines = results.flatMap(({ device, tokens, samples }) => [
  `\n${device.name} on ${device.backend}${
    device.software ? " (software, not a GPU)" : ""
  }, causal, ${tokens} tokens, ` +
  `${heads} heads, ${kvHeads} KV heads, head dim ${headDim}\n`,
  table([
    ["|", "", "|", "GFLOP/s", "|", "of the bare kernel", "|", "hidden", "|"],
    ["|", "---", "|", "---", "|", "---", "|", "---", "|"],
    ...Object.entries(samples).map(([name, all]) => [
      "|",
      name,
      "|",
      spread(all.map(({ gflops }) => gflops)),
      "|",
      spread(all.map(({ ratio }) => ratio)),
      "|",
      spread(all.map(({ hidden }) => hidden)),
      "|",
    ]),
  ]),
]);
const machine = `annulus ${version}, Deno ${Deno.version.deno}, ${Deno.build.target}, ` +
  `${navigator.hardwareConcurrency} cores, ${new Date().toISOString().slice(0, 10)}`;
const markdown =
  `# Ring against bare kernel\n\n\`deno task bench\` on ${machine}; median [min..max] of ${rounds} rounds\n${
    lines.join("\n")
  }\n`;
console.log(markdown);
const folder = new URL("./results/", import.meta.url);
await Deno.mkdir(folder, { recursive: true });
await Deno.writeTextFile(new URL("ring.md", folder), markdown);
await Deno.writeTextFile(
  new URL("ring.json", folder),
  JSON.stringify({ machine, results }, null, 2),
);
Deno.exit(0);
