/**
 * Figures of repeated measurements.
 *
 * @module
 */

/** The middle value; of an even number, the larger of the two in the middle. */
export const median = (values: ReadonlyArray<number>): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]!;

/** Three digits, without an exponent where people read sizes. */
export const digits = (value: number): string =>
  value >= 100 ? value.toFixed(0) : value.toPrecision(3);

/** Median and range, in three digits. */
export const spread = (values: ReadonlyArray<number>): string =>
  `${digits(median(values))} [${digits(Math.min(...values))}..${digits(Math.max(...values))}]`;
