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
import { findAdapter, isSoftware } from "../plugins/webgpu/adapter.ts";
import { Device } from "../runtime/device.ts";
import type { AttentionKernel, Queries } from "../runtime/kernel.ts";
import { Links } from "../runtime/link.ts";
import { linkCases, type MakeLinks } from "./contract/link.ts";
import { faultKinds, faultyLinks } from "./support/faulty_links.ts";
import { inProcess } from "./support/in_process.ts";

const root = new URL("../", import.meta.url);
/** Where the source of devices and of a ring over memory links lies. */
const folders = [
  "runtime/",
  "kernels/",
  "plugins/",
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

const wgsl = (fault: string, ...changes: Changes): Fault => ({
  fault,
  changes: {
    "kernels/attend.wgsl": changes,
    // The device itself refuses a wrong program; here the contract shall notice.
    "plugins/webgpu/kernel.ts": [[
      "await selfCheck(this, dtype, headDim)",
      "await Promise.resolve()",
    ]],
  },
});

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
  wgsl("a score beyond the range is passed over", [
    "select(l, -1.0, lost$r || before.y < 0.0)",
    "select(l, -1.0, before.y < 0.0)",
  ]),
  wgsl("a score beyond the range is forgotten by the next block", [
    "lost$r || before.y < 0.0",
    "lost$r",
  ]),
  wgsl("key heads are tiled over query heads, not repeated", [
    "group.y * task.kvHeads / task.heads;",
    "group.y % task.kvHeads;",
  ]),
  wgsl("every batch entry reads the first one's keys", [
    "let keyToken = group.z * task.keyTokens + task.column;",
    "let keyToken = task.column;",
  ]),
  wgsl("the second half of a shard overwrites the first", [
    "* task.queryTokens + task.row + row$r) * task.heads",
    "* task.queryTokens + row$r) * task.heads",
  ]),
  wgsl("positions are local indices", [
    "return span.x + (j / span.y) * span.z + j % span.y;",
    "return i;",
  ]),
  wgsl("a query does not see itself", [
    "keyPosition$j <= position$r + task.ahead;",
    "keyPosition$j < position$r + task.ahead;",
  ]),
  wgsl("the window is one token too long where it is tested", [
    "keyPosition$j >= position$r - task.back &&",
    "keyPosition$j >= position$r - task.back - 1 &&",
  ]),
  wgsl("what was gathered is not rescaled", [
    "o$r_$c * keep$r + sum$r_$c;",
    "o$r_$c + sum$r_$c;",
  ]),
  wgsl("what earlier blocks gave is not rescaled", [
    "outputs[query$r + c] * keep + o * add;",
    "outputs[query$r + c] + o * add;",
  ]),
  wgsl("what a block gives is not rescaled", [
    "outputs[query$r + c] * keep + o * add;",
    "outputs[query$r + c] * keep + o;",
  ]),
  wgsl("the sum of weights is not rescaled", ["l$r * keep$r + sum$r", "l$r + sum$r"]),
  wgsl("the accumulator is float16", [
    "o$r_$c = o$r_$c * keep$r + sum$r_$c;",
    `let x$r_$c = o$r_$c * keep$r + sum$r_$c;
      o$r_$c = vec4f(
        unpack2x16float(pack2x16float(x$r_$c.xy)),
        unpack2x16float(pack2x16float(x$r_$c.zw)),
      );`,
  ]),
  wgsl("a row without keys begins with a maximum of 0", [
    "select(LOWEST, before.x, before.y > 0.0)",
    "before.x",
  ]),
  wgsl("shadows of the last key count", ["k + $j < chunkEnd &&", ""]),
];

