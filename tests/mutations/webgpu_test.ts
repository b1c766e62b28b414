/** The same faults and more in the programs of GPUs. */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { referenceKernel } from "../../kernels/reference.ts";
import { findAdapter, isSoftware } from "../../plugins/webgpu/adapter.ts";
import type { AttentionKernel, Queries } from "../../runtime/kernel.ts";
import {
  assertCaught,
  type Case,
  casesOf,
  type Changes,
  type Contract,
  type Fault,
  firstToFail,
  type Load,
  printTable,
  soonest,
  table,
  withCopy,
} from "../support/faults.ts";

/** The device itself refuses a wrong program; where `host` does so is left out, for the contract to notice. */
const unchecked =
  (host: string, check: Changes) => (fault: string, file: string, ...changes: Changes): Fault => ({
    fault,
    changes: file === host
      ? { [host]: [...check, ...changes] }
      : { [host]: check, [file]: changes },
  });

const attendWgsl = unchecked("plugins/webgpu/programs.ts", [[
  "await this.#check(made, compiled);",
  "",
]]);
const wgsl = (
  fault: string,
  file: "attend" | "attend_task" | "attend_tiles" | "attend_wide" | "span" | "workgroups",
  ...changes: Changes
): Fault => attendWgsl(fault, `kernels/${file}.wgsl`, ...changes);

const backwardWgsl = unchecked("plugins/webgpu/backward.ts", [[
  "await selfCheckBackward({ beginBackward: begin }, dtype, headDim);",
  "begin;",
]]);

