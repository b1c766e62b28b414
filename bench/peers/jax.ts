/**
 * jax-js, `jax.ts wasm` or `jax.ts webgpu`: its own attention, compiled by its `jit`.
 *
 * @module
 */
import { contend, timed } from "../contender.ts";
import { versionOf } from "./version.ts";

/** An array is used up by the function that takes it; `ref` is one more use of it. */
interface Array {
  readonly ref: Array;
  readonly data: () => Promise<Float32Array>;
}
type Device = "wasm" | "webgpu";
type Attend = (q: Array, k: Array, v: Array) => Array;

/** As much of the package as is used. */
interface Jax {
  readonly init: (device: Device) => Promise<ReadonlyArray<Device>>;
  readonly defaultDevice: (device: Device) => Device;
  readonly jit: (attend: Attend) => Attend;
  readonly numpy: {
    readonly array: (
      values: Float32Array,
      options: { readonly shape: ReadonlyArray<number> },
    ) => Array;
  };
  readonly nn: {
    readonly dotProductAttention: (
      ...args: readonly [Array, Array, Array, { readonly isCausal: boolean }]
    ) => Array;
  };
}

const name: string = "@jax-js/jax";
const device = Deno.args[0] as Device;

await contend(async (job, inputs) => {
  if (job.kind !== "attention") throw new Error("it only attends");
  const jax: Jax = await import(name);
  if (!(await jax.init(device)).includes(device)) throw new Error(`it does not run on ${device}`);
  jax.defaultDevice(device);
  const [q, k, v] = ["q", "k", "v"].map((tensor) =>
    jax.numpy.array(inputs[tensor]!, { shape: [1, job.tokens, job.heads, job.headDim] })
  ) as [Array, Array, Array];
  const attend = jax.jit((...tensors) =>
    jax.nn.dotProductAttention(...tensors, { isCausal: job.causal })
  );
  let o = new Float32Array();
  return {
    about: `jax-js ${versionOf("@jax-js/jax")}, ${device}`,
    sample: async () => {
      const [values, seconds] = await timed(() => attend(q.ref, k.ref, v.ref).data());
      o = new Float32Array(values);
      return { seconds };
    },
    result: () => Promise.resolve({ o }),
  };
});
