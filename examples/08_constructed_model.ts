/**
 * A constructed model: a decoder of two layers whose weights are computed in closed form, none of them trained. It reads
 * bytes, and goes on with what followed where its last bytes, five of them or up to fifteen, were before: an induction
 * head. Where they never were, it takes what is most like them; where different bytes followed, it gives the one that did
 * so most often, or none of them. That is enough to find a needle at any distance and to go on with a quotation, and all
 * that it can do.
 *
 * The first layer looks back: head j attends to the token j places before, by the angle of its queries alone, and copies
 * its code. Now every token knows those before it. The second layer compares: the queries are the codes of the last
 * tokens, the keys those of the tokens before each token, and the value is the token's own code.
 *
 * Source: Olsson et al. 2022, "In-context Learning and Induction Heads".
 *
 * ```sh
 * deno run -A examples/08_constructed_model.ts DIR        # DIR 15 compares fifteen bytes
 * annulus needle DIR --lengths 4k,64k --ring 4 --out needles
 * ```
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import { createSafetensors } from "../plugins/safetensors.ts";

const vocabulary = 256;
/** Components of a code, and the first pair of a head's components that hardly turns, in a billion tokens. */
const [codeSize, firstStill] = [16, 6];

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

class Matrix {
  readonly values: Float32Array;
  constructor(readonly rows: number, readonly columns: number) {
    this.values = new Float32Array(rows * columns);
  }
  set(row: number, column: number, value: number): void {
    this.values[row * this.columns + column] = value;
  }
}

/** What a right key has more than a wrong one in the exponent, at least, where tokens are compared and where they are found. */
const [compare, lookBack] = [80, 46];

/** Sizes of a model that compares so many bytes. */
const sizesOf = (grams: number) => {
  const headDim = 128 * Math.ceil((2 * firstStill + codeSize * grams) / 128);
  // Pair 0 turns by a radian a token, whatever this is.
  const theta = 10 ** (100 * headDim / 128);
  return { grams, headDim, theta, hidden: ofToken(grams + 2) };
};

const tensors = (grams: number): ReadonlyMap<string, Matrix> => {
  const { headDim, hidden } = sizesOf(grams);
  const answer = ofToken(grams + 1);
  /** Squares of x before each norm: what is there has always the same size, so that the norm divides by a constant. */
  const squares = [1 + codeSize, 1 + codeSize * (grams + 1), 1 + codeSize * (grams + 2)];
  const norm = (which: number) => Math.sqrt(squares[which]! / hidden);
  /** Component c of what does not turn: pairs (i, i + headDim / 2) from the first still one on. */
  const still = (c: number): number => firstStill + (c >> 1) + (c & 1) * headDim / 2;
  /** How near the angle of another place can come to that of the right one. */
  const nearest = Math.max(...Array.from({ length: grams }, (_, i) => Math.cos(i + 1)));
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
        const size = lookBack / (1 - nearest) * Math.sqrt(headDim) * norm(0);
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
export const writeConstructedModel = async (
  folder: string,
  { grams = 5, longest = 2 ** 24 }: { readonly grams?: number; readonly longest?: number } = {},
): Promise<void> => {
  const { headDim, theta, hidden } = sizesOf(grams);
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
  const all = tensors(grams);
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

/** The model in a folder that ends with the scope. */
export const constructedModel = (grams: number): Effect.Effect<string, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const folder = await Deno.makeTempDir({ prefix: "annulus-constructed-" });
      await writeConstructedModel(folder, { grams });
      return folder;
    }),
    (folder) => Effect.promise(() => Deno.remove(folder, { recursive: true })),
  );

if (import.meta.main) {
  const folder = Deno.args[0] ?? await Deno.makeTempDir({ prefix: "annulus-constructed-" });
  const grams = Number(Deno.args[1] ?? 5);
  if (!(Number.isInteger(grams) && grams >= 1 && grams <= 15)) {
    throw new Error(`it can compare 1 to 15 bytes: found ${Deno.args[1]}`);
  }
  await writeConstructedModel(folder, { grams });
  console.log(
    `${folder} holds a constructed model: ${grams}-gram induction over bytes, two layers`,
  );
}
