import assert from "node:assert/strict";
import type { Accumulation, AttentionKernel, KeyValues } from "../../runtime/kernel.ts";
import type { Latent } from "../../runtime/latent.ts";
import { withLatents } from "../../runtime/latent_kernel.ts";
import { bytesOf } from "../../runtime/dtype.ts";
import { normals } from "../support/random.ts";

const shape = { batch: 1, tokens: 3, heads: 2, kvHeads: 2, headDim: 12, scale: 1 } as const;
const sizes = { rank: 8, rope: 4, value: 8 };

/** A kernel that takes blocks and is done with each when it is told so. */
const lazy = () => {
  const taken: Array<{ readonly block: KeyValues; readonly done: () => void }> = [];
  const accumulation: Accumulation = {
    absorb: (block) => new Promise<void>((done) => void taken.push({ block, done })),
    finish: () => ({ o: new Float32Array(0), lse: new Float32Array(0) as never }),
    close: () => {},
  };
  const kernel = { info: {} as AttentionKernel["info"], begin: () => accumulation };
  return { kernel: withLatents(kernel), taken };
};

const begin = (kernel: AttentionKernel, form: Latent["form"]) =>
  kernel.begin({
    ...shape,
    dtype: "f32",
    bytes: bytesOf(normals(1, 3 * 2 * 12)),
    latent: { ...sizes, form, up: normals(2, 2 * (12 - 4 + 8) * 8) },
  });

const block = (seed: number): KeyValues => ({
  tokens: 5,
  dtype: "f32",
  bytes: bytesOf(normals(seed, 5 * 12)),
});

const turn = () => new Promise((resolve) => setTimeout(resolve));

for (const form of ["expand", "absorb"] as const) {
  Deno.test(`withLatents() changes no block that the kernel still reads, and keeps their order: ${form}`, async () => {
    const { kernel, taken } = lazy();
    const accumulation = await begin(kernel, form);
    const over: Array<number> = [];
    const absorb = async (seed: number) => {
      await accumulation.absorb(block(seed), [], { back: 0, ahead: 0 });
      over.push(seed);
    };
    const copies: Array<Uint8Array> = [];
    const absorbing = [absorb(3), absorb(4)];
    await turn();
    assert.equal(taken.length, 2);
    copies.push(...taken.map(({ block }) => block.bytes.slice()));
    assert.notDeepEqual(copies[0], copies[1]);
    taken[0]!.done();
    await absorbing[0];
    // The first one's memory may serve the third; the second is still read.
    absorbing.push(absorb(5));
    await turn();
    assert.equal(taken.length, 3);
    assert.deepEqual(taken[1]!.block.bytes, copies[1]);
    copies.push(taken[2]!.block.bytes.slice());
    taken[2]!.done();
    taken[1]!.done();
    await Promise.all(absorbing);
    assert.deepEqual(over.toSorted(), [3, 4, 5]);
    // And what came third is what it would have been alone.
    const alone = lazy();
    const another = (await begin(alone.kernel, form)).absorb(block(5), [], { back: 0, ahead: 0 });
    await turn();
    assert.deepEqual(alone.taken[0]!.block.bytes.slice(), copies[2]);
    alone.taken[0]!.done();
    await another;
  });
}

Deno.test("withLatents() fails where the kernel does, and every later block with it", async () => {
  const { kernel, taken } = lazy();
  const failing: AttentionKernel = withLatents({
    ...kernel,
    begin: () => ({
      absorb: () => Promise.reject(new Error("no memory")),
      finish: () => assert.fail(),
      close: () => {},
    }),
  });
  const accumulation = await begin(failing, "expand");
  const band = { back: 0, ahead: 0 };
  await assert.rejects(async () => await accumulation.absorb(block(3), [], band), /no memory/);
  await assert.rejects(async () => await accumulation.absorb(block(4), [], band), /no memory/);
  assert.equal(taken.length, 0);
});
