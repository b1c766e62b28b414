/**
 * A contender that computes by the oracle's naive code and is odd in the way of its argument: the name of a tensor
 * that it spoils, or what it does wrong.
 *
 * @module
 */
import { contend } from "../../bench/contender.ts";
import type { Tensors } from "../../bench/job.ts";
import { denseAttention, denseGradients } from "../../kernels/oracle.ts";

const oddity = Deno.args[0]!;

await contend((job, { q, k, v, dO }) => {
  if (job.kind === "matmul") throw new Error("it does not multiply");
  if (oddity === "closed") throw new Error("this contender is closed today");
  const { heads, tokens, headDim, causal } = job;
  const problem = {
    batch: 1,
    tokens,
    heads,
    kvHeads: heads,
    headDim,
    scale: 1 / Math.sqrt(headDim),
    rules: { sees: causal ? (_b: number, _h: number, q: number, k: number) => k <= q : () => true },
  };
  let samples = 0;
  return Promise.resolve({
    about: "an odd one",
    sample: () => {
      if (oddity === "mute") throw new Error("it computes nothing");
      if (oddity === "dying" && ++samples > 1) Deno.exit(7);
      return Promise.resolve({ seconds: 0.001 });
    },
    result: () => {
      const exact = {
        ...denseAttention(problem, q!, k!, v!),
        ...denseGradients(problem, q!, k!, v!, dO!),
      };
      const result: Tensors = Object.fromEntries(
        Object.entries(exact).map(([name, values]) => [
          name,
          Float32Array.from(values, (x) => name === oddity ? x * 1.001 : x),
        ]),
      );
      return Promise.resolve(oddity === "without" ? { o: result["o"]! } : result);
    },
  });
});
