/**
 * TensorFlow.js, `tfjs.ts wasm` or `tfjs.ts webgpu`: matMul, softmax, matMul, since it has no attention of its own.
 *
 * @module
 */
import { contend, timed } from "../contender.ts";
import { headsFirst, tokensFirst } from "./layout.ts";
import { versionOf } from "./version.ts";

interface Tensor {
  readonly data: () => Promise<Float32Array>;
  readonly dispose: () => void;
}

/** As much of the package as is used. */
interface Tfjs {
  readonly setBackend: (backend: string) => Promise<boolean>;
  readonly ready: () => Promise<void>;
  readonly tensor: (values: Float32Array, shape: ReadonlyArray<number>) => Tensor;
  readonly matMul: (a: Tensor, b: Tensor, turnA: boolean, turnB: boolean) => Tensor;
  readonly mul: (a: Tensor, factor: number) => Tensor;
  readonly add: (a: Tensor, b: Tensor) => Tensor;
  readonly softmax: (x: Tensor) => Tensor;
  readonly tidy: (work: () => Tensor) => Tensor;
}

const backend = Deno.args[0]!;
const [core, plugin]: [string, string] = [
  "@tensorflow/tfjs-core",
  `@tensorflow/tfjs-backend-${backend}`,
];
/** Added to the scores where a key is not seen. */
const unseen = -1e9;

await contend(async (job, inputs) => {
  if (job.kind !== "attention") throw new Error("it only attends");
  const tf: Tfjs = await import(core);
  await import(plugin);
  if (!await tf.setBackend(backend)) throw new Error(`it does not run on ${backend}`);
  await tf.ready();
  const { heads, tokens, headDim, causal } = job;
  const [q, k, v] = ["q", "k", "v"].map((name) =>
    tf.tensor(headsFirst(job, inputs[name]!), [heads, tokens, headDim])
  ) as [Tensor, Tensor, Tensor];
  const mask = causal
    ? tf.tensor(
      Float32Array.from(
        { length: tokens * tokens },
        (_, i) => i % tokens > Math.floor(i / tokens) ? unseen : 0,
      ),
      [1, tokens, tokens],
    )
    : undefined;
  const attend = () =>
    tf.tidy(() => {
      const scores = tf.mul(tf.matMul(q, k, false, true), 1 / Math.sqrt(headDim));
      return tf.matMul(
        tf.softmax(mask === undefined ? scores : tf.add(scores, mask)),
        v,
        false,
        false,
      );
    });
  let o = new Float32Array();
  return {
    about: `tfjs ${versionOf("@tensorflow/tfjs-core")}, ${backend}`,
    sample: async () => {
      const [values, seconds] = await timed(async () => {
        const result = attend();
        const values = await result.data();
        result.dispose();
        return values;
      });
      o = new Float32Array(values);
      return { seconds };
    },
    result: () => Promise.resolve({ o: tokensFirst(job, o) }),
  };
});