/** The same in the program of GPUs: the device contract must notice. */
const wgslFaults: ReadonlyArray<Fault> = [
  wgsl("a score beyond the range is passed over", "attend", [
    "select(l, -1.0, lost || before$r.y < 0.0)",
    "select(l, -1.0, before$r.y < 0.0)",
  ]),
  wgsl("a score beyond the range is forgotten by the next block", "attend", [
    "lost || before$r.y < 0.0",
    "lost",
  ]),
  wgsl("key heads are tiled over query heads, not repeated", "attend", [
    "group.y * task.kvHeads / task.heads;",
    "group.y % task.kvHeads;",
  ]),
  wgsl("every batch entry reads the first one's keys", "attend", [
    "let keyToken = group.z * task.keyTokens + task.column;",
    "let keyToken = task.column;",
  ]),
  wgsl("the second half of a shard overwrites the first", "attend", [
    "* task.queryTokens + task.row + row$r) * task.heads",
    "* task.queryTokens + row$r) * task.heads",
  ]),
  {
    fault: "a shard begins with what the last one left",
    changes: {
      "plugins/webgpu/kernel.ts": [[
        "for (const state of [piece.outputs, piece.tops]) encoder.clearBuffer(state);",
        "",
      ]],
    },
  },
  wgsl("scores are not scaled", "attend", [
    "let read = queries[query$r + c] * task.scale;",
    "let read = queries[query$r + c];",
  ]),
  wgsl("two workgroups take the same rows", "workgroups", ["0x52614370u", "0x52614340u"]),
  wgsl("positions are local indices", "span", [
    "return span.x + (j / span.y) * span.z + j % span.y;",
    "return i;",
  ]),
  wgsl("a query does not see itself", "attend", [
    "keysUpTo(position$r + task.ahead)",
    "keysUpTo(position$r + task.ahead - 1)",
  ]),
  wgsl("the window is one token too long where it is tested", "attend", [
    "keysUpTo(position$r - task.back - 1)",
    "keysUpTo(position$r - task.back - 2)",
  ]),
  wgsl("what was gathered is not rescaled", "attend", [
    "o$r_$c * keep$r + sum$r_$c;",
    "o$r_$c + sum$r_$c;",
  ]),
  wgsl("what earlier chunks gave is not rescaled", "attend", [
    "allO$r_$c * keepAll$r + o$r_$c * addChunk$r;",
    "allO$r_$c + o$r_$c * addChunk$r;",
  ]),
  wgsl("what earlier blocks gave is not rescaled", "attend", [
    "outputs[query$r + c] * keep$r + o * add$r;",
    "outputs[query$r + c] + o * add$r;",
  ]),
  wgsl("what a block gives is not rescaled", "attend", [
    "outputs[query$r + c] * keep$r + o * add$r;",
    "outputs[query$r + c] * keep$r + o;",
  ]),
  wgsl("the far half of a workgroup is rescaled as the near one is", "attend", [
    "outputs[far$r + c] * farKeep$r + farO * farAdd$r;",
    "outputs[far$r + c] * keep$r + farO * farAdd$r;",
  ]),
  wgsl("what a block gives the far half is not rescaled", "attend", [
    "farO * farAdd$r;",
    "farO;",
  ]),
  wgsl("the far half gets what the near one has", "attend", [
    "subgroupShuffle(o, place ^ HALF)",
    "o",
  ]),
  wgsl("rows beyond the tile are written by the near half", "attend", [
    "lane < HALF && farFirst + $ru < task.rows",
    "lane < HALF",
  ]),
  wgsl("the sum of weights is not rescaled", "attend", ["l$r * keep$r + sum$r", "l$r + sum$r"]),
  wgsl("the accumulator is float16", "attend", [
    "o$r_$c = o$r_$c * keep$r + sum$r_$c;",
    `let x$r_$c = o$r_$c * keep$r + sum$r_$c;
      o$r_$c = vec4f(
        unpack2x16float(pack2x16float(x$r_$c.xy)),
        unpack2x16float(pack2x16float(x$r_$c.zw)),
      );`,
  ]),
  wgsl("a row without keys begins with a maximum of 0", "attend", [
    "select(LOWEST, before$r.x, before$r.y > 0.0)",
    "before$r.x",
  ]),
  wgsl("shadows of the last key count", "attend", [
    "u32(key$j - low$r) < count$r;",
    "key$j >= low$r && (key$j < low$r + i32(count$r) || key$j >= task.columns);",
  ]),
  wgsl("an invocation passes on another one's part of a key", "attend", [
    "subgroupBroadcast(keys$j_$[$c / LANES], $[$c % LANES]u)",
    "subgroupBroadcast(keys$j_$[$c / LANES], 0u)",
  ]),
  wgsl("keys that all rows see are visited by both variants", "attend_task", [
    "select(0, visit.gap, k >= visit.gapBegin)",
    "0",
  ]),
  wgsl("the rest of a whole number of groups is nobody's", "attend_task", [
    "let total = keysUpTo(farthest + task.ahead) - begin - clear;",
    "let total = clearBegin - begin + keysUpTo(farthest + task.ahead) - keysUpTo(nearest + task.ahead);",
  ]),
];

/** The same in the version for GPUs. */
const tilesFaults: ReadonlyArray<Fault> = [
  wgsl("a score beyond the range is passed over", "attend_tiles", [
    "select(l$r, -1.0, worst$r >= INFINITE)",
    "l$r",
  ]),
  wgsl("each invocation has a maximum of its own", "attend_tiles", [
    "max(highest$r, shares[(down + DOWN * $ru) * ACROSS + a]);",
    "max(highest$r, shares[(down + DOWN * $ru) * ACROSS + across + 0u * a]);",
  ]),
  wgsl("one invocation's weights are the sum of all", "attend_tiles", [
    "sum$r += share$r;",
    "sum$r = share$r;",
  ]),
  wgsl("only the last part of a row counts", "attend_tiles", [
    "score$r_$j = fma(q$r[$e], k$j[$e], score$r_$j);",
    "score$r_$j = fma(q$r[$e], k$j[$e], select(score$r_$j, 0.0, part > 0u && $cu + $eu == 0u));",
  ]),
  wgsl("what earlier chunks gave is not rescaled", "attend_tiles", [
    "outputs[output + ACROSS * $ou] * keep",
    "outputs[output + ACROSS * $ou]",
  ]),
  wgsl("the sum of earlier chunks is lost", "attend_tiles", [
    "before$r.y * keep + sum$r * add",
    "sum$r * add",
  ]),
  wgsl("values are those of other keys", "attend_tiles", [
    "(k + $su) * QUADS + across",
    "k * QUADS + across",
  ]),
  wgsl("the mask is that of a neighbour", "attend_tiles", [
    "let sees$r = seenBy[down + DOWN * $ru];",
    "let sees$r = seenBy[down];",
  ]),
];

