/**
 * What both packages of ONNX Runtime have in common: a session of one of the models, measured. Packages are imported
 * by names that only this folder's `deno.json` knows, so that nothing else ever asks for them; their types are given
 * here, as far as they are used.
 *
 * @module
 */
import { type Contest, timed } from "../contender.ts";
import type { Shape, Tensors } from "../job.ts";
import { headsFirst, tokensFirst } from "./layout.ts";
import { type Model, models } from "./onnx.ts";

interface Tensor {
  /** The values, fetched from where they are. */
  readonly getData: () => Promise<Float32Array>;
}

/** As much of the packages as is used. */
export interface OnnxRuntime {
  readonly Tensor: new (
    type: "float32",
    data: Float32Array,
    shape: ReadonlyArray<number>,
  ) => Tensor;
  readonly InferenceSession: {
    readonly create: (
      model: Uint8Array,
      options: Readonly<Record<string, unknown>>,
    ) => Promise<{
      readonly run: (
        feeds: Readonly<Record<string, Tensor>>,
      ) => Promise<Readonly<Record<string, Tensor>>>;
    }>;
  };
  readonly env: {
    readonly versions: Readonly<Record<string, string>>;
    readonly wasm: { numThreads?: number };
    logLevel?: string;
  };
}

/** Added to the scores where a key is not seen; exp of it is 0, and it is no NaN in any combination. */
const unseen = -1e9;

const feedsOf = ({ inputs, headsFirst: turned }: Model, shape: Shape, given: Tensors): Tensors =>
  Object.fromEntries(
    Object.keys(inputs).map((name) => {
      if (name === "scale") return [name, new Float32Array([1 / Math.sqrt(shape.headDim)])];
      if (name === "mask") {
        const { tokens } = shape;
        const mask = Float32Array.from(
          { length: tokens * tokens },
          (_, i) => i % tokens > Math.floor(i / tokens) ? unseen : 0,
        );
        return [name, mask];
      }
      return [name, turned ? headsFirst(shape, given[name]!) : given[name]!];
    }),
  );

/** Opens a session of the model called `graph`. */
export const openSession = async (
  ort: OnnxRuntime,
  about: string,
  graph: string,
  options: Readonly<Record<string, unknown>>,
  shape: Shape,
  given: Tensors,
): Promise<Contest> => {
  const model = models[graph]!(shape);
  const session = await ort.InferenceSession.create(model.bytes, options);
  const feeds = Object.fromEntries(
    Object.entries(feedsOf(model, shape, given)).map(([name, values]) => [
      name,
      new ort.Tensor("float32", values, model.inputs[name]!),
    ]),
  );
  let o = new Float32Array();
  return {
    about,
    sample: async () => {
      const [values, seconds] = await timed(async () =>
        await (await session.run(feeds))["o"]!.getData()
      );
      o = new Float32Array(values);
      return { seconds };
    },
    result: () => Promise.resolve({ o: model.headsFirst ? tokensFirst(shape, o) : o }),
  };
};
