/**
 * How far a result is from its reference. A NaN anywhere makes the distance NaN, which no bound admits.
 *
 * @module
 */

/** √Σ(actual − expected)² / √Σ expected². */
export const relativeL2 = (actual: ArrayLike<number>, expected: ArrayLike<number>): number => {
  let [error, norm] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    error += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  return Math.sqrt(error / norm);
};

/** The largest |actual − expected|; equal infinities are 0 apart. */
export const maxAbs = (actual: ArrayLike<number>, expected: ArrayLike<number>): number => {
  let most = 0;
  for (let i = 0; i < expected.length; i++) {
    if (actual[i] !== expected[i]) most = Math.max(most, Math.abs(actual[i]! - expected[i]!));
  }
  return most;
};

/** Whether two arrays hold the same numbers; `deepEqual` would print every element of large ones. */
export const sameNumbers = (a: ArrayLike<number>, b: ArrayLike<number>): boolean => {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (!Object.is(a[i], b[i])) return false;
  return true;
};