/** What the ring around a sound device may get wrong. */
const ringFaults: ReadonlyArray<Fault> = [
  {
    fault: "K/V come from another source",
    changes: {
      "runtime/driver.ts": [[
        "[block.span]",
        `[plan.blocks.find(({ id, span }) =>
          id > block.id && span.count === block.span.count)?.span ?? block.span]`,
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
      "runtime/ring.ts": [["}, absorb);", "}, absorb);\nif (!home.has(next.id)) yield* absorb;"]],
    },
  },
  {
    fault: "the last block is not merged",
    changes: {
      "runtime/ring.ts": [[
        "}, absorb);",
        "}, next === computed.at(-1)!.block ? Effect.succeed(0) : absorb);",
      ]],
    },
  },
  {
    fault: "a block's memory is reused while it is in use",
    changes: {
      "runtime/transfer.ts": [
        [
          "const bytes = new Uint8Array(new SharedArrayBuffer(transfer.bytes));",
          "const bytes = slot(transfer);",
        ],
        [
          "/** Receives into new",
          `const slots = new Map<string, Uint8Array>();
const slot = ({ run, kind, to, bytes }: Transfer) => {
  const name = [run, kind, to, bytes].join();
  if (!slots.has(name)) slots.set(name, new Uint8Array(new SharedArrayBuffer(bytes)));
  return slots.get(name)!;
};
/** Receives into new`,
        ],
      ],
    },
  },
  {
    fault: "the halves of a shard come home in the wrong order",
    changes: {
      "runtime/driver.ts": [[
        "regions(whole, mine.shard, from / 4",
        "regions(whole, mine.shard.toReversed(), from / 4",
      ]],
    },
  },
  {
    fault: "stripes come home as stretches",
    changes: {
      "runtime/driver.ts": [[
        "regions(whole, mine.shard, from / 4",
        "regions(whole, mine.shard.map((span) => ({ ...span, stride: span.run })), from / 4",
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

/** The cases of a copy's contract on one of its kernels. Services are known by their keys, so that these will do. */
const casesOf = async (
  load: Load,
  contract: "ring" | "device",
  kernel: AttentionKernel,
): Promise<ReadonlyArray<Case>> => {
  const cases = contract === "ring"
    ? (await load<typeof import("./contract/ring.ts")>("tests/contract/ring.ts")).ringCases
    : (await load<typeof import("./contract/device.ts")>("tests/contract/device.ts")).deviceCases;
  const services = Layer.merge(Layer.succeed(Device, inProcess(kernel)), memoryLinks());
  return cases.map(({ name, run }): Case => ({
    name,
    run: Effect.provide(run as Effect.Effect<void, unknown, Device | Links>, services),
  }));
};

const withReference = async (load: Load, contract: "ring" | "device") => {
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

Deno.test("the contracts catch every fault of a ring and of a device", async (test) => {
  const plant = (contracts: ReadonlyArray<"ring" | "device">) => ({ fault, changes }: Fault) =>
    test.step(fault, () =>
      withCopy(changes, async (load) => {
        for (const contract of contracts) {
          await assertCaught(fault, contract, await withReference(load, contract));
        }
      }));
  for (const fault of ringFaults) await plant(["ring"])(fault);
  for (const fault of deviceFaults) await plant(["ring", "device"])(fault);
  await test.step("and what caught them passes on a sound copy", () =>
    withCopy({}, async (load) => {
      for (const contract of ["ring", "device"] as const) {
        const merited = new Set(table.filter((row) => row[1] === contract).map((row) => row[2]));
        const cases = await withReference(load, contract);
        assert.equal(await firstToFail(cases.filter(({ name }) => merited.has(name))), undefined);
      }
    }));
  printTable(["ring", "device"]);
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
          const device = await (await findAdapter())!.requestDevice();
          const attention = new WebgpuAttention(new Gpu(device), {
            keysIn: isSoftware(adapter!.info) ? "texture" : "buffer",
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
    await plant(wgsl("and what caught them passes on a sound copy"), async (cases) => {
      assert.equal(await firstToFail(cases.filter(({ name }) => merited.has(name))), undefined);
    });
    printTable(["device, of WGSL"]);
  },
});
