/**
 * Random numbers from a seed, for inputs that commands make themselves.
 *
 * @module
 */

/** Uniform numbers between 0 and 1, neither of them included; the same seed gives the same ones (xorshift32). */
export const uniform = (seed: number): () => number => {
  let state = Math.imul(seed, 0x9e3779b1) | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) + 0.5) / 2 ** 32;
  };
};

/** A source of arrays of standard normal numbers; the same seed gives the same ones (Box and Muller). */
export const normals = (seed: number): (count: number) => Float32Array<ArrayBuffer> => {
  const next = uniform(seed);
  return (count) => {
    const values = new Float32Array(count);
    for (let i = 0; i < count; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(next())), angle = 2 * Math.PI * next();
      values[i] = radius * Math.cos(angle);
      if (i + 1 < count) values[i + 1] = radius * Math.sin(angle);
    }
    return values;
  };
};
