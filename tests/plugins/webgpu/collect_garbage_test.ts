import { Effect } from "effect";
import assert from "node:assert/strict";
import { findAdapter } from "../../../plugins/webgpu/adapter.ts";
import { Device } from "../../../runtime/device.ts";
import { deviceInWorker } from "../../../runtime/device_worker.ts";
import { ProgramWriter } from "../../../runtime/program.ts";
import { problem, whole } from "../../contract/device.ts";
import { check } from "../../support/cut.ts";
import { checkGradients } from "../../support/cut_backward.ts";

const missing = await findAdapter() === undefined;
const name = "a GPU that was used is let go of before its Worker ends" +
  (missing ? " (not here: there is no WebGPU adapter)" : "");

Deno.test({ name, ignore: missing }, async () => {
  const search = `?${crypto.randomUUID()}`;
  const channel = new BroadcastChannel(search);
  const heard = new Promise<{ had: number; left: number }>((resolve) => {
    channel.onmessage = ({ data }) => resolve(data);
  });
  const cut = whole(problem({ tokens: 7, headDim: 4 }));
  await Effect.gen(function* () {
    const device = yield* deviceInWorker({
      name: "webgpu",
      url: new URL(`../../support/watched_webgpu_worker.ts${search}`, import.meta.url),
      closing: 60_000, // or a busy machine would end it before it can say anything
    });
    yield* Effect.all([check(cut), checkGradients(cut)]).pipe(
      Effect.provideService(Device, device),
    );
    const programs = yield* device.programs!([{ name: "w", rows: 3, columns: 4, dtype: "f32" }]);
    yield* programs.fill("w", 0, "f32", new Uint8Array(48));
    const writer = new ProgramWriter();
    writer.give(writer.linear(writer.keep(writer.put(new Float32Array(4), 4)), "w"));
    yield* programs.run(writer.program);
  }).pipe(Effect.scoped, Effect.runPromise);
  const { had, left } = await heard;
  channel.close();
  assert.ok(had > 0);
  assert.equal(left, 0);
});
