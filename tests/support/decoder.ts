/**
 * A decoder in float64 and plain loops, written from the papers and not from the product: what models are compared with.
 *
 * @module
 */

/** A tensor by name, row-major. */
export type Weights = ReadonlyMap<
  string,
  { readonly shape: ReadonlyArray<number>; readonly values: ArrayLike<number> }
>;

/** What the forward pass needs of a config. */
export interface DecoderConfig {
  readonly hidden_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
  readonly rope_scaling?: {
    readonly factor: number;
    readonly low_freq_factor: number;
    readonly high_freq_factor: number;
    readonly original_max_position_embeddings: number;
  };
}

type Row = Float64Array;

const product = (weights: Weights, name: string, row: Row): Row => {
  const { shape: [rows, columns], values } = weights.get(`${name}.weight`)! as {
    shape: [number, number];
    values: ArrayLike<number>;
  };
  const bias = weights.get(`${name}.bias`)?.values;
  return Float64Array.from({ length: rows }, (_, j) => {
    let sum = bias?.[j] ?? 0;
    for (let i = 0; i < columns; i++) sum += values[j * columns + i]! * row[i]!;
    return sum;
  });
};

const normalised = (row: Row, gain: ArrayLike<number>, epsilon: number): Row => {
  const mean = row.reduce((sum, x) => sum + x * x, 0) / row.length;
  return row.map((x, i) => x / Math.sqrt(mean + epsilon) * gain[i]!);
};

/** As RoFormer's equation 34, with components i and i + d/2 as a pair. */
const rotated = (head: Row, position: number, config: DecoderConfig): Row => {
  const half = head.length / 2;
  const out = new Float64Array(head.length);
  for (let i = 0; i < half; i++) {
    let frequency = 1 / config.rope_theta ** (2 * i / head.length);
    const scaling = config.rope_scaling;
    if (scaling !== undefined) {
      const wave = 2 * Math.PI / frequency;
      const { original_max_position_embeddings: original } = scaling;
      const [longest, shortest] = [
        original / scaling.low_freq_factor,
        original / scaling.high_freq_factor,
      ];
      if (wave > longest) frequency /= scaling.factor;
      else if (wave >= shortest) {
        const smooth = (original / wave - scaling.low_freq_factor) /
          (scaling.high_freq_factor - scaling.low_freq_factor);
        frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency;
      }
    }
    const [c, s] = [Math.cos(position * frequency), Math.sin(position * frequency)];
    out[i] = head[i]! * c - head[i + half]! * s;
    out[i + half] = head[i + half]! * c + head[i]! * s;
  }
  return out;
};

/**
 * Logits of every token, [tokens][vocabulary].
 *
 * @param windowOf How many tokens a layer sees, itself included; all where it gives nothing.
 */
export const decoderLogits = (
  config: DecoderConfig,
  weights: Weights,
  ids: ArrayLike<number>,
  windowOf: (layer: number) => number | undefined = () => undefined,
): ReadonlyArray<Row> => {
  const { hidden_size, num_attention_heads, num_key_value_heads, head_dim, rms_norm_eps } = config;
  const gain = (name: string) => weights.get(`${name}.weight`)!.values;
  const embedding = weights.get("model.embed_tokens.weight")!.values;
  let rows: Array<Row> = Array.from(
    { length: ids.length },
    (_, t) =>
      Float64Array.from({ length: hidden_size }, (_, i) => embedding[ids[t]! * hidden_size + i]!),
  );
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const at = `model.layers.${layer}`;
    const normed = rows.map((row) => normalised(row, gain(`${at}.input_layernorm`), rms_norm_eps));
    const headsOf = (which: "q" | "k" | "v", count: number) =>
      normed.map((row, position) => {
        const all = product(weights, `${at}.self_attn.${which}_proj`, row);
        return Array.from({ length: count }, (_, h) => {
          const head = all.slice(h * head_dim, (h + 1) * head_dim);
          if (which === "v") return head;
          const norm = weights.get(`${at}.self_attn.${which}_norm.weight`)?.values;
          return rotated(
            norm === undefined ? head : normalised(head, norm, rms_norm_eps),
            position,
            config,
          );
        });
      });
    const q = headsOf("q", num_attention_heads);
    const k = headsOf("k", num_key_value_heads);
    const v = headsOf("v", num_key_value_heads);
    const size = windowOf(layer) ?? Infinity;
    rows = rows.map((row, t) => {
      const o = new Float64Array(num_attention_heads * head_dim);
      for (let h = 0; h < num_attention_heads; h++) {
        const g = Math.floor(h * num_key_value_heads / num_attention_heads);
        const first = Math.max(0, t - size + 1);
        const scores = Array.from(
          { length: t - first + 1 },
          (_, j) =>
            q[t]![h]!.reduce((sum, x, i) => sum + x * k[first + j]![g]![i]!, 0) /
            Math.sqrt(head_dim),
        );
        const top = Math.max(...scores);
        const p = scores.map((score) => Math.exp(score - top));
        const sum = p.reduce((a, b) => a + b, 0);
        for (const [j, weight] of p.entries()) {
          for (let i = 0; i < head_dim; i++) {
            o[h * head_dim + i]! += weight / sum * v[first + j]![g]![i]!;
          }
        }
      }
      const attended = product(weights, `${at}.self_attn.o_proj`, o).map((x, i) => x + row[i]!);
      const inner = normalised(attended, gain(`${at}.post_attention_layernorm`), rms_norm_eps);
      const [gate, up] = ["gate", "up"].map((which) =>
        product(weights, `${at}.mlp.${which}_proj`, inner)
      );
      const unit = gate!.map((x, i) => x / (1 + Math.exp(-x)) * up![i]!);
      return product(weights, `${at}.mlp.down_proj`, unit).map((x, i) => x + attended[i]!);
    });
  }
  const head = weights.has("lm_head.weight") ? "lm_head" : "model.embed_tokens";
  return rows.map((row) =>
    product(weights, head, normalised(row, gain("model.norm"), rms_norm_eps))
  );
};
