/**
 * Shows that the contracts notice: every fault that this field knows is planted in a copy of the source, and a case of
 * the contracts must fail on it. A fault that no case notices is a case to be written.
 *
 * @module
 */
import { Context, Effect, Layer } from "effect";
import assert from "node:assert/strict";
import { referenceKernel } from "../kernels/reference.ts";
import { memoryLinks } from "../plugins/memory.ts";
import { libraryName } from "../plugins/cpu/blas.ts";
import { findAdapter, isSoftware } from "../plugins/webgpu/adapter.ts";
import { Device } from "../runtime/device.ts";
import type { AttentionKernel, Queries } from "../runtime/kernel.ts";
import { findLibrary } from "../runtime/library.ts";
import { Links } from "../runtime/link.ts";
import { linkCases, type MakeLinks } from "./contract/link.ts";
import { faultKinds, faultyLinks } from "./support/faulty_links.ts";
import { inProcess } from "./support/in_process.ts";

const root = new URL("../", import.meta.url);
/** Where the source of devices and of a ring over memory links lies. */
const folders = [
  "runtime/",
  "kernels/",
  "kernels/softmax/",
  "plugins/",
  "plugins/cpu/",
  "plugins/webgpu/",
  "tests/contract/",
  "tests/support/",
];

/** Each text, which stands in its file once, and what it becomes. */
type Changes = ReadonlyArray<readonly [from: string, to: string]>;

interface Fault {
  readonly fault: string;
  readonly changes: Readonly<Record<string, Changes>>;
}

const kernel = (fault: string, ...changes: Changes): Fault => ({
  fault,
  changes: { "kernels/reference.ts": changes },
});

const wgsl = (
  fault: string,
  file: "attend" | "attend_task" | "span",
  ...changes: Changes
): Fault => ({
  fault,
  changes: {
    [`kernels/${file}.wgsl`]: changes,
    // The device itself refuses a wrong program; here the contract shall notice.
    "plugins/webgpu/programs.ts": [["await this.#check(made, compiled);", ""]],
  },
});

const backwardWgsl = (
  fault: string,
  file:
    | "kernels/attend_backward_keys.wgsl"
    | "kernels/attend_backward_queries.wgsl"
    | "plugins/webgpu/backward.ts",
  ...changes: Changes
): Fault => {
  const unchecked: Changes = [[
    "await selfCheckBackward({ beginBackward: begin }, dtype, headDim);",
    "begin;",
  ]];
  const host = "plugins/webgpu/backward.ts";
  return {
    fault,
    changes: file === host
      ? { [host]: [...unchecked, ...changes] }
      : { [host]: unchecked, [file]: changes },
  };
};

/** What a device may get wrong: both contracts must notice. */
const deviceFaults: ReadonlyArray<Fault> = [
  kernel("K and V are swapped", ["const [k, v] = [decoded", "const [v, k] = [decoded"]),
  kernel("the scale is forgotten", ["(a + b + (c + d)) * scale", "(a + b + (c + d))"]),
  kernel("key heads are tiled over query heads, not repeated", [
    "for (let h = g * group; h < (g + 1) * group; h++) addKeys",
    "for (let h = g; h < heads; h += kvHeads) addKeys",
  ]),
  kernel("every batch entry reads the first one's keys", [
    "const token = b * block.tokens + tile.column",
    "const token = tile.column",
  ]),
  kernel("the second half of a shard overwrites the first", [
    "(b * tokens + tile.row + i) * heads",
    "(b * tokens + i) * heads",
  ]),
  kernel("positions are local indices", [
    "const position = positionAt(tile.queries, i);",
    "const position = tile.row + i;",
  ]),
  kernel("a query does not see itself", [
    "countUpTo(tile.keys, position + band.ahead)",
    "countUpTo(tile.keys, position + band.ahead - 1)",
  ]),
  kernel("the triangle of every stripe is inclusive", [
    "positionAt(tile.queries, i);",
    "positionAt(tile.keys.stride > tile.keys.run" +
    " ? { ...tile.queries, start: tile.keys.start } : tile.queries, i);",
  ]),
  kernel("the window is ignored", [
    "lo = Math.max(countUpTo(tile.keys, position - band.back - 1) - first, 0);",
    "lo = 0;",
  ]),
  kernel("the window does not move with the block", [
    "countUpTo(tile.keys, position - band.back - 1)",
    "countUpTo(tile.keys, tile.keys.start + i - band.back - 1)",
  ]),
  kernel("the accumulator is float16", [
    "const weighted = new Float64Array(q.length);",
    "const weighted = new Float16Array(q.length);",
  ]),
  kernel("what was gathered is not rescaled", [
    "for (let i = at; i < at + headDim; i++) weighted[i]! *= keep;",
    "",
  ]),
  kernel("the sum of weights is not rescaled", ["l[row]! *= keep;", ""]),
  kernel("the result is not normalised", [
    "o[i] = weighted[i]! / l[row]!;",
    "o[i] = weighted[i]!;",
  ]),
  kernel(
    "an empty set is merged by the formula",
    ["if (lo >= hi) continue;", ""],
    ["if (highest > before) {", "{"],
  ),
  {
    fault: "the log-sum-exp has base 2",
    changes: { "runtime/lse.ts": [["m + Math.log(l)", "m + Math.log2(l)"]] },
  },
  {
    fault: "the log-sum-exp is relative to the highest score",
    changes: { "runtime/lse.ts": [["m + Math.log(l)", "Math.log(l)"]] },
  },
];

