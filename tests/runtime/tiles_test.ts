import fc from "fast-check";
import assert from "node:assert/strict";
import {
  blocks,
  causal,
  documents,
  prefix,
  sinkWindow,
  strided,
  window,
} from "../../plugins/attention.ts";
import { allows } from "../../runtime/mask.ts";
import { contiguous, positionAt, type Span } from "../../runtime/span.ts";
import { Asking, tilesOf } from "../../runtime/tiles.ts";
import type { Variant } from "../../runtime/variant.ts";
import { resolved } from "../support/masks.ts";
import { spans } from "../support/spans.ts";

const shape = (tokens: number) => ({ batch: 1, tokens, heads: 1, kvHeads: 1, headDim: 4 });

/** Every pair that counts is in exactly one rectangle, which says rightly whether it must be asked about. */
const assertExact = (
  attention: ReadonlyArray<Variant>,
  tokens: number,
  shard: ReadonlyArray<Span>,
  keys: Span,
  asking = new Asking(),
): void => {
  const all = resolved(attention, shape(tokens));
  const { tiles, pairs } = tilesOf(all, asking, shard, keys);
  const rows = shard.flatMap((span) =>
    Array.from({ length: span.count }, (_, i) => positionAt(span, i))
  );
  const times = new Uint8Array(rows.length * keys.count);
  for (const { row, queries, column, keys: columns, full, pairwise = false } of tiles) {
    for (let i = 0; i < queries.count; i++) {
      for (let j = 0; j < columns.count; j++) {
        const [q, k] = [positionAt(queries, i), positionAt(columns, j)];
        assert.equal(q, rows[row + i]);
        assert.equal(k, positionAt(keys, column + j));
        const [band, counts] = [allows(all.band, q, k), all.sees(0, 0, q, k)];
        // What a kernel finds: all of a full one, what the band says, or what the mask says as well.
        const found = full || band && (!pairwise || counts);
        assert.equal(found, counts, `query ${q}, key ${k}`);
        if (counts) times[(row + i) * keys.count + column + j]!++;
      }
    }
  }
  let counted = 0;
  rows.forEach((q, i) => {
    for (let j = 0; j < keys.count; j++) {
      const counts = all.sees(0, 0, q, positionAt(keys, j));
      if (counts) counted++;
      assert.equal(
        times[i * keys.count + j],
        Number(counts),
        `query ${q}, key ${positionAt(keys, j)}`,
      );
    }
  });
  if (asking.exhausted) assert.ok(pairs >= counted);
  else assert.equal(pairs, counted);
};

/** Nothing is left of the pairs that may be asked for. */
const exhausted = (): Asking => {
  const asking = new Asking();
  asking.take(Infinity);
  return asking;
};

const tokens = 400;
const attentions: ReadonlyArray<ReadonlyArray<Variant>> = [
  [documents({ cu_seqlens: [0, 3, 3, 130, 190, 191, 400] })],
  [documents({ cu_seqlens: [0, 200, 400] }), causal()],
  [prefix({ length: 90 })],
  [sinkWindow({ first: 5, size: 70 })],
  [strided({ local: 9, stride: 16 }), window({ size: 200 })],
  [blocks({ size: 100, table: [1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1] })],
];

Deno.test("tilesOf() has each pair that counts once, and says which must be asked about", () => {
  const within = (span: Span) => span.count === 0 || positionAt(span, span.count - 1) < tokens;
  const property = fc.property(
    fc.constantFrom(...attentions),
    fc.array(spans.filter(within), { minLength: 1, maxLength: 2 }),
    spans.filter(within),
    fc.boolean(),
    (attention, shard, keys, spent) =>
      assertExact(
        attention,
        tokens,
        shard.filter(({ count }) => count > 0),
        keys,
        spent ? exhausted() : new Asking(),
      ),
  );
  fc.assert(property, { numRuns: 300 });
  for (const attention of attentions) {
    assertExact(attention, tokens, [contiguous(0, 1)], contiguous(0, 0));
    assertExact(
      attention,
      tokens,
      [contiguous(0, 150), contiguous(260, 140)],
      contiguous(0, tokens),
    );
  }
});

Deno.test("tilesOf() of a long shard has fewer and taller rectangles, and is as exact", () => {
  const long = 4500;
  const attention = [sinkWindow({ first: 5, size: 300 })];
  const [rows, keys] = [[contiguous(0, long)], contiguous(1000, 700)];
  assertExact(attention, long, rows, keys);
  const count = (shard: ReadonlyArray<Span>) =>
    tilesOf(resolved(attention, shape(long)), new Asking(), shard, keys).tiles.length;
  assert.ok(count(rows) < count([contiguous(0, 2250), contiguous(2250, 2250)]));
});

Deno.test("tilesOf() that may not count pairs cuts where that makes a difference, and nowhere else", () => {
  const long = 65_536, all = contiguous(0, long);
  const of = (...attention: ReadonlyArray<Variant>) =>
    tilesOf(resolved(attention, shape(long)), exhausted(), [all], all);
  const window = 4096 * long - 4096 * 4095 / 2;
  const near = of(sinkWindow({ first: 4, size: 4096 })).pairs / window;
  assert.ok(near >= 1 && near < 1.15, `${near} times the pairs of the window`);
  assert.ok(of(strided({ local: 9, stride: 16 })).tiles.length < 2000);
});

Deno.test("tilesOf() finds a mask out that differs between two heads and says that it does not", () => {
  const twoHeads = { ...shape(64), heads: 2 };
  const mask = () => (_b: number, h: number, q: number, k: number) => h === 0 || (q - k) % 2 === 0;
  const lying = { definition: { name: "parity", contract: 1, module: "none", mask }, params: {} };
  assert.throws(
    () =>
      tilesOf(resolved([lying], twoHeads), new Asking(), [contiguous(0, 64)], contiguous(0, 64)),
    /attention "parity": it needs perHead where .* of batch entry 0, head 1, query \d+, key \d+/,
  );
});
