/**
 * A constructed model: a decoder of two layers whose weights are computed in closed form, none of them trained. It reads
 * bytes, and goes on with what followed the last time that its five last bytes were there: a 5-gram induction head. That is
 * enough to find a needle at any distance, and all that it can do.
 *
 * The first layer looks back: head j attends to the token j places before, by the angle of its queries alone, and copies
 * its code. Now every token knows the five before it. The second layer compares: the queries are the codes of the five
 * last tokens, the keys those of the five tokens before each token, and the value is the token's own code.
 *
 * Source: Olsson et al. 2022, "In-context Learning and Induction Heads".
 *
 * ```sh
 * deno run -A examples/08_constructed_model.ts DIR
 * annulus needle DIR --lengths 4k,64k --ring 4 --out needles
 * ```
 *
 * @module
 */
import { createSafetensors } from "../plugins/safetensors.ts";
import { Effect } from "effect";

/** Bytes, and how many of them are compared. */
const [vocabulary, grams] = [256, 5];
/** Components of a code, and of a head: pair 0 turns by a radian a token, pairs from 6 on hardly in a billion tokens. */
const [codeSize, headDim, firstStill] = [16, 128, 6];
const theta = 1e100;

/** x · y in GF(16), with x⁴ = x + 1. */
const times = (x: number, y: number): number => {
  let sum = 0;
  for (let bit = 0; bit < 4; bit++) {
    if (y >> bit & 1) sum ^= x << bit;
  }
  for (let bit = 6; bit >= 4; bit--) {
    if (sum >> bit & 1) sum ^= 0b10011 << bit - 4;
  }
  return sum;
};
const trace = (x: number): number => {
  const [x2, x4] = [times(x, x), times(times(x, x), times(x, x))];
  return (x ^ x2 ^ x4 ^ times(x4, x4)) & 1;
};

/** The code of a byte: 16 signs, of which any two bytes share at most 12 and at least 4, or none. */
const codeOf = (byte: number): ReadonlyArray<number> => {
  const [a, b] = [byte >> 4, byte & 15];
  return Array.from({ length: codeSize }, (_, x) => {
    const cube = times(x, times(x, x));
    return trace(times(a, x) ^ times(b, cube)) === 0 ? 1 : -1;
  });
};

/** Where things are in x: a number that is always 1, the token's code, those of the tokens before it, and the answer. */
const one = 0;
const ofToken = (back: number) => 4 + codeSize * back;
const answer = ofToken(grams + 1);
const hidden = answer + codeSize;
/** Squares of x before each norm: what is there has always the same size, so that the norm divides by a constant. */
const squares = [1 + codeSize, 1 + codeSize * (grams + 1), 1 + codeSize * (grams + 2)];
const norm = (which: number) => Math.sqrt(squares[which]! / hidden);

class Matrix {
  readonly values: Float32Array;
  constructor(readonly rows: number, readonly columns: number) {
    this.values = new Float32Array(rows * columns);
  }
  set(row: number, column: number, value: number): void {
    this.values[row * this.columns + column] = value;
  }
}

/** Component c of what does not turn: pairs (i, i + headDim / 2) from the first still one on. */
const still = (c: number): number => firstStill + (c >> 1) + (c & 1) * headDim / 2;

/** What a right key has more than a wrong one, at least, in the exponent. */
const [lookBack, compare] = [100, 80];

