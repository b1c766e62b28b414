import assert from "node:assert/strict";
import { contentOf } from "../../../plugins/webgpu/read_back.ts";

/** Memory that is there when `map` resolves, or already when it is called. */
const memory = (map: Promise<undefined>, atOnce = false) => {
  const bytes = new ArrayBuffer(8);
  let there = atOnce;
  const buffer = {
    mapAsync: () => map.then(() => void (there = true)),
    getMappedRange: () => {
      if (!there) throw new Error("it is not mapped");
      return bytes;
    },
  } as unknown as GPUBuffer;
  return { buffer, bytes };
};

Deno.test("content that is there is not waited for", async () => {
  const never = Promise.withResolvers<undefined>();
  const { buffer, bytes } = memory(never.promise, true);
  const lingering: Array<Promise<unknown>> = [];
  assert.equal(await contentOf(buffer, (promise) => void lingering.push(promise)), bytes);
  assert.equal(lingering.length, 1);
});

Deno.test("content that is not there is waited for", async () => {
  const later = Promise.withResolvers<undefined>();
  const { buffer, bytes } = memory(later.promise);
  const content = contentOf(buffer, () => {});
  later.resolve(undefined);
  assert.equal(await content, bytes);
});

Deno.test("why content never comes is said by the promise", async () => {
  const { buffer } = memory(Promise.reject(new Error("the device was lost")));
  await assert.rejects(contentOf(buffer, () => {}), /the device was lost/);
});
