/**
 * Shows that the contracts notice: every fault that this field knows is planted in a copy of the source, and a case of
 * the contracts must fail on it. A fault that no case notices is a case to be written.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import assert from "node:assert/strict";
import { memoryLinks } from "../plugins/memory.ts";
import { Device } from "../runtime/device.ts";
import type { RingCase } from "./contract/ring.ts";
import { inProcess } from "./support/in_process.ts";

const root = new URL("../", import.meta.url);
/** Where the source of a ring lies that is built of the reference device and memory links. */
const folders = ["runtime/", "kernels/", "plugins/", "tests/contract/", "tests/support/"];

interface Fault {
  readonly fault: string;
  readonly file: string;
  /** Each text, which stands in the file once, and what it becomes. */
  readonly changes: ReadonlyArray<readonly [from: string, to: string]>;
}

const kernel = (fault: string, ...changes: Fault["changes"]): Fault => ({
  fault,
  file: "kernels/reference.ts",
  changes,
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
    file: "runtime/lse.ts",
    changes: [["m + Math.log(l)", "m + Math.log2(l)"]],
  },
  {
    fault: "the log-sum-exp is relative to the highest score",
    file: "runtime/lse.ts",
    changes: [["m + Math.log(l)", "Math.log(l)"]],
  },
];

/** What the ring around a sound device may get wrong. */
const ringFaults: ReadonlyArray<Fault> = [
  {
    fault: "K/V come from the neighbouring source",
    file: "runtime/driver.ts",
    changes: [["[block.span]", "[plan.blocks[(block.id + 1) % plan.blocks.length]!.span]"]],
  },
  {
    fault: "the second half of a shard is not masked",
    file: "runtime/plan.ts",
    changes: [["const full = allowed ===", "const full = row > 0 || allowed ==="]],
  },
  {
    fault: "the second half of a shard is left out",
    file: "runtime/plan.ts",
    changes: [["if (allowed > 0) {", "if (allowed > 0 && row === 0) {"]],
  },
  {
    fault: "the window is one token too long",
    file: "runtime/mask.ts",
    changes: [["back: mask.window - 1", "back: mask.window"]],
  },
  {
    fault: "len // N: the last tokens are nobody's",
    file: "runtime/layout.ts",
    changes: [[".slice(0, rest)", ".slice(0, 0)"]],
  },
  {
    fault: "len // N: the last stripes are nobody's",
    file: "runtime/layout.ts",
    changes: [["Math.floor(tokens / stride) * run + tail", "Math.floor(tokens / stride) * run"]],
  },
  {
    fault: "blocks that arrive are merged twice",
    file: "runtime/ring.ts",
    changes: [["}, absorb);", "}, absorb);\nif (!home.has(next.id)) yield* absorb;"]],
  },
  {
    fault: "the last block is not merged",
    file: "runtime/ring.ts",
    changes: [["}, absorb);", "}, next === computed.at(-1)!.block ? Effect.succeed(0) : absorb);"]],
  },
  {
    fault: "a block's memory is reused while it is in use",
    file: "runtime/transfer.ts",
    changes: [
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
  {
    fault: "the halves of a shard come home in the wrong order",
    file: "runtime/driver.ts",
    changes: [[
      "regions(whole, mine.shard, from / 4",
      "regions(whole, mine.shard.toReversed(), from / 4",
    ]],
  },
  {
    fault: "stripes come home as stretches",
    file: "runtime/driver.ts",
    changes: [[
      "regions(whole, mine.shard, from / 4",
      "regions(whole, mine.shard.map((span) => ({ ...span, stride: span.run })), from / 4",
    ]],
  },
  {
    fault: "a flipped bit passes",
    file: "runtime/frame.ts",
    changes: [["return crc === word(44) ?", "return crc >= 0 ?"]],
  },
  {
    fault: "chunks pass in any order",
    file: "runtime/frame.ts",
    changes: [['["chunk", address.chunk, word(32)],', ""]],
  },
];

interface Case {
  readonly name: string;
  readonly run: Effect.Effect<void, unknown>;
}

/** The contracts, bound to a copy of the source. */
interface Copy {
  readonly ring: ReadonlyArray<Case>;
  readonly device: ReadonlyArray<Case>;
}

/** Copies the source with a fault in it and loads the copy. */
const copyWith = async (folder: string, fault: Fault | undefined): Promise<Copy> => {
  const copy = new URL(`file://${folder}/`);
  for (const part of folders) {
    await Deno.mkdir(new URL(part, copy), { recursive: true });
    for await (const { name, isFile } of Deno.readDir(new URL(part, root))) {
      if (isFile) await Deno.copyFile(new URL(part + name, root), new URL(part + name, copy));
    }
  }
  if (fault !== undefined) {
    let text = await Deno.readTextFile(new URL(fault.file, copy));
    for (const [from, to] of fault.changes) {
      assert.equal(text.split(from).length, 2, `${fault.file} must have once: ${from}`);
      text = text.replace(from, () => to);
    }
    await Deno.writeTextFile(new URL(fault.file, copy), text);
  }
  const load = <M>(path: string): Promise<M> => import(new URL(path, copy).href);
  const { ringCases } = await load<typeof import("./contract/ring.ts")>("tests/contract/ring.ts");
  const { deviceCases } = await load<typeof import("./contract/device.ts")>(
    "tests/contract/device.ts",
  );
  const { referenceKernel } = await load<typeof import("../kernels/reference.ts")>(
    "kernels/reference.ts",
  );
  // These hold nothing of what is changed, and services are known by their keys.
  const services = Layer.merge(
    Layer.succeed(Device, inProcess(referenceKernel())),
    memoryLinks(),
  );
  const bound = ({ name, run }: RingCase): Case => ({
    name,
    run: run.pipe(Effect.provide(services), Effect.timeout("20 seconds")),
  });
  return { ring: ringCases.map(bound), device: deviceCases.map(bound) };
};

/** The first case that fails. */
const firstToFail = async (cases: ReadonlyArray<Case>): Promise<string | undefined> => {
  for (const { name, run } of cases) {
    try {
      await Effect.runPromise(run);
    } catch (error) {
      const noticed = error instanceof assert.AssertionError ||
        error instanceof Error &&
          ("_tag" in error && error._tag !== "TimeoutError" ||
            /^Property failed/.test(error.message));
      if (!noticed) throw error; // the fault broke the program, which is not the case's merit
      return name;
    }
  }
};

const withFolder = async (use: (folder: string) => Promise<void>) => {
  const folder = await Deno.makeTempDir({ prefix: "annulus-fault-" });
  try {
    await use(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
};

Deno.test("every case of the contracts passes on a sound copy", () =>
  withFolder(async (folder) => {
    const { ring, device } = await copyWith(folder, undefined);
    assert.equal(await firstToFail([...ring, ...device]), undefined);
  }));

Deno.test("every planted fault fails a case of the contracts", async (test) => {
  const table: Array<string> = [];
  const plant = (fault: Fault, contracts: ReadonlyArray<keyof Copy>) =>
    test.step(fault.fault, () =>
      withFolder(async (folder) => {
        const copy = await copyWith(folder, fault);
        for (const contract of contracts) {
          const caught = await firstToFail(copy[contract]);
          assert.ok(caught !== undefined, `no case of the ${contract} contract notices`);
          table.push(`${fault.fault} … caught by ${contract}: ${caught}`);
        }
      }));
  for (const fault of ringFaults) await plant(fault, ["ring"]);
  for (const fault of deviceFaults) await plant(fault, ["ring", "device"]);
  console.log(table.join("\n"));
});