const keysPass = (fault: string, ...changes: Changes) =>
  backwardWgsl(fault, "kernels/attend_backward_keys.wgsl", ...changes);
const queriesPass = (fault: string, ...changes: Changes) =>
  backwardWgsl(fault, "kernels/attend_backward_queries.wgsl", ...changes);
const backwardHost = (fault: string, ...changes: Changes) =>
  backwardWgsl(fault, "plugins/webgpu/backward.ts", ...changes);

/** What may go wrong wherever an invocation, whose i-th key has the name `key`, owns keys. */
const ownKeysFaults = (pass: typeof keysPass, key: string): ReadonlyArray<Fault> => [
  pass("dk and dv are swapped", [
    `gradients[keyAt${key} * QUADS + c] += dk;`,
    `gradients[keyAt${key} * QUADS + c] += dv;`,
  ], [
    `gradients[(task.values + keyAt${key}) * QUADS + c] += dv;`,
    `gradients[(task.values + keyAt${key}) * QUADS + c] += dk;`,
  ]),
  pass("query heads are tiled over key heads, not grouped", [
    "keyHead * sharing + n;",
    "keyHead + n * task.kvHeads;",
  ]),
  pass("the heads that share a key are not summed up", [
    "break if n >= sharing;",
    "break if true;",
  ]),
  pass("every batch entry reads the first one's queries", [
    "(entry * task.heads + head) * task.queryTokens + task.row;",
    "head * task.queryTokens + task.row;",
  ]),
  pass("the mask is off by one", [
    `rowsUpTo(position${key} - task.ahead - 1);`,
    `rowsUpTo(position${key} - task.ahead);`,
  ]),
  pass("the window is one token too long", [
    `u32(rowsUpTo(position${key} + task.back) - low${key})`,
    `u32(rowsUpTo(position${key} + task.back + 1) - low${key})`,
  ]),
  pass("rows are not taken in whole quads", ["begin / 4 * 4;", "begin;"]),
  pass("what another stretch of rows gave to dk is lost", ["+= dk;", "= dk;"]),
  pass("what another stretch of rows gave to dv is lost", ["+= dv;", "= dv;"]),
];

/** The same in the backward pass of GPUs: the contract of gradients must notice. */
const backwardWgslFaults: ReadonlyArray<Fault> = [
  ...ownKeysFaults(keysPass, "$r"),
  keysPass("dk is summed up in float16", [
    "dk$r_$c += dS$r_0 * q0_$c",
    `dk$r_$c = vec4f(
        unpack2x16float(pack2x16float(dk$r_$c.xy)),
        unpack2x16float(pack2x16float(dk$r_$c.zw)),
      );
      dk$r_$c += dS$r_0 * q0_$c`,
  ]),
  keysPass("D is forgotten", ["slope$r_$j -= outcome$j.y;", ""]),
  keysPass("the log-sum-exp is forgotten", [
    "weight(score$r_$j, outcome$j.x)",
    "weight(score$r_$j, 8.0)",
  ]),
  keysPass("the log-sum-exp is that of another head", [
    "outcomeAt(rowBase + row$j)",
    "outcomeAt(rowBase - n * task.queryTokens + row$j)",
  ]),
  queriesPass("what another stretch of keys gave to dq is lost", ["+= dq;", "= dq;"]),
  queriesPass("dS that was not written counts", [
    "select(0.0, scores$[$r / FOUR]_$j[$[$r % FOUR]], u32(k + $j - low$r) < count$r);",
    "scores$[$r / FOUR]_$j[$[$r % FOUR]];",
  ]),
  queriesPass("every batch entry reads the first one's keys", [
    "(entry * task.keyTokens + task.column) * task.kvHeads + keyHead;",
    "task.column * task.kvHeads + keyHead;",
  ]),
  backwardHost("the scale is forgotten", [
    "gradients[source + c]! * scale;",
    "gradients[source + c]!;",
  ]),
  backwardHost("gradients of the block before are not cleared", [
    "encoder.clearBuffer(gradients, 0, size);",
    "",
  ]),
];

