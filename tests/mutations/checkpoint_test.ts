/** What may go wrong with what was kept of a run: its contract notices each. */
import { assertCaught, type Fault, printTable, withCopy } from "../support/faults.ts";

const faults: ReadonlyArray<Fault> = [
  {
    fault: "what was taken off a device before is forgotten",
    changes: {
      "runtime/gathering.ts": [["if (taken !== undefined) merge", "if (false as boolean) merge"]],
    },
  },
  {
    fault: "what was taken off is merged by equal weights",
    changes: { "runtime/merge.ts": [["[mine / sum, theirs / sum]", "[0.5, 0.5]"]] },
  },
  {
    fault: "blocks go to a device before the last one is taken off",
    changes: { "runtime/ring.ts": [["Semaphore.withPermits(slots, 2)(pause)", "pause"]] },
  },
  {
    fault: "a rank that goes on merges again what it has",
    changes: { "runtime/rank.ts": [[", before?.merged)", ", 0)"]] },
  },
  {
    fault: "a rank that goes on begins with nothing",
    changes: { "runtime/rank.ts": [["tenure.scope, before)", "tenure.scope)"]] },
  },
  {
    fault: "a mark says one block too many",
    changes: { "runtime/checkpoint.ts": [["sealMark(merged)", "sealMark(merged + 1)"]] },
  },
  {
    fault: "any checkpoint is taken for a rank's result",
    changes: { "runtime/driver.ts": [["checkpoint?.final !== true || home", "home"]] },
  },
  {
    fault: "a rank may say that it has merged more than there is",
    changes: {
      "runtime/checkpoint.ts": [["if (merged < requiredOf(mine).length) yield*", "yield*"]],
    },
  },
  {
    fault: "what was kept is given back to front",
    changes: {
      "runtime/exchange.ts": [[
        'yield* send(link, o, (from, to) => checkpoint.read("o", from, to));',
        'yield* send(link, o, (from, to) => Effect.map(checkpoint.read("o", from, to), (x) => x.toReversed()));',
      ]],
    },
  },
];

Deno.test("the contract of checkpoints notices every fault", async (test) => {
  for (const { fault, changes } of faults) {
    await test.step(fault, () =>
      withCopy(changes, async (load) => {
        const { checkpointCases } = await load<
          typeof import("../contract/checkpoints.ts")
        >("tests/contract/checkpoints.ts");
        await assertCaught(fault, "checkpoint", checkpointCases);
      }));
  }
  printTable(["checkpoint"]);
});
