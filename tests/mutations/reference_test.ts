/** Every fault that this field knows of rings and of devices, planted in the plain loops and what is around them. */
import assert from "node:assert/strict";
import {
  assertCaught,
  casesOf,
  type Changes,
  type Contract,
  type Fault,
  firstToFail,
  type Load,
  printTable,
  table,
  withCopy,
} from "../support/faults.ts";

const kernel = (fault: string, ...changes: Changes): Fault => ({
  fault,
  changes: { "kernels/reference.ts": changes },
});

/** What a device may get wrong: both contracts must notice. */
const deviceFaults: ReadonlyArray<Fault> = [
  kernel("K and V are swapped", ["const [k, v] = [decoded", "const [v, k] = [decoded"]),
  kernel("the scale is forgotten", ["(a + b + (c + d)) * scale", "(a + b + (c + d))"]),
  kernel("key heads are tiled over query heads, not repeated", [
    "for (let h = g * group; h < (g + 1) * group; h++) {",
    "for (let h = g; h < heads; h += kvHeads) {",
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
    "const position = positionAt(tile.queries, i);",
    "const position = positionAt(tile.keys.stride > tile.keys.run" +
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

/** What the ring around a sound device may get wrong. */
const ringFaults: ReadonlyArray<Fault> = [
  {
    fault: "K/V come from another source",
    changes: {
      "runtime/exchange.ts": [[
        "read(tensor, k, [block.span], begin, end)",
        `read(tensor, k, [plan.blocks.find(({ id, span }) =>
          id > block.id && span.count === block.span.count)?.span ?? block.span], begin, end)`,
      ]],
    },
  },
  {
    fault: "the second half of a shard is not masked",
    changes: {
      "runtime/tiles.ts": [["const full = allowed ===", "const full = row > 0 || allowed ==="]],
    },
  },
  {
    fault: "the second half of a shard is left out",
    changes: {
      "runtime/tiles.ts": [["if (allowed > 0) tiles", "if (allowed > 0 && row === 0) tiles"]],
    },
  },
  {
    fault: "the window is one token too long",
    changes: { "plugins/attention/window.ts": [["back: size - 1", "back: size"]] },
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
        "        Effect.tap(release(block)),\n",
        `        Effect.andThen(home.has(next.id) ? Effect.succeed({ busy: 0, deliver: Effect.void }) : absorb(block, tilesOf.get(next.id)!)),
        Effect.tap(release(block)),
`,
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
        "sendBytes(links.get(to)!, transfer, block.bytes, block.until);",
        "sendBytes(links.get(to)!, transfer, block.bytes);",
      ]],
    },
  },
  {
    fault: "the halves of a shard come home in the wrong order",
    changes: {
      "runtime/exchange.ts": [[
        "regions(whole, spans, from / 4",
        "regions(whole, spans.toReversed(), from / 4",
      ]],
    },
  },
  {
    fault: "stripes come home as stretches",
    changes: {
      "runtime/exchange.ts": [[
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
  backward("the row sums of dO·o are forgotten", [" - d[row]!) *", ") *"]),
  backward("the scale is forgotten", ["?? 1) * scale;", "?? 1);"]),
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
        "own.homing.push({ block, own: false, from });",
        "",
      ]],
    },
  },
  {
    fault: "the home rank's own share is lost",
    changes: {
      "runtime/homing.ts": [[
        "if (from !== undefined && mine !== undefined)",
        "if (from !== undefined && item.own && mine !== undefined)",
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
        "const values = from === undefined ? mine! : yield* Queue.take(arrived);",
        "const came = from === undefined ? mine! : yield* Queue.take(arrived);\n" +
        "      const values = item.own && from !== undefined ? mine!.map(() => 0) : came;",
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
        "      backward.absorb(keyValues(job, block), tiles,",
        "      backward.absorb({ ...keyValues(job, block), bytes: fresh(block.bytes) }, tiles,",
      ], [
        "/**\n * Attention of the rank's queries",
        `let before: Uint8Array | undefined;
const fresh = (bytes: Uint8Array) => {
  const stale = before?.length === bytes.length ? before : bytes;
  before = bytes;
  return stale;
};
/**
 * Attention of the rank's queries`,
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
      "runtime/exchange.ts": [[
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

/** What may go wrong with variants, on the way and in the loops. */
const variantFaults: ReadonlyArray<Fault> = [
  kernel("a mask is asked by local index", [
    "mask!(b, h, q, positionAt(place.keys, j))",
    "mask!(b, h, tile.row + i, positionAt(place.keys, j))",
  ]),
  kernel("a mask is asked about queries for keys", [
    "mask!(b, h, q, positionAt(place.keys, j))",
    "mask!(b, h, positionAt(place.keys, j), q)",
  ]),
  kernel("no mask is asked", ["if (tile.pairwise !== true)", "if (tile !== undefined)"]),
  kernel("scores are those of the first head", [
    "const pair = [place.b, place.h, place.q,",
    "const pair = [place.b, 0, place.q,",
  ]),
  kernel("scores are left as they are", ["score = made;", "void made;"]),
  backward("the slope of scores is forgotten", ["(slope?.(s, ...pair) ?? 1) * scale", "scale"]),
  backward("no mask is asked by the second pass", [
    "if (tile.pairwise === true && !mask!(...pair)) continue;",
    "",
  ]),
  {
    fault: "sinks are forgotten",
    changes: {
      "runtime/passes.ts": [["if (sink !== undefined) addSink", "if (false as boolean) addSink"]],
    },
  },
  {
    fault: "the sink of another head is added",
    changes: {
      "runtime/sink.ts": [["logit(head)", "logit(0 * head)"]],
    },
  },
  {
    fault: "some of a rectangle is taken for all of it",
    changes: {
      "runtime/tiles.ts": [[
        'add(all ? whole : "pairwise")',
        'add(all || pairs > 60 ? whole : "pairwise")',
      ]],
    },
  },
  {
    fault: "rectangles of unlike keys are joined",
    changes: { "runtime/tiles.ts": [["last.state === cut.state && ", ""]] },
  },
  {
    fault: "of two variants one is asked",
    changes: {
      "runtime/attention.ts": [["masks.every((of) => of(...pair))", "masks[0]!(...pair)"]],
    },
  },
  {
    fault: "of two scores the second comes first",
    changes: {
      "runtime/attention.ts": [["scores.reduce((score, of)", "scores.reduceRight((score, of)"]],
    },
  },
  {
    fault: "the band of the last variant is taken for all",
    changes: {
      "runtime/attention.ts": [["back: Math.min(a.back, b.back),", "back: b.back,"]],
    },
  },
];

const latents = (fault: string, ...changes: Changes): Fault => ({
  fault,
  changes: { "runtime/latent_kernel.ts": changes },
});

/** What may go wrong with latents: on the way, and where they become keys and values or do not. */
const latentFaults: ReadonlyArray<Fault> = [
  latents("values are made by the rows of keys", [
    "ofValues: { ...shape, first: (headDim - rope) * rank }",
    "ofValues: { ...shape, first: 0 }",
  ]),
  latents("the heads' matrices are not told apart", [
    "head: upRowsOf(latent, queries) * rank",
    "head: 0",
  ]),
  latents("keys lose their rope", [
    "(row) => (row + 1) * headDim - rope,",
    "(row) => row * headDim,",
  ]),
  latents("the rope of the first token is that of all", [
    "(row) => Math.floor(row / heads) * widthOf(latent) + rank,",
    "() => rank,",
  ]),
  latents("queries are absorbed by the matrix, not its transpose", [
    "matrix: { ...ofKeys, turned: true },",
    "matrix: { ...ofKeys, row: headDim - rope, turned: false },",
  ]),
  latents("absorbed queries lose their rope", [
    "(row) => row * width + rank,",
    "(row) => row * width,",
  ]),
  latents("what an absorbing rank gathers is not made a value", [
    "from: { values: gathered, first: 0, row: heads * width, head: width },",
    "from: { values: gathered, first: 0, row: heads * width, head: 0 },",
  ]),
  {
    fault: "a block's latents are those of its neighbours",
    changes: {
      "runtime/exchange.ts": [[
        'return read("latent", whole, [block.span],',
        'return read("latent", whole, [{ ...block.span, start: Math.max(0, block.span.start - 1) }],',
      ]],
    },
  },
  {
    fault: "the cheaper form is not taken",
    changes: {
      "runtime/plan.ts": [["forms.absorb < forms.expand ?", "forms.absorb < 0 ?"]],
    },
  },
];

const withReference = async (load: Load, contract: Contract) => {
  const path = "kernels/reference.ts";
  const { referenceKernel } = await load<typeof import("../../kernels/reference.ts")>(path);
  return casesOf(load, contract, referenceKernel());
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

Deno.test("the contract of variants catches every fault of masks and scores", async (test) => {
  await catchAll(test, variantFaults, ["variants"]);
  printTable(["variants"]);
});

Deno.test("the contract of latents catches every fault of what travels and of what is made of it", async (test) => {
  await catchAll(test, latentFaults, ["latents"]);
  printTable(["latents"]);
});