const keysTiles = (fault: string, ...changes: Changes) =>
  backwardWgsl(fault, "kernels/attend_backward_keys_tiles.wgsl", ...changes);
const queriesTiles = (fault: string, ...changes: Changes) =>
  backwardWgsl(fault, "kernels/attend_backward_queries_tiles.wgsl", ...changes);

/** The same in tiles, which GPUs have. */
const tilesBackwardFaults: ReadonlyArray<Fault> = [
  keysTiles("D is forgotten in tiles", ["product1_$r_$j -= outcome$j.y;", ""]),
  keysTiles("P is used for dk as well", [
    "line$m_$j_$[$r / FOUR][$[$r % FOUR]] = product$m_$r_$j;",
    "line$m_$j_$[$r / FOUR][$[$r % FOUR]] = product0_$r_$j;",
  ]),
  keysTiles("the heads that share a key are not summed up in tiles", [
    "n < sharing; n++",
    "n < 1u; n++",
  ]),
  keysTiles("what another tile gave to dv is lost", ["+= sum0_$r_$o;", "= sum0_$r_$o;"]),
  keysTiles("the mask of a key is that of a neighbour", [
    "let sees$r = seenBy[down + DOWN * $ru];",
    "let sees$r = seenBy[down];",
  ]),
  queriesTiles("keys are in the order of memory", [
    "number / KEYS + KEYS_DOWN * (number % KEYS)",
    "number",
  ]),
  queriesTiles("dS that was not written counts in tiles", [
    "select(0.0, x.x, u32(keyOf(first) - sees.x) < u32(sees.y))",
    "x.x",
  ]),
  queriesTiles("what another tile gave to dq is lost", ["+= dq$r_$o;", "= dq$r_$o;"]),
];

const onlyPass = (fault: string, ...changes: Changes) =>
  backwardWgsl(fault, "kernels/attend_backward_once.wgsl", ...changes);

/** The same where one pass does it all, which software adapters alone have. */
const singlePassFaults: ReadonlyArray<Fault> = [
  ...ownKeysFaults(onlyPass, "$k"),
  onlyPass("dv is summed up in float16", [
    "dv$k_$c += p$k_0 * dOAgain0_$c",
    `dv$k_$c = vec4f(
        unpack2x16float(pack2x16float(dv$k_$c.xy)),
        unpack2x16float(pack2x16float(dv$k_$c.zw)),
      );
      dv$k_$c += p$k_0 * dOAgain0_$c`,
  ]),
  onlyPass("D is forgotten", [
    "p$k_$j * (slope$k[$j] - outcome$j.y);",
    "p$k_$j * slope$k[$j];",
  ]),
  onlyPass("the log-sum-exp is forgotten", [
    "weight(s$k[$j], outcome$j.x)",
    "weight(s$k[$j], 8.0)",
  ]),
  onlyPass("the log-sum-exp is that of another head", [
    "outcomeAt(rowBase + min(",
    "outcomeAt(rowBase - n * task.queryTokens + min(",
  ]),
  onlyPass("the log-sum-exp is that of the row before", [
    "lane % FOUR + (",
    "lane % FOUR / 2u + (",
  ]),
  onlyPass("what other keys gave to dq is lost", ["+= dq$j_$p;", "= dq$j_$p;"]),
  onlyPass("what other keys gave to the far half of dq is lost", ["+= far$j_$p;", "= far$j_$p;"]),
  onlyPass("the far half of dq is the near one", ["place ^ HALF", "place"]),
  onlyPass("dq has the dS of other keys", [
    "subgroupBroadcast(dS$k, $lu)",
    "subgroupBroadcast(dS$k, 0u)",
  ]),
  onlyPass("dq has other keys", ["i32(l * KEYS + $k)", "i32(l * KEYS)"]),
  onlyPass("components that a row does not have are written to the next one", [
    "if ($pu * LANES + lane < QUADS) {",
    "if (true) {",
  ]),
  onlyPass("components of the far half that a row does not have are written to the next one", [
    "if ($pu * LANES + HALF + lane < QUADS) {",
    "if (true) {",
  ]),
  onlyPass("the next stretch of rows counts as well", [
    "mine + i32(task.rowQuads) * FOUR",
    "mine + i32(task.rowQuads + 1u) * FOUR",
  ]),
  onlyPass("a workgroup has the same rows in every turn", [
    "(taken + task.turn) % groups.x",
    "taken",
  ]),
  backwardWgsl("one turn is left out", "plugins/webgpu/slabs.ts", [
    "turns.map((turn) =>",
    "turns.slice(0, Math.max(1, groups - 1)).map((turn) =>",
  ]),
];

