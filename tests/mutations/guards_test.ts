/** The guards of links and runs, removed one at a time: simulations notice each. */
import { Effect } from "effect";
import { assertCaught, type Fault, printTable, withCopy } from "../support/faults.ts";

/** A fault in one file of a link. */
const inFile = (name: string) => (fault: string, from: string, to: string): Fault => ({
  fault,
  changes: { [`plugins/nats_links/${name}.ts`]: [[from, to]] },
});
const [inMessage, inConversation, inIncoming, inOutgoing] = [
  inFile("message"),
  inFile("conversation"),
  inFile("incoming"),
  inFile("outgoing"),
] as const;

const faults: ReadonlyArray<Fault> = [
  inMessage("a body may be damaged", 'if (word(52) !== crc32(body)) return "body";', ""),
  inMessage(
    "a header may be damaged",
    'if (word(60) !== crc32(bytes.subarray(0, 60))) return "header";',
    "",
  ),
  inConversation("messages of another epoch are heard", "if (epoch !== this.#epoch)", "if (false)"),
  inConversation("messages of another opening are heard", "from !== this.#peerSession || ", ""),
  inConversation(
    "whoever greets is the peer, heard or not",
    "if (to !== this.#session) {\n        if",
    'if (kind !== "hello") {\n        if',
  ),
  inIncoming("a frame is taken twice", "ahead(this.#received, number) <= 0 || ", ""),
  inIncoming(
    "a frame is counted twice before its turn",
    " || this.#early.has(number)) return",
    ") return",
  ),
  inIncoming(
    "a peer may send more than it was granted",
    "this.#held + charge > this.windowBytes",
    "false",
  ),
  inIncoming(
    "frames are taken as they come",
    "(this.#received + 1) >>> 0;\n      const",
    "number;\n      const",
  ),
  inOutgoing(
    "a sender does not wait for room",
    "return charge <= ahead(this.#charged, this.#granted);",
    "return true;",
  ),
  inOutgoing("what was lost is not sent again", "behind >= overtaking || ", "false && "),
  inOutgoing("nobody asks", "if (this.arrived && !waiting) return false;", "return false;"),
  inOutgoing(
    "a peer may have what was never sent",
    ") return false;\n    const before",
    ") return true;\n    const before",
  ),
];

Deno.test("simulations of a link notice every guard that is missing", async (test) => {
  for (const { fault, changes } of faults) {
    await test.step(fault, () =>
      withCopy(changes, async (load) => {
        const { simulateLink, simulateRogue } = await load<
          typeof import("../simulation/link.ts")
        >("tests/simulation/link.ts");
        const seeds = Array.from({ length: 1000 }, (_, seed) => seed);
        await assertCaught(
          fault,
          "link",
          [
            ...seeds.slice(0, 3).map((seed) => ({
              name: `rogue ${seed}`,
              run: Effect.sync(() => simulateRogue(seed)),
            })),
            ...seeds.map((seed) => ({
              name: `seed ${seed}`,
              run: Effect.sync(() => simulateLink(seed)),
            })),
          ].map(({ name, run }) => ({ name, run: Effect.asVoid(run) })),
        );
      }));
  }
  printTable(["link"]);
});

const runFaults: ReadonlyArray<Fault> = [
  {
    fault: "what is merged is merged again",
    changes: { "runtime/standing.ts": [["requiredOf(mine).slice(merged)", "requiredOf(mine)"]] },
  },
  {
    fault: "what is merged is merged again, and nobody counts",
    changes: {
      "runtime/standing.ts": [["requiredOf(mine).slice(merged)", "requiredOf(mine)"]],
      "runtime/ledger.ts": [["if (this.#merged.has(block)) {", "if (false) {"]],
    },
  },
  {
    fault: "one block too many counts as merged",
    changes: { "runtime/standing.ts": [[".slice(merged)", ".slice(merged + 1)"]] },
  },
  {
    fault: "one block too many counts as merged, and nobody counts",
    changes: {
      "runtime/standing.ts": [[".slice(merged)", ".slice(merged + 1)"]],
      "runtime/ledger.ts": [["return missing === undefined", "return true"]],
    },
  },
  {
    fault: "a rank's accumulator is begun again in each epoch",
    changes: {
      "runtime/passes.ts": [[
        "= tenure.loaded!;",
        "= { gathering: gatheringOf(passing.device, queries, tenure.scope) };",
      ], [
        "import { type Gradients",
        'import { gatheringOf } from "./gathering.ts";\nimport { type Gradients',
      ]],
    },
  },
  {
    fault: "a block in progress is forgotten when an epoch ends",
    changes: { "runtime/ring.ts": [["        Effect.uninterruptible,\n", ""]] },
  },
  {
    fault: "a server that is away makes nodes late",
    changes: {
      "plugins/nats_cluster/control.ts": [[
        "=>\n  Effect.callback<void>((resume) => {\n    let left",
        "=>\n  count > 0 ? Effect.delay(Effect.void, 500 * count) : Effect.callback<void>((resume) => {\n    let left",
      ]],
    },
  },
];

/** Seeds in which much goes wrong come first; whichever notices will do. */
const eventful = [10, 154];

Deno.test("simulations of a run notice every guard that is missing", async (test) => {
  for (const { fault, changes } of runFaults) {
    await test.step(fault, () =>
      withCopy(changes, async (load) => {
        const { simulateRun } = await load<
          typeof import("../simulation/run.ts")
        >("tests/simulation/run.ts");
        const cases = [...eventful, ...Array(150).keys()].map((seed) => ({
          name: `seed ${seed}`,
          run: Effect.asVoid(Effect.tryPromise({
            try: () => simulateRun(seed),
            catch: (cause) => cause,
          })),
        }));
        await assertCaught(fault, "run", cases);
      }));
  }
  printTable(["run"]);
});
