/**
 * A span: token positions that follow one arithmetic rule, so that a kernel can compute any position from four
 * numbers and every layout runs through the same code.
 *
 * @module
 */

/**
 * `count` token positions in ascending order. They come in runs of `run` consecutive tokens, the runs begin `stride`
 * tokens apart, the first of them at `start`, and the span begins at index `first` of that sequence. A contiguous
 * stretch is one run; a striped shard has runs of one.
 */
export interface Span {
  /** Global position of index 0 of the sequence. */
  readonly start: number;
  /** Tokens per run, at least 1. */
  readonly run: number;
  /** Tokens from the begin of one run to the next, at least `run`. */
  readonly stride: number;
  /** Index in the sequence at which this span begins. */
  readonly first: number;
  /** Tokens in this span. */
  readonly count: number;
}

/** The positions `start` … `start + count − 1`. */
export const contiguous = (start: number, count: number): Span => ({
  start,
  run: Math.max(count, 1),
  stride: Math.max(count, 1),
  first: 0,
  count,
});

/** Tokens `from` … `from + count − 1` of a span, as a span. */
export const slice = (span: Span, from: number, count: number): Span => ({
  ...span,
  first: span.first + from,
  count,
});

/** The global position of the span's `i`-th token. */
export const positionAt = (span: Span, i: number): number => {
  const j = span.first + i;
  return span.start + Math.floor(j / span.run) * span.stride + j % span.run;
};

/** How many of the span's tokens have a position of at most `p`. */
export const countUpTo = (span: Span, p: number): number => {
  const distance = p - span.start;
  if (distance < 0) return 0;
  const index = Math.floor(distance / span.stride) * span.run +
    Math.min(distance % span.stride + 1, span.run);
  return Math.min(Math.max(index - span.first, 0), span.count);
};
