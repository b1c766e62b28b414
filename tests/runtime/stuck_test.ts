/** A device that hangs is found out, whatever it hangs in, and the run ends. */
import { Effect, Layer } from "effect";
import assert from "node:assert/strict";
import { referenceKernel } from "../../kernels/reference.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { attend, type AttendOptions } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import { Device } from "../../runtime/device.ts";
import { hangingIn, hangs } from "../support/hanging.ts";
import { inProcess } from "../support/in_process.ts";
import { normals } from "../support/random.ts";
import { inVirtualTime } from "../support/virtual_time.ts";

const [tokens, headDim, ring] = [32, 4, 2];
const size = tokens * headDim;
const problem: AttendOptions = {
  ...{ tokens, heads: 1, headDim, ring },
  ...{ q: normals(1, size), k: normals(2, size), v: normals(3, size), cotangent: normals(4, size) },
};

for (const what of hangs) {
  Deno.test(`a device that hangs in the ${what} is found out`, () =>
    inVirtualTime(Effect.gen(function* () {
      // Each rank asks for everything once.
      const device = hangingIn(what, 2, inProcess(referenceKernel()));
      const services = Layer.provideMerge(
        Crew.local(),
        Layer.merge(Layer.succeed(Device, device), memoryLinks()),
      );
      const error = yield* Effect.flip(attend(problem).pipe(Effect.provide(services)));
      assert.ok(error._tag === "RankFailed" && error.tag === "Stuck", error.message);
      assert.match(
        error.message,
        /^Rank [01] .*its device has been busy with one thing for 12\d s$/,
      );
    })));
}
