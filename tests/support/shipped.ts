/**
 * Every shipped variant with parameters for a shape, and beside it the rule that it must be, written once more and
 * independently.
 *
 * @module
 */
import type { Rules } from "../../kernels/oracle.ts";
import {
  alibi,
  alibiSlopes,
  bidirectional,
  blocks,
  causal,
  chunked,
  dilated,
  documents,
  logN,
  prefix,
  sinks,
  sinkWindow,
  softcap,
  strided,
  temperature,
  window,
} from "../../plugins/attention.ts";
import type { Shape, Variant } from "../../runtime/variant.ts";
import { uniform } from "./random.ts";

/** Variants and what they mean. */
export interface Shipped {
  readonly name: string;
  readonly attention: ReadonlyArray<Variant>;
  readonly rules: Rules;
}

/** A table of blocks in which most are empty, and no row of which is. */
const tableOf = (n: number): ReadonlyArray<number> => {
  const random = uniform(5);
  return Array.from(
    { length: n * n },
    (_, i) => Number(random() < 0.3 || i % n === Math.floor(i / n)),
  );
};

/** Bounds of documents of many lengths, some of them empty. */
export const boundsOf = (tokens: number): ReadonlyArray<number> => {
  const share = (part: number) => Math.floor(part * tokens);
  return [0, 1, 1, share(0.3), share(0.45), share(0.45) + 2, share(0.9), tokens, tokens];
};

const before = (q: number, k: number) => k <= q;

/** All variants, and some that compose. */
export const shipped = ({ tokens, heads }: Shape): ReadonlyArray<Shipped> => {
  const bounds = boundsOf(tokens);
  const documentOf = (token: number) => bounds.findLastIndex((bound) => bound <= token);
  const together = (q: number, k: number) => documentOf(q) === documentOf(k);
  const size = 10, n = Math.ceil(tokens / size), table = tableOf(n);
  const slopes = alibiSlopes(heads);
  const logits = Array.from({ length: heads }, (_, h) => Math.sin(h) * 2 + 1);
  const temperatures = Array.from({ length: heads }, (_, h) => 0.5 + h / 3);
  const sees = (rule: (q: number, k: number) => boolean): Rules => ({
    sees: (_b, _h, q, k) => rule(q, k),
  });
  const cap: Pick<Rules, "score" | "slope"> = {
    score: (s) => 3 * Math.tanh(s / 3),
    slope: (s) => 1 / Math.cosh(s / 3) ** 2,
  };
  const distant: Pick<Rules, "score" | "slope"> = {
    score: (s, _b, h, q, k) => s - slopes[h]! * Math.abs(q - k),
    slope: () => 1,
  };
  const sharp: Pick<Rules, "score" | "slope"> = {
    score: (s, _b, h) => s / temperatures[h]!,
    slope: (_s, _b, h) => 1 / temperatures[h]!,
  };
  const grown = (q: number) => Math.max(1, Math.log(q + 1) / Math.log(20));
  const all = sees(() => true), past = sees(before);
  return [
    // Most of what can go wrong goes wrong in these.
    {
      // Its second softcap is of scores that have been changed twice.
      name: "softcap & temperature & softcap",
      attention: [softcap({ cap: 3 }), temperature({ temperatures }), softcap({ cap: 2 })],
      rules: {
        ...all,
        score: (s, _b, h) => 2 * Math.tanh(3 * Math.tanh(s / 3) / temperatures[h]! / 2),
        slope: (s, _b, h) =>
          1 / Math.cosh(3 * Math.tanh(s / 3) / temperatures[h]! / 2) ** 2 / temperatures[h]! /
          Math.cosh(s / 3) ** 2,
      },
    },
    {
      name: "temperature & softcap & alibi & documents & sinks",
      attention: [
        temperature({ temperatures }),
        softcap({ cap: 3 }),
        alibi({ slopes }),
        documents({ cu_seqlens: bounds }),
        sinks({ logits }),
      ],
      rules: {
        ...sees(together),
        score: (s, _b, h, q, k) =>
          3 * Math.tanh(s / temperatures[h]! / 3) - slopes[h]! * Math.abs(q - k),
        slope: (s, _b, h) => 1 / Math.cosh(s / temperatures[h]! / 3) ** 2 / temperatures[h]!,
        sink: (h) => logits[h]!,
      },
    },
    {
      name: "causal & window & documents",
      attention: [causal(), window({ size: 21 }), documents({ cu_seqlens: bounds })],
      rules: sees((q, k) => before(q, k) && k > q - 21 && together(q, k)),
    },
    {
      name: "strided & documents",
      attention: [strided({ local: 4, stride: 7 }), documents({ cu_seqlens: bounds })],
      rules: sees((q, k) => before(q, k) && (k > q - 4 || k % 7 === q % 7) && together(q, k)),
    },
    { name: "bidirectional", attention: [bidirectional()], rules: all },
    { name: "causal", attention: [causal()], rules: past },
    {
      name: "window",
      attention: [window({ size: 17 })],
      rules: sees((q, k) => before(q, k) && k > q - 17),
    },
    {
      name: "a window longer than the sequence",
      attention: [window({ size: 5 * tokens })],
      rules: past,
    },
    {
      name: "prefix",
      attention: [prefix({ length: Math.ceil(tokens / 3) })],
      rules: sees((q, k) => before(q, k) || k < Math.ceil(tokens / 3)),
    },
    { name: "documents", attention: [documents({ cu_seqlens: bounds })], rules: sees(together) },
    {
      name: "chunked & causal",
      attention: [chunked({ size: 23 }), causal()],
      rules: sees((q, k) => before(q, k) && q - q % 23 === k - k % 23),
    },
    {
      name: "blocks",
      attention: [blocks({ size, table })],
      rules: sees((q, k) => table[(q - q % size) / size * n + (k - k % size) / size]! > 0),
    },
    {
      name: "strided",
      attention: [strided({ local: 4, stride: 7 })],
      rules: sees((q, k) => before(q, k) && (k > q - 4 || k % 7 === q % 7)),
    },
    {
      name: "dilated",
      attention: [dilated({ size: 6, step: 5 })],
      rules: sees((q, k) => [0, 5, 10, 15, 20, 25].includes(q - k)),
    },
    {
      name: "sink-window",
      attention: [sinkWindow({ first: 3, size: 12 })],
      rules: sees((q, k) => before(q, k) && ([0, 1, 2].includes(k) || q < k + 12)),
    },
    {
      name: "alibi & causal",
      attention: [alibi({ slopes }), causal()],
      rules: { ...past, ...distant },
    },
    { name: "softcap", attention: [softcap({ cap: 3 })], rules: { ...all, ...cap } },
    {
      // So that nothing is capped, and only causal makes a difference.
      name: "softcap of a large cap & causal",
      attention: [softcap({ cap: 1e4 }), causal()],
      rules: { ...past, score: (s) => 1e4 * Math.tanh(s / 1e4), slope: () => 1 },
    },
    {
      name: "sinks & causal",
      attention: [sinks({ logits }), causal()],
      rules: { ...past, sink: (h) => logits[h]! },
    },
    {
      name: "temperature & causal",
      attention: [temperature({ temperatures }), causal()],
      rules: { ...past, ...sharp },
    },
    {
      name: "log-n & causal",
      attention: [logN({ trained: 20 }), causal()],
      rules: {
        ...past,
        score: (s, _b, _h, q) => s * grown(q),
        slope: (_s, _b, _h, q) => grown(q),
      },
    },
  ];
};