const tensors = (): ReadonlyMap<string, Matrix> => {
  const found = new Map<string, Matrix>();
  const add = (name: string, rows: number, columns: number) => {
    const matrix = new Matrix(rows, columns);
    found.set(name, matrix);
    return matrix;
  };
  const embedding = add("model.embed_tokens.weight", vocabulary, hidden);
  const head = add("lm_head.weight", vocabulary, hidden);
  for (let byte = 0; byte < vocabulary; byte++) {
    embedding.set(byte, one, 1);
    for (const [c, sign] of codeOf(byte).entries()) {
      embedding.set(byte, ofToken(0) + c, sign);
      head.set(byte, answer + c, 2 * sign * norm(2));
    }
  }
  for (const name of ["input_layernorm", "post_attention_layernorm"]) {
    for (const layer of [0, 1]) {
      add(`model.layers.${layer}.${name}.weight`, 1, hidden).values.fill(1);
    }
  }
  add("model.norm.weight", 1, hidden).values.fill(1);
  for (const layer of [0, 1]) {
    const at = `model.layers.${layer}`;
    const q = add(`${at}.self_attn.q_proj.weight`, grams * headDim, hidden);
    const k = add(`${at}.self_attn.k_proj.weight`, headDim, hidden);
    const v = add(`${at}.self_attn.v_proj.weight`, headDim, hidden);
    const o = add(`${at}.self_attn.o_proj.weight`, hidden, grams * headDim);
    add(`${at}.mlp.gate_proj.weight`, 4, hidden);
    add(`${at}.mlp.up_proj.weight`, 4, hidden);
    add(`${at}.mlp.down_proj.weight`, hidden, 4);
    for (let c = 0; c < codeSize; c++) v.set(still(c), ofToken(0) + c, norm(layer));
    if (layer === 0) {
      // k = (1, 0) and q = (cos j, −sin j) in pair 0: q·k is cos(distance − j) once both have turned.
      k.set(0, one, norm(0));
      for (let j = 1; j <= grams; j++) {
        const size = lookBack * Math.sqrt(headDim) * norm(0);
        q.set((j - 1) * headDim, one, size * Math.cos(j));
        q.set((j - 1) * headDim + headDim / 2, one, -size * Math.sin(j));
        for (let c = 0; c < codeSize; c++) {
          o.set(ofToken(j) + c, (j - 1) * headDim + still(c), 1);
        }
      }
    } else {
      const size = compare * Math.sqrt(headDim) / codeSize;
      for (let j = 0; j < grams; j++) {
        for (let c = 0; c < codeSize; c++) {
          q.set(still(j * codeSize + c), ofToken(j) + c, size * norm(1));
          k.set(still(j * codeSize + c), ofToken(j + 1) + c, norm(1));
        }
      }
      for (let c = 0; c < codeSize; c++) o.set(answer + c, still(c), 1);
    }
  }
  return found;
};

/** GPT-2's letters for bytes, in which a byte-level vocabulary is written. */
const letters = (): ReadonlyArray<string> => {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const itself = byte >= 33 && byte <= 126 || byte >= 161 && byte <= 172 || byte >= 174;
    return String.fromCodePoint(itself ? byte : next++);
  });
};

/** Writes the model's folder, which is like any other. */
export const writeConstructedModel = async (folder: string, longest = 2 ** 24): Promise<void> => {
  await Deno.mkdir(folder, { recursive: true });
  const json = (name: string, value: unknown) =>
    Deno.writeTextFile(`${folder}/${name}`, `${JSON.stringify(value, null, 2)}\n`);
  await json("config.json", {
    architectures: ["LlamaForCausalLM"],
    vocab_size: vocabulary,
    hidden_size: hidden,
    intermediate_size: 4,
    num_hidden_layers: 2,
    num_attention_heads: grams,
    num_key_value_heads: 1,
    head_dim: headDim,
    max_position_embeddings: longest,
    rms_norm_eps: 0,
    rope_theta: theta,
    hidden_act: "silu",
    tie_word_embeddings: false,
    layer_types: ["sliding_attention", "full_attention"],
    sliding_window: grams + 1,
    eos_token_id: 0,
  });
  await json("generation_config.json", { do_sample: false, eos_token_id: 0 });
  await json("tokenizer.json", {
    version: "1.0",
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: {
      type: "ByteLevel",
      add_prefix_space: false,
      trim_offsets: false,
      use_regex: true,
    },
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: true },
    model: {
      type: "BPE",
      vocab: Object.fromEntries(letters().map((letter, byte) => [letter, byte])),
      merges: [],
    },
  });
  await json("tokenizer_config.json", {
    tokenizer_class: "GPT2Tokenizer",
    clean_up_tokenization_spaces: false,
    chat_template: "{% for message in messages %}{{ message['content'] }}{% endfor %}",
  });
  const all = tensors();
  await Effect.runPromise(Effect.scoped(Effect.gen(function* () {
    const writer = yield* createSafetensors(
      `${folder}/model.safetensors`,
      [...all].map(([name, { rows, columns }]) => ({
        name,
        dtype: "F32" as const,
        shape: rows === 1 ? [columns] : [rows, columns],
      })),
      { format: "pt" },
    );
    for (const [name, { values }] of all) {
      const bytes = new Uint8Array(values.buffer);
      yield* writer.write(name, [{ offset: 0, length: values.length }], bytes);
    }
    yield* writer.commit;
  })));
};

if (import.meta.main) {
  const folder = Deno.args[0] ?? await Deno.makeTempDir({ prefix: "annulus-constructed-" });
  await writeConstructedModel(folder);
  console.log(
    `${folder} holds a constructed model: ${grams}-gram induction over bytes, two layers`,
  );
}