/** The same in the program of GPUs: the device contract must notice. */
const wgslFaults: ReadonlyArray<Fault> = [
  wgsl("a score beyond the range is passed over", "attend", [
    "select(l, -1.0, lost || before.y < 0.0)",
    "select(l, -1.0, before.y < 0.0)",
  ]),
  wgsl("a score beyond the range is forgotten by the next block", "attend", [
    "lost || before.y < 0.0",
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
    "outputs[query$r + c] * keep + o * add;",
    "outputs[query$r + c] + o * add;",
  ]),
  wgsl("what a block gives is not rescaled", "attend", [
    "outputs[query$r + c] * keep + o * add;",
    "outputs[query$r + c] * keep + o;",
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
    "select(LOWEST, before.x, before.y > 0.0)",
    "before.x",
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

const keysPass = (fault: string, ...changes: Changes) =>
  backwardWgsl(fault, "kernels/attend_backward_keys.wgsl", ...changes);
const queriesPass = (fault: string, ...changes: Changes) =>
  backwardWgsl(fault, "kernels/attend_backward_queries.wgsl", ...changes);
const backwardHost = (fault: string, ...changes: Changes) =>
  backwardWgsl(fault, "plugins/webgpu/backward.ts", ...changes);

/** The same in the backward pass of GPUs: the contract of gradients must notice. */
const backwardWgslFaults: ReadonlyArray<Fault> = [
  keysPass("dk and dv are swapped", [
    "gradients[keyAt$r * QUADS + c] += dk;",
    "gradients[keyAt$r * QUADS + c] += dv;",
  ], [
    "gradients[(task.values + keyAt$r) * QUADS + c] += dv;",
    "gradients[(task.values + keyAt$r) * QUADS + c] += dk;",
  ]),
  keysPass("dk is summed up in float16", [
    "dk$r_$c += sumK$r_$c;",
    `let half$r_$c = dk$r_$c + sumK$r_$c;
      dk$r_$c = vec4f(
        unpack2x16float(pack2x16float(half$r_$c.xy)),
        unpack2x16float(pack2x16float(half$r_$c.zw)),
      );`,
  ]),
  keysPass("D is forgotten", ["(slope$r_$j - outcome$j.y)", "slope$r_$j"]),
  keysPass("the log-sum-exp is forgotten", [
    "weight(score$r_$j, outcome$j.x)",
    "weight(score$r_$j, 8.0)",
  ]),
  keysPass("the log-sum-exp is that of another head", [
    "(entry * task.heads + head) * task.queryTokens + task.row;",
    "(entry * task.heads + keyHead) * task.queryTokens + task.row;",
  ]),
  keysPass("query heads are tiled over key heads, not grouped", [
    "keyHead * sharing + n;",
    "keyHead + n * task.kvHeads;",
  ]),
  keysPass("the heads that share a key are not summed up", [
    "break if n >= sharing;",
    "break if true;",
  ]),
  keysPass("every batch entry reads the first one's queries", [
    "(entry * task.queryTokens + task.row) * task.heads + head;",
    "task.row * task.heads + head;",
  ]),
  keysPass("the mask is off by one", [
    "rowsUpTo(position$r - task.ahead - 1);",
    "rowsUpTo(position$r - task.ahead);",
  ]),
  keysPass("the window is one token too long", [
    "u32(rowsUpTo(position$r + task.back) - low$r)",
    "u32(rowsUpTo(position$r + task.back + 1) - low$r)",
  ]),
  keysPass("rows of dS lie elsewhere than where they are read", ["begin / 4 * 4;", "begin;"]),
  keysPass("what another stretch of rows gave to dk is lost", ["+= dk;", "= dk;"]),
  keysPass("what another stretch of rows gave to dv is lost", ["+= dv;", "= dv;"]),
  queriesPass("what another stretch of keys gave to dq is lost", ["+= dq;", "= dq;"]),
  queriesPass("dS that was not written counts", [
    "select(0.0, scores$[$r / FOUR]_$j[$[$r % FOUR]], u32(k + $j - low$r) < count$r);",
    "scores$[$r / FOUR]_$j[$[$r % FOUR]];",
  ]),
  queriesPass("every batch entry reads the first one's keys", [
    "(entry * task.keyTokens + task.column) * task.kvHeads + keyHead;",
    "task.column * task.kvHeads + keyHead;",
  ]),
  backwardHost("the scale is forgotten", ["dq[i]! *= scale;", "dq[i]! *= 1;"]),
  backwardHost("gradients of the block before are not cleared", [
    "encoder.clearBuffer(gradients, 0, size);",
    "",
  ]),
];

/** What the ring around a sound device may get wrong. */
const ringFaults: ReadonlyArray<Fault> = [
  {
    fault: "K/V come from another source",
    changes: {
      "runtime/driver.ts": [[
        "read(tensor, k, [block.span], begin, end)",
        `read(tensor, k, [plan.blocks.find(({ id, span }) =>
          id > block.id && span.count === block.span.count)?.span ?? block.span], begin, end)`,
      ]],
    },
  },
  {
    fault: "the second half of a shard is not masked",
    changes: {
      "runtime/plan.ts": [["const full = allowed ===", "const full = row > 0 || allowed ==="]],
    },
  },
  {
    fault: "the second half of a shard is left out",
    changes: { "runtime/plan.ts": [["if (allowed > 0) {", "if (allowed > 0 && row === 0) {"]] },
  },
  {
    fault: "the window is one token too long",
    changes: { "runtime/mask.ts": [["back: mask.window - 1", "back: mask.window"]] },
  },
  {
    fault: "len // N: the last tokens are nobody's",
    changes: { "runtime/layout.ts": [[".slice(0, rest)", ".slice(0, 0)"]] },
  },
  {
    fault: "len // N: the last stripes are nobody's",
    changes: {
      "runtime/layout.ts": [[
        "Math.floor(tokens / stride) * run + tail",
        "Math.floor(tokens / stride) * run",
      ]],
    },
  },
  {
    fault: "blocks that arrive are merged twice",
    changes: {
      "runtime/ring.ts": [[
        ").pipe(Effect.tap(release(block)));",
        `).pipe(
          Effect.andThen(home.has(next.id) ? Effect.succeed({ busy: 0, deliver: Effect.void }) : absorb(block, tilesOf.get(next.id)!)),
          Effect.tap(release(block)),
        );`,
      ]],
    },
  },
  {
    fault: "the last block is not merged",
    changes: {
      "runtime/ring.ts": [[
        "absorb(block, tilesOf.get(block.plan.id)!),",
        "next === computed.at(-1)!.block ? Effect.succeed({ busy: 0, deliver: Effect.void }) : absorb(block, tilesOf.get(next.id)!),",
      ]],
    },
  },
  {
    fault: "a block's memory is reused while it is in use",
    changes: {
      "runtime/block.ts": [[
        "new Block(plan, new Uint8Array(new SharedArrayBuffer(plan.bytes)));",
        "new Block(plan, slot(plan.bytes));",
      ], [
        "/** K and V of one block. */",
        `const slots = new Map<number, Uint8Array>();
const slot = (bytes: number) => {
  if (!slots.has(bytes)) slots.set(bytes, new Uint8Array(new SharedArrayBuffer(bytes)));
  return slots.get(bytes)!;
};
/** K and V of one block. */`,
      ]],
    },
  },
  {
    fault: "a block goes on before it has arrived",
    changes: {
      "runtime/passes.ts": [[
        "sendBytes(right!, transfer, block.bytes, block.until);",
        "sendBytes(right!, transfer, block.bytes);",
      ]],
    },
  },
  {
    fault: "the halves of a shard come home in the wrong order",
    changes: {
      "runtime/driver.ts": [[
        "regions(whole, spans, from / 4",
        "regions(whole, spans.toReversed(), from / 4",
      ]],
    },
  },
  {
    fault: "stripes come home as stretches",
    changes: {
      "runtime/driver.ts": [[
        "regions(whole, spans, from / 4",
        "regions(whole, spans.map((span) => ({ ...span, stride: span.run })), from / 4",
      ]],
    },
  },
  {
    fault: "a flipped bit passes",
    changes: { "runtime/frame.ts": [["return crc === word(44) ?", "return crc >= 0 ?"]] },
  },
  {
    fault: "chunks pass in any order",
    changes: { "runtime/frame.ts": [['["chunk", address.chunk, word(32)],', ""]] },
  },
];

const backward = (fault: string, ...changes: Changes): Fault => ({
  fault,
  changes: { "kernels/reference_backward.ts": changes },
});

/** What the backward pass of a device may get wrong: the contracts of gradients must notice, of devices and of rings. */
const backwardFaults: ReadonlyArray<Fault> = [
  backward("dk and dv are swapped", ["const [dk, dv] = [gradients", "const [dv, dk] = [gradients"]),
  backward("the row sums of dO·o are forgotten", [" - d[row]!) * scale", ") * scale"]),
  backward("the scale is forgotten", ["- d[row]!) * scale;", "- d[row]!);"]),
  backward("the log-sum-exp is that of the block alone", [
    "const top = lse[(b * heads + h) * tokens + tile.row + i]!;",
    `let sum = 0;
            for (let j = lo; j < hi; j++) {
              const key = ((b * block.tokens + tile.column + j) * kvHeads +
                Math.floor(h * kvHeads / heads)) * headDim;
              sum += Math.exp(dot(q, from, k, key, headDim) * scale);
            }
            const top = Math.log(sum);`,
  ]),
  backward("rows are taken from the begin of the shard", [
    "const row = (b * tokens + tile.row + i) * heads + h;",
    "const row = (b * tokens + i) * heads + h;",
  ]),
  backward("key heads are tiled over query heads, not repeated", [
    "const g = Math.floor(h * kvHeads / heads);",
    "const g = h % kvHeads;",
  ]),
  backward("every batch entry reads the first one's keys", [
    "((b * block.tokens + tile.column + j) * kvHeads + g)",
    "((tile.column + j) * kvHeads + g)",
  ]),
  backward("a query does not see itself", [
    "position + band.ahead);",
    "position + band.ahead - 1);",
  ]),
  backward("the window is one token too long", [
    "position - band.back - 1);",
    "position - band.back - 2);",
  ]),
  backward("gradients of keys and values are summed up in float16", [
    "const gradients = new Float64Array(kv.length);",
    "const gradients = new Float16Array(kv.length);",
  ]),
  backward("dq is summed up in float16", [
    "const dq = new Float64Array(q.length);",
    "const dq = new Float16Array(q.length);",
  ]),
  backward("only the last head of a group counts", ["dv[key + c]! += p", "dv[key + c] = p"]),
];

/** What the ring may get wrong about gradients. */
const homingFaults: ReadonlyArray<Fault> = [
  {
    fault: "the shares of other ranks never come home",
    changes: {
      "runtime/plan.ts": [[
        "homing[block.home]!.push({ block, distance: ring, own: false, receive: true });",
        "",
      ]],
    },
  },
  {
    fault: "the home rank's own share is lost",
    changes: {
      "runtime/homing.ts": [[
        "if (item.receive && mine !== undefined)",
        "if (item.receive && item.own && mine !== undefined)",
      ]],
    },
  },
  {
    fault: "a share is added twice",
    changes: {
      "runtime/homing.ts": [["add(values, mine);", "{ add(values, mine); add(values, mine); }"]],
    },
  },
  {
    fault: "what came from the left is not passed on",
    changes: {
      "runtime/homing.ts": [[
        "const values = item.receive ? yield* Queue.take(arrived) : mine!;",
        "const came = item.receive ? yield* Queue.take(arrived) : mine!;\n" +
        "      const values = item.own && distance > 1 ? mine!.map(() => 0) : came;",
      ]],
    },
  },
  {
    fault: "shares are rounded to float16 on their way",
    changes: {
      "runtime/homing.ts": [[
        "sum[i]! += more[i]!;",
        "sum[i] = Math.f16round(sum[i]! + more[i]!);",
      ]],
    },
  },
  {
    fault: "the second pass computes on stale K and V",
    changes: {
      "runtime/passes.ts": [[
        "      backward.absorb(keyValues(job, block), tiles, plan.band),",
        `      backward.absorb({ ...keyValues(job, block), bytes: fresh(block.bytes) }, tiles, plan.band),`,
      ], [
        "/** Attention of the rank's queries",
        `let before: Uint8Array | undefined;
const fresh = (bytes: Uint8Array) => {
  const stale = before?.length === bytes.length ? before : bytes;
  before = bytes;
  return stale;
};
/** Attention of the rank's queries`,
      ]],
    },
  },
  {
    fault: "o and lse are not those of the whole sequence",
    changes: {
      "runtime/passes.ts": [[
        "device.beginBackward!(queries, { ...attended, cotangent })",
        "device.beginBackward!(queries, { ...attended, lse: attended.lse.map((x) => x - 0.5), cotangent })",
      ]],
    },
  },
  {
    fault: "dk and dv come home in each other's place",
    changes: {
      "runtime/driver.ts": [[
        'into("dk", k, [block.span]), into("dv", k',
        'into("dv", k, [block.span]), into("dk", k',
      ]],
    },
  },
  {
    fault: "the gradients of a shard's second block overwrite those of its first",
    changes: {
      "runtime/rank.ts": [[
        "const values = gradients.ofBlocks.get(block.id) ?? none;",
        `const same = [...gradients.ofBlocks.values()].filter((x) => x.length === none.length);
        const values = same.at(-1) ?? none;`,
      ]],
    },
  },
];

const inCpu = (file: string) => (fault: string, ...changes: Changes): Fault => ({
  fault,
  changes: { [file]: changes },
});
const attendCpu = inCpu("plugins/cpu/attend.ts");
const differentiateCpu = inCpu("plugins/cpu/differentiate.ts");
const sightCpu = inCpu("plugins/cpu/sight.ts");
const softmaxCpu = inCpu("plugins/cpu/softmax.ts");
const assembly = inCpu("kernels/softmax/softmax.as");

/** What the CPU device may get wrong: the device contract must notice. */
const cpuFaults: ReadonlyArray<Fault> = [
  attendCpu("key heads are tiled over query heads, not repeated", [
    "Math.floor(h * kvHeads / heads)",
    "h % kvHeads",
  ]),
  attendCpu("keys are counted from the block's begin, not the tile's", [
    "[rectangle.column + first, rectangle.column + end]",
    "[first, end]",
  ]),
  attendCpu("what was gathered is not rescaled", ["if (keep !== 1)", "if (keep > 1)"]),
  attendCpu("all scores are taken for small ones", ["smallScore = 30", "smallScore = 1e30"]),
  attendCpu("small scores may follow large ones without their maximum", [
    ".every((top) => top === 0)",
    ".every(() => true)",
  ]),
  attendCpu("the longest key of another chunk is taken", [
    "longestKeys[(b * chunks + c) * shape.kvHeads + g]!",
    "longestKeys[c * 0]!",
  ]),
  attendCpu("the accumulator is float16", [
    "      sums.set(softmax.sums.values",
    `      for (let row = sight.from; row < sight.to; row++) {
        const output = outputAt(b, row, h);
        for (let i = 0; i < headDim; i++) output[i] = Math.f16round(output[i]!);
      }
      sums.set(softmax.sums.values`,
  ]),
  sightCpu("rows see one key too many", [
    "hi.values[i] = Math.min(Math.max(bounds![at + 1]! - first, 0), end - first);",
    "hi.values[i] = Math.min(Math.max(bounds![at + 1]! + 1 - first, 0), end - first);",
  ]),
  sightCpu("a window that begins in a tile is taken for all of it", [
    "masked ||= lo > first || hi < end",
    "masked ||= hi < end",
  ]),
  sightCpu("a row that sees less than the others is taken for one of them", [
    "masked ||= lo > first || hi < end",
    "masked ||= lo > first",
  ]),
  sightCpu("the mask of another row is told", ["(from + i - row) * 2", "i * 2"]),
  softmaxCpu("sums go to the chunk's first rows", [
    "this.sums.pointer + of.skip * 4",
    "this.sums.pointer",
  ]),
  inCpu("plugins/cpu/prepare.ts")("the result is not normalised", [
    "outputs[i]! * inverse",
    "outputs[i]!",
  ]),
  assembly("the sum of weights is not rescaled", ["      sum *= keep;", ""]),
  assembly("a row that sees nothing keeps what stood in its last vector", [
    "    from = 0;\n    to = 0;",
    "",
  ]),
  assembly("shadows of the last keys count", [
    "      c4, c5), counts(j, from, to));\n    v128.store(at, x);\n    b = ".trimStart(),
    "c4, c5), counts(j, from, to + 3));\n    v128.store(at, x);\n    b = ",
  ]),
  assembly("halves below 2⁻¹⁴ become 0", [
    "const size = v128.and(bits, i32x4.splat(0x7fff));",
    "const size = v128.and(v128.and(bits, i32x4.splat(0x7fff)), i32x4.ge_s(v128.and(bits, i32x4.splat(0x7fff)), i32x4.splat(0x3000)));",
  ]),
];

/** The same of its backward pass: the contract of gradients must notice. */
const cpuBackwardFaults: ReadonlyArray<Fault> = [
  differentiateCpu("dk and dv are swapped", ["const [dkAt, dvAt]", "const [dvAt, dkAt]"]),
  differentiateCpu("the scale of dk is forgotten", [
    "blas.product([count, headDim, rows], scale, turnedDs",
    "blas.product([count, headDim, rows], 1, turnedDs",
  ]),
  differentiateCpu("D is left out", [
    "softmax.sums.values.set(d.subarray(at + from, at + to));",
    "",
  ]),
  differentiateCpu("the log-sum-exp is another row's", [
    "lse.subarray(at + from, at + to)",
    "lse.subarray(at, at + to - from)",
  ]),
  differentiateCpu("one query head of a group counts", [
    "h < (g + 1) * group; h++",
    "h < g * group + 1; h++",
  ]),
  differentiateCpu("a range of keys begins with the tile, not the block", [
    "range * keysAtOnce - column);\n      const stop",
    "range * keysAtOnce);\n      const stop",
  ]),
  inCpu("plugins/cpu/kernel.ts")("gradients are rounded to float16", [
    "    return gradients;",
    "    return gradients.map((x) => Math.f16round(x));",
  ]),
];

interface Case {
  readonly name: string;
  readonly run: Effect.Effect<void, unknown>;
}

/** Loads a module of a copy of the source. */
type Load = <M>(path: string) => Promise<M>;

/** Copies the source, plants a fault in it, and removes it after use. */
const withCopy = async (changes: Fault["changes"], use: (load: Load) => Promise<void>) => {
  const folder = await Deno.makeTempDir({ prefix: "annulus-fault-" });
  const copy = new URL(`file://${folder}/`);
  try {
    for (const part of folders) {
      await Deno.mkdir(new URL(part, copy), { recursive: true });
      for await (const { name, isFile } of Deno.readDir(new URL(part, root))) {
        if (isFile) await Deno.copyFile(new URL(part + name, root), new URL(part + name, copy));
      }
    }
    for (const [file, texts] of Object.entries(changes)) {
      let text = await Deno.readTextFile(new URL(file, copy));
      for (const [from, to] of texts) {
        assert.equal(text.split(from).length, 2, `${file} must have once: ${from}`);
        text = text.replace(from, () => to);
      }
      await Deno.writeTextFile(new URL(file, copy), text);
    }
    await use((path) => import(new URL(path, copy).href));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
};

/** Contracts, and where their cases are. */
const contracts = {
  ring: ["tests/contract/ring.ts", "ringCases"],
  device: ["tests/contract/device.ts", "deviceCases"],
  "gradients of a ring": ["tests/contract/ring_gradients.ts", "ringGradientCases"],
  "gradients of a device": ["tests/contract/gradients.ts", "gradientCases"],
} as const;
type Contract = keyof typeof contracts;

/** The cases of a copy's contract on one of its kernels. Services are known by their keys, so that these will do. */
const casesOf = async (
  load: Load,
  contract: Contract,
  kernel: AttentionKernel,
): Promise<ReadonlyArray<Case>> => {
  const [path, name] = contracts[contract];
  const cases = (await load<Record<string, ReadonlyArray<Case>>>(path))[name]!;
  const services = Layer.merge(Layer.succeed(Device, inProcess(kernel)), memoryLinks());
  return cases.map(({ name, run }): Case => ({
    name,
    run: Effect.provide(run as Effect.Effect<void, unknown, Device | Links>, services),
  }));
};

const withReference = async (load: Load, contract: Contract) => {
  const path = "kernels/reference.ts";
  const { referenceKernel } = await load<typeof import("../kernels/reference.ts")>(path);
  return casesOf(load, contract, referenceKernel());
};

/** The first case that fails. */
const firstToFail = async (cases: ReadonlyArray<Case>): Promise<string | undefined> => {
  for (const { name, run } of cases) {
    try {
      await Effect.runPromise(Effect.timeout(run, "20 seconds"));
    } catch (error) {
      const noticed = error instanceof assert.AssertionError ||
        error instanceof Error &&
          ("_tag" in error && error._tag !== "TimeoutError" ||
            error.message.startsWith("Property failed"));
      if (!noticed) throw error; // the fault broke the program, which is no merit of the case
      return name;
    }
  }
};

/** Which case of which contract noticed which fault. */
const table: Array<readonly [fault: string, contract: string, name: string]> = [];

const assertCaught = async (fault: string, contract: string, cases: ReadonlyArray<Case>) => {
  const name = await firstToFail(cases);
  assert.ok(name !== undefined, `no case of the ${contract} contract notices`);
  table.push([fault, contract, name]);
};

const printTable = (contracts: ReadonlyArray<string>) => {
  for (const [fault, contract, name] of table) {
    if (contracts.includes(contract)) console.log(`${fault} … caught by ${contract}: ${name}`);
  }
};

/** Plants faults and sees that each of the contracts catches each; what caught them must pass on a sound copy. */
const catchAll = async (
  test: Deno.TestContext,
  faults: ReadonlyArray<Fault>,
  by: ReadonlyArray<Contract>,
) => {
  for (const { fault, changes } of faults) {
    await test.step(fault, () =>
      withCopy(changes, async (load) => {
        for (const contract of by) {
          await assertCaught(fault, contract, await withReference(load, contract));
        }
      }));
  }
  await test.step("and what caught them passes on a sound copy", () =>
    withCopy({}, async (load) => {
      for (const contract of by) {
        const merited = new Set(table.filter((row) => row[1] === contract).map((row) => row[2]));
        const cases = await withReference(load, contract);
        assert.equal(await firstToFail(cases.filter(({ name }) => merited.has(name))), undefined);
      }
    }));
};

Deno.test("the contracts catch every fault of a ring and of a device", async (test) => {
  await catchAll(test, ringFaults, ["ring"]);
  await catchAll(test, deviceFaults, ["ring", "device"]);
  printTable(["ring", "device"]);
});

Deno.test("the contracts of gradients catch every fault of a ring and of a device", async (test) => {
  await catchAll(test, homingFaults, ["gradients of a ring"]);
  await catchAll(test, backwardFaults, ["gradients of a ring", "gradients of a device"]);
  printTable(["gradients of a ring", "gradients of a device"]);
});

Deno.test("the link contract catches every fault of links", async (test) => {
  for (const kind of faultKinds) {
    const fault = `links ${kind} a frame`;
    await test.step(fault, async () => {
      const make: MakeLinks = ({ window, deadline }) =>
        Effect.map(
          Layer.build(memoryLinks({ windowFrames: window.frames, deadline })),
          (services) => () => faultyLinks(Context.get(services, Links), { kind, at: 7 }),
        );
      const cases = linkCases.map(({ name, run }) => ({ name, run: Effect.scoped(run(make)) }));
      await assertCaught(fault, "link", cases);
    });
  }
  printTable(["link"]);
});

const adapter = await findAdapter();

Deno.test({
  name: adapter === undefined
    ? "the device contract catches every fault of the GPU program (not here: there is no WebGPU adapter)"
    : "the device contract catches every fault of the GPU program",
  ignore: adapter === undefined,
  fn: async (test) => {
    const plant = (
      { fault, changes }: Fault,
      judge: (cases: ReadonlyArray<Case>) => Promise<void>,
    ) =>
      test.step(fault, () =>
        withCopy(changes, async (load) => {
          const { Gpu } = await load<typeof import("../plugins/webgpu/gpu.ts")>(
            "plugins/webgpu/gpu.ts",
          );
          const { WebgpuAttention } = await load<typeof import("../plugins/webgpu/kernel.ts")>(
            "plugins/webgpu/kernel.ts",
          );
          const { versionNamed } = await load<typeof import("../plugins/webgpu/ladder.ts")>(
            "plugins/webgpu/ladder.ts",
          );
          // The file with the faults is for software adapters; a GPU runs its other versions as well.
          const version = versionNamed(isSoftware(adapter!.info) ? "broadcast" : "registers")!;
          const device = await (await findAdapter())!.requestDevice({
            requiredFeatures: version.subgroups ? ["subgroups" as GPUFeatureName] : [],
          });
          const lanes = adapter!.info.subgroupMaxSize;
          const attention = new WebgpuAttention(new Gpu(device), {
            // Smaller than its own, which compiles faster.
            choices: () => [{ version, blocking: { rows: 2, keys: 4, lanes } }],
            directive: "",
            warn: assert.fail,
            largestBuffer: 2 ** 27,
            tallestTexture: 8192,
          });
          const { info } = referenceKernel();
          const begin = (queries: Queries) => attention.begin(queries);
          try {
            const cases = await casesOf(load, "device", { info, begin });
            // Each head dimension is a program of its own, and no fault here is about one.
            await judge(cases.filter(({ name }) => !name.startsWith("head dim")));
          } finally {
            device.destroy();
            await device.lost;
          }
        }));
    for (const fault of wgslFaults) {
      await plant(fault, (cases) => assertCaught(fault.fault, "device, of WGSL", cases));
    }
    const merited = new Set(
      table.filter((row) => row[1] === "device, of WGSL").map((row) => row[2]),
    );
    await plant(wgsl("and what caught them passes on a sound copy", "attend"), async (cases) => {
      assert.equal(await firstToFail(cases.filter(({ name }) => merited.has(name))), undefined);
    });
    printTable(["device, of WGSL"]);
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
      judge: (cases: ReadonlyArray<Case>) => Promise<void>,
    ) =>
      test.step(fault, () =>
        withCopy(changes, async (load) => {
          const { Gpu } = await load<typeof import("../plugins/webgpu/gpu.ts")>(
            "plugins/webgpu/gpu.ts",
          );
          const { WebgpuBackward } = await load<typeof import("../plugins/webgpu/backward.ts")>(
            "plugins/webgpu/backward.ts",
          );
          const device = await (await findAdapter())!.requestDevice({
            requiredFeatures: software ? ["subgroups" as GPUFeatureName] : [],
          });
          const backward = new WebgpuBackward(new Gpu(device), {
            keysIn: software ? "texture" : "buffer",
            lanes: software ? adapter!.info.subgroupMaxSize : 64,
            subgroups: software,
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
            await judge(cases.filter(({ name }) => !/^(head dim|f16|bf16)/.test(name)));
          } finally {
            device.destroy();
            await device.lost;
          }
        }));
    const contract = "gradients, of WGSL";
    for (const fault of backwardWgslFaults) {
      await plant(fault, (cases) => assertCaught(fault.fault, contract, cases));
    }
    const merited = new Set(table.filter((row) => row[1] === contract).map((row) => row[2]));
    await plant(
      backwardHost("and what caught them passes on a sound copy"),
      async (cases) => {
        assert.equal(await firstToFail(cases.filter(({ name }) => merited.has(name))), undefined);
      },
    );
    printTable([contract]);
  },
});

const noLibrary = findLibrary(libraryName) === undefined ? `there is no ${libraryName}` : undefined;

/** A kernel of the copy on threads of its own, once what its WebAssembly is made of was compiled again. */
const withCpu = async (
  load: Load,
  changes: Fault["changes"],
  use: (kernel: AttentionKernel) => Promise<void>,
) => {
  if (Object.keys(changes).some((file) => file.endsWith(".as"))) {
    const { buildAll } = await load<typeof import("../kernels/softmax/build.ts")>(
      "kernels/softmax/build.ts",
    );
    await buildAll();
  }
  const { openCpu } = await load<typeof import("../plugins/cpu/open.ts")>("plugins/cpu/open.ts");
  const kernel = await openCpu({ threads: 2 });
  try {
    await use(kernel);
  } finally {
    kernel.close();
  }
};

Deno.test({
  name: "the device contracts catch every fault of the CPU device" +
    (noLibrary === undefined ? "" : ` (not here: ${noLibrary})`),
  ignore: noLibrary !== undefined,
  fn: async (test) => {
    const contracts = [["device", cpuFaults], [
      "gradients of a device",
      cpuBackwardFaults,
    ]] as const;
    for (const [contract, faults] of contracts) {
      const label = `${contract}, of the CPU`;
      for (const { fault, changes } of faults) {
        await test.step(
          fault,
          () =>
            withCopy(
              changes,
              (load) =>
                withCpu(load, changes, async (kernel) =>
                  await assertCaught(fault, label, await casesOf(load, contract, kernel))),
            ),
        );
      }
      const merited = new Set(table.filter((row) => row[1] === label).map((row) => row[2]));
      await test.step(`and what caught those of the ${contract} passes on a sound copy`, () =>
        withCopy({}, (load) =>
          withCpu(load, {}, async (kernel) => {
            const cases = await casesOf(load, contract, kernel);
            const failed = await firstToFail(cases.filter(({ name }) => merited.has(name)));
            assert.equal(failed, undefined);
          })));
      printTable([label]);
    }
  },
});
