/**
 * The job of running a model: what every rank must know before the first turn.
 *
 * @module
 */
import { Schema } from "effect";
import { dtypes } from "./dtype.ts";

/** A model on a ring. */
export const Inference = Schema.Struct({
  kind: Schema.Literal("model"),
  /** 64 random bits, as 16 hexadecimal digits. */
  run: Schema.String.check(Schema.isPattern(/^[0-9a-f]{16}$/)),
  epoch: Schema.Natural,
  /** Of the model's files. */
  model: Schema.String,
  /** Tokens that every layer sees at most, itself included: for comparisons with models that see no farther. */
  window: Schema.optionalKey(Schema.Natural.check(Schema.isGreaterThan(0))),
  /** Ranks, as many as frames can name. */
  ring: Schema.Natural.check(Schema.isBetween({ minimum: 1, maximum: 65_534 })),
  /** Format in which keys and values are held, and travel. */
  cache: Schema.Literals([...dtypes]),
  /** Ranks say what parts of texts they keep, and are asked to keep and to use some. */
  parts: Schema.optionalKey(Schema.Boolean),
  /** Payload bytes of a frame; a multiple of 8. */
  chunkBytes: Schema.Natural,
});
/** A model on a ring. */
export type Inference = typeof Inference.Type;
