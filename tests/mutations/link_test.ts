/** Every fault that links may have. */
import { Context, Effect, Layer } from "effect";
import { memoryLinks } from "../../plugins/memory.ts";
import { Links } from "../../runtime/link.ts";
import { linkCases, type MakeLinks } from "../contract/link.ts";
import { assertCaught, printTable } from "../support/faults.ts";
import { faultKinds, faultyLinks } from "../support/faulty_links.ts";

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
