/** What ends a run, and what its troubles began with. */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { memoryLinks } from "../../plugins/memory.ts";
import { attend } from "../../runtime/attend.ts";
import { Crew, type Regrouped } from "../../runtime/crew.ts";
import { LinkClosed, LinkFailed, RankFailed, ServerUnavailable } from "../../runtime/errors.ts";
import { beganWith } from "../../runtime/first_cause.ts";
import { nothing } from "../../runtime/standing.ts";

const x = new Float32Array(24);

/** How a run ends whose only rank fails in each epoch, for a reason of its own. */
const endOf = (tag: string, regroup: NonNullable<Crew["Service"]["regroup"]>) =>
  attend({ tokens: 6, heads: 1, headDim: 4, q: x, k: x, v: x, ring: 1 }).pipe(
    Effect.provideService(Crew, {
      equipment: { devices: [], memory: () => Infinity, together: true },
      run: ({ epoch }, rank) =>
        Effect.fail(new RankFailed({ rank, node: "a", tag, reason: `reason ${epoch}` })),
      regroup,
    }),
    Effect.provide(memoryLinks()),
    Effect.flip,
    Effect.runPromise,
  );
const again = () => Effect.succeed<Regrouped>({ standings: [nothing], moved: [] });

Deno.test("a run that is out of patience tells the first failure and the last", async () => {
  const { message } = await endOf("NodeLost", again);
  assert.equal(
    message,
    "Rank 0 (a) failed: reason 3; it began with: Rank 0 (a) failed: reason 0",
  );
});

Deno.test("a run whose device failed twice tells both failures", async () => {
  const { message } = await endOf("DeviceFailed", again);
  assert.match(message, /reason 1; it began with: .*reason 0$/);
});

Deno.test("a run that meets something else while it recovers tells what it recovered from", async () => {
  let times = 0;
  const error = await endOf(
    "NodeLost",
    () =>
      ++times < 3
        ? again()
        : Effect.fail(new ServerUnavailable({ url: "a:1", needed: "to answer", found: "silence" })),
  );
  assert.equal(error._tag, "ServerUnavailable");
  assert.match(
    error.message,
    /"a:1": it needs to answer: found silence; it began with: .*reason 0$/,
  );
});

Deno.test("nodes that turn out to be unfit cost a run no patience", async () => {
  let times = 0;
  await endOf("NodeUnfit", () => ++times < 20 ? again() : Effect.die("enough")).catch(() => {});
  assert.equal(times, 20);
});

Deno.test("the first failure is told once, and the error stays what it is", () => {
  const link = { run: "r", self: "rank 0", peer: "rank 1" };
  for (
    const error of [
      new RankFailed({ rank: 0, node: "a", tag: "Stuck", reason: "last" }),
      new LinkClosed({ ...link, done: false, reason: "last" }),
      new LinkFailed({ ...link, needed: "a word", found: "last" }),
      new ServerUnavailable({ url: "a:1", needed: "to answer", found: "last" }),
    ]
  ) {
    const told = beganWith(error, "first");
    assert.equal(told._tag, error._tag);
    assert.equal(told.message, `${error.message}; it began with: first`);
    assert.equal(beganWith(told, "first"), told);
  }
});