const expansion = unchecked("plugins/webgpu/latents.ts", [[
  "await this.#check(made, compiled);",
  "",
]]);

/** What may go wrong where latents become keys and values: the contract of latents must notice. */
const expansionFaults: ReadonlyArray<Fault> = [
  expansion("values are made by the rows of keys", "kernels/expand_latents.wgsl", [
    "select(0u, NOPE, ofValue) + quad",
    "quad",
  ]),
  expansion(
    "the rope of the first token is that of its neighbours",
    "kernels/expand_latents.wgsl",
    [
      "latentsAt(token$t, RANK + quad - NOPE)",
      "latentsAt(token0, RANK + quad - NOPE)",
    ],
  ),
  expansion("the heads' matrices are not told apart", "kernels/expand_latents.wgsl", [
    "(at.z * (NOPE + VALUE)",
    "(0u * (NOPE + VALUE)",
  ]),
  expansion("only the last chunk of products counts", "kernels/expand_latents.wgsl", [
    "all$t += sum$t;",
    "all$t = sum$t;",
  ]),
  expansion("every batch entry gets the last one's latents", "plugins/webgpu/latents.ts", [
    "latents.write(b * piece.count, stretch)",
    "latents.write(0 * b, stretch)",
  ]),
];

/** And where queries have absorbed them: only a long latent needs that version. */
const wideFaults: ReadonlyArray<Fault> = [
  wgsl("what earlier keys gave is not rescaled", "attend_wide", [
    "o$r_$p = o$r_$p * keep$r + sum$r_$p;",
    "o$r_$p = o$r_$p + sum$r_$p;",
  ]),
  wgsl("all rows have the weights of the first", "attend_wide", [
    "let p$r = weights[$ru * LANES + j].x;",
    "let p$r = weights[j].x;",
  ]),
  wgsl("what earlier blocks gave is not rescaled", "attend_wide", [
    "outputs[at] * keep",
    "outputs[at]",
  ]),
];

const adapter = await findAdapter();

