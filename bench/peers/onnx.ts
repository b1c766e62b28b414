/**
 * Attention as ONNX models, written byte by byte: a model is a protocol-buffer message, and of that format only
 * strings, whole numbers, floats and nested messages are needed here.
 *
 * @module
 */
import type { Shape } from "../job.ts";

type Bytes = ReadonlyArray<number>;

const varint = (value: number): Bytes =>
  value < 128 ? [value] : [value % 128 + 128, ...varint(Math.floor(value / 128))];
const number = (field: number, value: number): Bytes => [...varint(field * 8), ...varint(value)];
const bytes = (field: number, value: Bytes): Bytes => [
  ...varint(field * 8 + 2),
  ...varint(value.length),
  ...value,
];
const message = (field: number, ...parts: ReadonlyArray<Bytes>): Bytes =>
  bytes(field, parts.flat());
const text = (field: number, value: string): Bytes =>
  bytes(field, [...new TextEncoder().encode(value)]);
const float = (field: number, value: number): Bytes => [
  ...varint(field * 8 + 5),
  ...new Uint8Array(new Float32Array([value]).buffer),
];

// Field numbers and codes below are those of onnx.proto.
const [asFloat, asInt] = [1, 2];
const float32 = 1;

interface Node {
  readonly type: string;
  readonly domain?: string;
  readonly inputs: ReadonlyArray<string>;
  readonly output: string;
  readonly ints?: Readonly<Record<string, number>>;
  readonly lists?: Readonly<Record<string, ReadonlyArray<number>>>;
  readonly floats?: Readonly<Record<string, number>>;
}

/** The code of a list of whole numbers among attribute types. */
const asInts = 7;

const nodeBytes = ({ type, domain = "", inputs, output, ints, lists, floats }: Node): Bytes =>
  message(
    1,
    ...inputs.map((name) => text(1, name)),
    text(2, output),
    text(4, type),
    ...Object.entries(ints ?? {}).map(([name, value]) =>
      message(5, text(1, name), number(3, value), number(20, asInt))
    ),
    ...Object.entries(lists ?? {}).map(([name, values]) =>
      message(5, text(1, name), ...values.map((value) => number(8, value)), number(20, asInts))
    ),
    ...Object.entries(floats ?? {}).map(([name, value]) =>
      message(5, text(1, name), float(2, value), number(20, asFloat))
    ),
    text(7, domain),
  );

const value = (field: number, name: string, shape: ReadonlyArray<number>): Bytes =>
  message(
    field,
    text(1, name),
    message(
      2,
      message(
        1,
        number(1, float32),
        message(2, ...shape.map((size) => message(1, number(1, size)))),
      ),
    ),
  );

/** A model, and the tensors that it takes and gives. */
export interface Model {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** By input name. */
  readonly inputs: Readonly<Record<string, ReadonlyArray<number>>>;
  /** Heads come before tokens, in the inputs and in o. */
  readonly headsFirst: boolean;
}

const model = (
  inputs: Model["inputs"],
  output: ReadonlyArray<number>,
  nodes: ReadonlyArray<Node>,
  headsFirst: boolean,
): Model => {
  const graph = message(
    7,
    ...nodes.map(nodeBytes),
    text(2, "attention"),
    ...Object.entries(inputs).map(([name, shape]) => value(11, name, shape)),
    value(12, "o", output),
  );
  const versions = [["", 23], ["com.microsoft", 1]] as const;
  const file = [
    ...number(1, 10),
    ...versions.map(([domain, version]) => message(8, text(1, domain), number(2, version))).flat(),
    ...graph,
  ];
  return { bytes: new Uint8Array(file), inputs, headsFirst };
};

/** The graphs that compute attention, by the names under which the bench lists them. */
export const models: Readonly<Record<string, (shape: Shape) => Model>> = {
  /** ONNX Runtime's own operator, fused. */
  "MultiHeadAttention": ({ heads, tokens, headDim, causal }) => {
    const shape = [1, tokens, heads * headDim];
    return model({ q: shape, k: shape, v: shape }, shape, [{
      type: "MultiHeadAttention",
      domain: "com.microsoft",
      inputs: ["q", "k", "v"],
      output: "o",
      ints: { num_heads: heads, unidirectional: Number(causal) },
    }], false);
  },
  /** The operator of the ONNX standard since its version 23. */
  "Attention-23": ({ heads, tokens, headDim, causal }) => {
    const shape = [1, tokens, heads * headDim];
    return model({ q: shape, k: shape, v: shape }, shape, [{
      type: "Attention",
      inputs: ["q", "k", "v"],
      output: "o",
      ints: { q_num_heads: heads, kv_num_heads: heads, is_causal: Number(causal) },
    }], false);
  },
  /** The textbook; a causal mask is added to the scores as an input. */
  "MatMul-Softmax-MatMul": ({ heads, tokens, headDim, causal }) => {
    const shape = [1, heads, tokens, headDim];
    const inputs = { q: shape, k: shape, v: shape, scale: [1] };
    const mask: Model["inputs"] = causal ? { mask: [1, 1, tokens, tokens] } : {};
    return model({ ...inputs, ...mask }, shape, [
      { type: "Transpose", inputs: ["k"], output: "kt", lists: { perm: [0, 1, 3, 2] } },
      { type: "MatMul", inputs: ["q", "kt"], output: "products" },
      { type: "Mul", inputs: ["products", "scale"], output: "scores" },
      ...(causal ? [{ type: "Add", inputs: ["scores", "mask"], output: "masked" }] : []),
      { type: "Softmax", inputs: [causal ? "masked" : "scores"], output: "p", ints: { axis: 3 } },
      { type: "MatMul", inputs: ["p", "v"], output: "o" },
    ], true);
  },
};
