/**
 * One more key without a value, to which a query may give what it has no use for: it makes the sum below the softmax
 * larger and adds nothing to the output, so that it can come last, wherever the other keys were.
 *
 * @module
 */
import type { Attended } from "./kernel.ts";
import { addKeys, type Rows } from "./merge.ts";

/**
 * Adds the key to what query rows have gathered, in place.
 *
 * @param logit Its logit by query head.
 */
export const addSink = (attended: Attended, rows: Rows, logit: (h: number) => number): void =>
  addKeys(attended, rows, (_, head) => logit(head));
