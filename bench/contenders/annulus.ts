/**
 * annulus on one of its devices, `annulus.ts cpu`: the bare kernel, all keys in one block. `annulus.ts webgpu 3` takes
 * that version of the WebGPU kernel.
 *
 * @module
 */
import { Context, Effect, Layer, Scope } from "effect";
import { devices } from "../../cli/devices.ts";
import { causal as causalAttention } from "../../plugins/attention.ts";
import { webgpuWith } from "../../plugins/webgpu.ts";
import { Device } from "../../runtime/device.ts";
import type { Problem } from "../../runtime/plan.ts";
import { version } from "../../runtime/version.ts";
import { backward, forward, wholeOf } from "../bare.ts";
import { contend, type Contest } from "../contender.ts";
import type { Tensors } from "../job.ts";

/** The device is open for as long as this process lives. */
const forever = Scope.makeUnsafe();

await contend(async (job, inputs): Promise<Contest> => {
  if (job.kind === "matmul") throw new Error("it does not multiply matrices alone");
  const [wanted, kernel] = Deno.args;
  const plugin = kernel === undefined
    ? devices.find(({ name }) => name === wanted)
    : webgpuWith({ kernel });
  if (plugin === undefined) throw new Error("this version of annulus has no device of that name");
  if (await Effect.runPromise(plugin.score) === 0) throw new Error("it cannot run here");
  const services = await Effect.runPromise(Layer.buildWithScope(plugin.layer, forever));
  const device = Context.get(services, Device);
  const { heads, tokens, headDim, causal } = job;
  const problem: Problem = {
    batch: 1,
    tokens,
    heads,
    kvHeads: heads,
    headDim,
    scale: 1 / Math.sqrt(headDim),
    attention: causal ? [causalAttention()] : [],
  };
  const share = wholeOf(problem, { q: inputs["q"]!, k: inputs["k"]!, v: inputs["v"]! });
  const about = `annulus ${version} on ${device.info.backend}`;
  let result: Tensors = {};

  const attend = async () => {
    const { value, seconds, absorbing } = await Effect.runPromise(forward(device, share));
    result = { o: value.o, lse: value.lse };
    return { seconds, parts: { absorb: absorbing } };
  };
  if (job.kind === "attention") {
    return { about, sample: attend, result: () => Promise.resolve(result) };
  }
  const { beginBackward } = device;
  if (beginBackward === undefined) throw new Error("it has no backward pass");
  // Where a rank receives it.
  const cotangent = new Float32Array(new SharedArrayBuffer(inputs["dO"]!.byteLength));
  cotangent.set(inputs["dO"]!);
  const sample = async () => {
    const first = await attend();
    const outcome = { o: result["o"]!, lse: result["lse"]!, cotangent };
    const { value, seconds } = await Effect.runPromise(
      backward({ ...device, beginBackward }, share, outcome),
    );
    const [both] = value.blocks;
    const [dk, dv] = [both!.slice(0, both!.length / 2), both!.slice(both!.length / 2)];
    result = { ...result, dq: value.dq, dk, dv };
    return {
      seconds: first.seconds + seconds,
      parts: { forward: first.seconds, backward: seconds },
    };
  };
  return { about, sample, result: () => Promise.resolve(result) };
});