/** Attention of a copy, on an adapter. */
const withKernel = async (
  load: Load,
  tiles: boolean,
  use: (kernel: AttentionKernel) => Promise<void>,
) => {
  const { Gpu } = await load<typeof import("../../plugins/webgpu/gpu.ts")>("plugins/webgpu/gpu.ts");
  const { WebgpuAttention } = await load<typeof import("../../plugins/webgpu/kernel.ts")>(
    "plugins/webgpu/kernel.ts",
  );
  const { versionNamed, largestHeld, largestHeadDim } = await load<
    typeof import("../../plugins/webgpu/ladder.ts")
  >("plugins/webgpu/ladder.ts");
  const wide = versionNamed("wide")!;
  // Tiles are for GPUs, the other file with faults is for software adapters; each runs both.
  const version = versionNamed(
    tiles ? "tiles" : isSoftware(adapter!.info) ? "broadcast" : "registers",
  )!;
  const device = await (await findAdapter())!.requestDevice({
    requiredFeatures: version.subgroups ? ["subgroups" as GPUFeatureName] : [],
  });
  const lanes = tiles ? 32 : adapter!.info.subgroupMaxSize;
  const gpu = new Gpu(device);
  const attention = new WebgpuAttention(gpu, {
    // Smaller than its own, which compiles faster.
    choices: (_dtype, headDim) => [
      headDim > largestHeld
        ? {
          version: wide,
          blocking: wide.blocking({ headDim, vector: lanes, workgroupBytes: 16384 }),
        }
        : { version, blocking: { rows: 2, keys: 4, lanes } },
    ],
    directive: "",
    warn: assert.fail,
    largestBuffer: 2 ** 27,
    tallestTexture: 8192,
  });
  const info = { ...referenceKernel().info, forms: "WGSL", largestHeadDim } as const;
  const begin = (queries: Queries) => attention.begin(queries);
  try {
    await use({ info, begin, expandsLatents: true });
  } finally {
    await gpu.close();
  }
};

/** The cases that are about faults which none of the first cases meets. */
const about: Readonly<Record<string, string>> = {
  "a score beyond the range is passed over": "a score of +∞",
  "a score beyond the range is forgotten by the next block": "a score of +∞",
  "a row without keys begins with a maximum of 0": "all logits near -60000",
  "positions are local indices": "every rank of a ring of 3, contiguous",
  "the second half of a shard overwrites the first": "every rank of a ring of 3, zigzag",
};

/** Plants faults in the program of a kernel, and lets cases of a contract judge each. */
const planter = (
  test: Deno.TestContext,
  contract: Contract,
  judged = (_: Case) => true,
  tiles = false,
) =>
(
  { fault, changes }: Fault,
  judge: (cases: ReadonlyArray<Case>) => Promise<void>,
) =>
  test.step(
    fault,
    () =>
      withCopy(changes, (load) =>
        withKernel(load, tiles, async (kernel) =>
          judge((await casesOf(load, contract, kernel)).filter(judged)))),
  );

Deno.test({
  name: adapter === undefined
    ? "the device contract catches every fault of the GPU program (not here: there is no WebGPU adapter)"
    : "the device contract catches every fault of the GPU program",
  ignore: adapter === undefined,
  fn: async (test) => {
    // Each head dimension is a program of its own, and no fault here is about one.
    const judged = ({ name }: Case) => !name.startsWith("head dim");
    for (const tiles of [false, true]) {
      const plant = planter(test, "device", judged, tiles);
      const contract = tiles ? "device, of tiles" : "device, of WGSL";
      for (const fault of tiles ? tilesFaults : wgslFaults) {
        await plant(
          fault,
          (cases) => assertCaught(fault.fault, contract, soonest(cases, about[fault.fault])),
        );
      }
      const merited = new Set(table.filter((row) => row[1] === contract).map((row) => row[2]));
      const sound = wgsl(`and what caught them passes on a sound copy: ${contract}`, "attend");
      await plant(sound, async (cases) => {
        assert.equal(await firstToFail(cases.filter(({ name }) => merited.has(name))), undefined);
      });
      printTable([contract]);
    }
  },
});

