import { Context, Effect, Layer } from "effect";
import assert from "node:assert/strict";
import { memoryLinks } from "../../plugins/memory.ts";
import { LinkFailed } from "../../runtime/errors.ts";
import { Links } from "../../runtime/link.ts";
import { linkCases, type MakeLinks, runLinkCase, testLinks } from "../contract/link.ts";
import { faultKinds, faultyLinks } from "../support/faulty_links.ts";

const make: MakeLinks = ({ window, deadline }) =>
  Effect.gen(function* () {
    const layer = memoryLinks({ windowFrames: window.frames, deadline });
    const links = Context.get(yield* Layer.build(layer), Links);
    return () => links;
  });

testLinks("memory", make);

Deno.test("a memory link cannot be opened twice by one member", async () => {
  await Effect.gen(function* () {
    const links = (yield* make({ window: { frames: 1, frameBytes: 1 }, deadline: "1 second" }))(0);
    const open = links.open({ run: "run", self: 0, peer: 1 });
    yield* Effect.forkScoped(Effect.ignore(open), { startImmediately: true });
    assert.match(
      (yield* Effect.flip(open)).message,
      /opened once by each member: found it opened twice/,
    );
  }).pipe(Effect.scoped, Effect.runPromise);
});

/** Runs the case of this name on links that `change` has spoilt, and expects it to find fault with them. */
const assertCaught = (name: string, change: (links: Links["Service"]) => Links["Service"]) => {
  const spoilt: MakeLinks = (settings) =>
    Effect.map(
      make({ ...settings, deadline: "1 second" }),
      (members) => (self) => change(members(self)),
    );
  const linkCase = linkCases.find((linkCase) => linkCase.name === name)!;
  return assert.rejects(
    runLinkCase(linkCase, spoilt),
    (error) => error instanceof assert.AssertionError || error instanceof LinkFailed,
  );
};

for (const kind of faultKinds) {
  Deno.test(`the link contract catches links that ${kind}`, async () => {
    for (const at of [0, 700]) {
      await assertCaught(
        "keeps the order and content of thousands of frames, both ways at once",
        (links) => faultyLinks(links, { kind, at }),
      );
    }
  });
}

Deno.test("the link contract catches links without a window", async () => {
  const boundless = await Effect.runPromise(
    Effect.scoped(make({ window: { frames: 1e6, frameBytes: 1 }, deadline: "1 second" })),
  );
  for (
    const name of [
      "makes the sender wait while the receiver takes nothing, and go on as it takes",
      "holds a bounded number of bytes",
    ]
  ) await assertCaught(name, () => boundless(0));
});

Deno.test("the link contract catches links that mix runs", () =>
  assertCaught("keeps runs and pairs apart", (links) => ({
    ...links,
    open: (ends) => links.open({ ...ends, run: "all" }),
  })));
