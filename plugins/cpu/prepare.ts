/**
 * What a thread does before and after the products: widens 16-bit numbers, measures vectors, normalises results, and
 * sums what the backward pass needs of them.
 *
 * @module
 */
import { elementBytes } from "../../runtime/dtype.ts";
import { lseOf } from "../../runtime/lse.ts";
import { chunksOf, type Delta, type Normalise, type Prepare } from "./job.ts";
import { chunk } from "./sight.ts";
import { type Softmax, tileElements } from "./softmax.ts";

/** One chunk of tokens of one batch entry. */
export const prepare = (softmax: Softmax, job: Prepare, item: number): void => {
  const { bytes, dtype, tokens, heads, headDim, into, longest } = job;
  const chunks = chunksOf(tokens);
  const [b, index] = [Math.floor(item / chunks), item % chunks];
  const [from, to] = chunk(index, tokens);
  const [first, end] = [(b * tokens + from) * heads, (b * tokens + to) * heads];
  const size = elementBytes(dtype);
  const [target, source] = softmax.tiles.map(({ values }) =>
    new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
  );
  const atOnce = Math.floor(tileElements / headDim);
  for (let vector = first; vector < end; vector += atOnce) {
    const count = Math.min(atOnce, end - vector);
    const elements = count * headDim;
    const [begin, stop] = [vector * headDim * size, (vector * headDim + elements) * size];
    (dtype === "f32" ? target! : source!).set(bytes.subarray(begin, stop));
    if (dtype !== "f32") softmax.widen(dtype, elements);
    into?.set(softmax.tiles[0].values.subarray(0, elements), vector * headDim);
    if (longest === undefined) continue;
    const squares = softmax.squares(count, headDim);
    const at = (b * chunks + index) * heads;
    for (let i = 0, head = (vector - first) % heads; i < count; i++) {
      // Not Math.max: what is no number shall be the longest.
      if (!(squares[i]! <= longest[at + head]!)) longest[at + head] = squares[i]!;
      if (++head === heads) head = 0;
    }
  }
};

/** One chunk of tokens of one batch entry. */
export const normalise = ({ shape, state }: Normalise, item: number): void => {
  const { tokens, heads, headDim } = shape;
  const { outputs, tops, sums } = state;
  const chunks = chunksOf(tokens);
  const b = Math.floor(item / chunks);
  const [from, to] = chunk(item % chunks, tokens);
  for (let token = from; token < to; token++) {
    for (let h = 0; h < heads; h++) {
      const row = (b * heads + h) * tokens + token;
      const sum = sums[row]!;
      sums[row] = lseOf(tops[row]!, sum);
      if (sum === 0) continue; // it saw no key
      const at = ((b * tokens + token) * heads + h) * headDim;
      const inverse = 1 / sum;
      for (let i = at; i < at + headDim; i++) outputs[i] = outputs[i]! * inverse;
    }
  }
};

/** One chunk of tokens of one batch entry. */
export const delta = ({ shape, o, slopes }: Delta, item: number): void => {
  const { tokens, heads, headDim } = shape;
  const { cotangent, d } = slopes;
  const chunks = chunksOf(tokens);
  const b = Math.floor(item / chunks);
  const [from, to] = chunk(item % chunks, tokens);
  for (let token = from; token < to; token++) {
    for (let h = 0; h < heads; h++) {
      const at = ((b * tokens + token) * heads + h) * headDim;
      let sum = 0;
      for (let i = at; i < at + headDim; i++) sum += cotangent[i]! * o[i]!;
      d[(b * heads + h) * tokens + token] = sum;
    }
  }
};