Deno.test({
  name: adapter === undefined
    ? "the contract of gradients catches every fault of the GPU programs (not here: there is no WebGPU adapter)"
    : "the contract of gradients catches every fault of the GPU programs",
  ignore: adapter === undefined,
  fn: async (test) => {
    const software = isSoftware(adapter!.info);
    const plant = (
      { fault, changes }: Fault,
      form: "lanes" | "once" | "tiles",
      judge: (cases: ReadonlyArray<Case>) => Promise<void>,
    ) =>
      test.step(fault, () =>
        withCopy(changes, async (load) => {
          const { Gpu } = await load<typeof import("../../plugins/webgpu/gpu.ts")>(
            "plugins/webgpu/gpu.ts",
          );
          const { WebgpuBackward } = await load<typeof import("../../plugins/webgpu/backward.ts")>(
            "plugins/webgpu/backward.ts",
          );
          const device = await (await findAdapter())!.requestDevice({
            requiredFeatures: software ? ["subgroups" as GPUFeatureName] : [],
          });
          const gpu = new Gpu(device);
          const backward = new WebgpuBackward(gpu, {
            choices: [{
              keysIn: software && form !== "tiles" ? "texture" : "buffer",
              lanes: software ? adapter!.info.subgroupMaxSize : 64,
              form,
            }],
            warn: assert.fail,
            directive: "",
            largestBuffer: 2 ** 27,
            tallestTexture: 8192,
          });
          const { info, begin } = referenceKernel();
          try {
            const cases = await casesOf(load, "gradients of a device", {
              info,
              begin,
              beginBackward: (...of) => backward.begin(...of),
            });
            // Each head dimension and format is a program of its own, and no fault here is about one.
            const told = cases.filter(({ name }) => !/^(head dim|f16|bf16)/.test(name));
            // First what takes a second to compile, where the others take ten.
            const isSmall = ({ name }: Case) => Number(name.endsWith("of a small head"));
            await judge(told.toSorted((a, b) => isSmall(b) - isSmall(a)));
          } finally {
            await gpu.close();
          }
        }));
    const faults = {
      lanes: backwardWgslFaults,
      once: singlePassFaults,
      tiles: tilesBackwardFaults,
    };
    for (const form of ["lanes", "once", "tiles"] as const) {
      if (form === "once" && !software) continue; // it needs workgroups that are subgroups
      const contract = form === "tiles" ? "gradients, of tiles" : "gradients, of WGSL";
      for (const fault of faults[form]) {
        await plant(fault, form, (cases) => assertCaught(fault.fault, contract, cases));
      }
      const merited = new Set(table.filter((row) => row[1] === contract).map((row) => row[2]));
      await plant(
        backwardHost(`and what caught them passes on a sound copy: ${form}`),
        form,
        async (cases) => {
          assert.equal(await firstToFail(cases.filter(({ name }) => merited.has(name))), undefined);
        },
      );
    }
    printTable(["gradients, of WGSL", "gradients, of tiles"]);
  },
});

Deno.test({
  name: adapter === undefined
    ? "the contract of latents catches every fault of their GPU program (not here: there is no WebGPU adapter)"
    : "the contract of latents catches every fault of their GPU program",
  ignore: adapter === undefined,
  fn: async (test) => {
    const plant = planter(test, "latents");
    await test.step("the device refuses a wrong program before it is used", () =>
      withCopy({
        "kernels/expand_latents.wgsl": [["all$t += sum$t;", "all$t = sum$t;"]],
      }, (load) =>
        withKernel(load, false, async (kernel) => {
          const cases = await casesOf(load, "latents", kernel);
          const { run } = cases.find(({ name }) => name.includes("DeepSeek"))!;
          await assert.rejects(
            Effect.runPromise(run),
            /computes wrong results: component \d+ of k/,
          );
        })));
    for (const fault of expansionFaults) {
      await plant(fault, (cases) => assertCaught(fault.fault, "latents, of WGSL", cases));
    }
    for (const fault of wideFaults) {
      await plant(fault, (cases) =>
        assertCaught(
          fault.fault,
          "latents, of WGSL",
          cases.filter(({ name }) => name.includes("DeepSeek")),
        ));
    }
    await plant(
      expansion("and what caught them passes on a sound copy", "kernels/expand_latents.wgsl"),
      async (cases) => {
        assert.equal(await firstToFail(cases), undefined);
      },
    );
    printTable(["latents, of WGSL"]);
  },
});
