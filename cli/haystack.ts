/**
 * Haystacks with needles in them, as tokens: a long text of no interest, and in it, at some depth, what is asked for.
 *
 * @module
 */

/** What is hidden, what is asked, and what is right. */
export interface Needle {
  readonly text: string;
  readonly question: string;
  readonly answer: string;
}

/** Numbers from 0 to below `below`, the same for the same seed. */
const dice = (seed: number): (below: number) => number => {
  let state = Math.imul(seed, 0x9e3779b1) >>> 0;
  return (below) => {
    state = Math.imul(state ^ state >>> 15, 0x2c1b3c6d) >>> 0;
    state = Math.imul(state ^ state >>> 12, 0x297a2d39) + 0x6d2b79f5 >>> 0;
    return (state ^ state >>> 15) % below;
  };
};

/** Needles of which no two have a name in common. */
export const needlesFor = (seed: number, count: number): ReadonlyArray<Needle> => {
  const roll = dice(seed + 1);
  const names = new Set<string>();
  while (names.size < count) {
    // No vowels: no text has such a word.
    names.add(Array.from({ length: 5 }, () => "BCDFGHJKLMNPQRSTVWXZ"[roll(20)]).join(""));
  }
  return [...names].map((name) => {
    const answer = String(10_000 + roll(90_000));
    return {
      text: `\nThe pass key is ${name}=${answer}.\n`,
      question: `\nThe pass key is ${name}=`,
      answer,
    };
  });
};

/** What is hidden at which share of the text. */
export interface Hidden {
  readonly ids: ReadonlyArray<number>;
  /** From 0 to 1. */
  readonly depth: number;
}

/**
 * Tokens of a text with others in it, `length` in all.
 *
 * @param hay At least as many tokens as that.
 * @param isBreak Whether a sentence ends with this token: nothing is put into one, where it does not have to be.
 */
export const hide = (
  hay: ReadonlyArray<number>,
  length: number,
  hidden: ReadonlyArray<Hidden>,
  isBreak: (id: number) => boolean,
): ReadonlyArray<number> => {
  const room = length - hidden.reduce((sum, { ids }) => sum + ids.length, 0);
  const places = hidden.map(({ ids, depth }) => {
    const wanted = Math.round(depth * room);
    let at = wanted;
    while (at > 0 && at < room && !isBreak(hay[at - 1]!) && wanted - at < 1000) at--;
    return { ids, at: at > 0 && isBreak(hay[at - 1]!) ? at : wanted };
  }).toSorted((a, b) => a.at - b.at);
  const all: Array<number> = [];
  let from = 0;
  for (const { ids, at } of places) {
    for (let i = from; i < at; i++) all.push(hay[i]!);
    for (const id of ids) all.push(id);
    from = at;
  }
  for (let i = from; i < room; i++) all.push(hay[i]!);
  return all;
};
