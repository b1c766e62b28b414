import fc from "fast-check";
import assert from "node:assert/strict";
import { lseOf, mergeLse } from "../../runtime/lse.ts";

/** Log-sum-exps near and far, and that of nothing. */
const lse = fc.oneof(
  fc.constantFrom(-Infinity, 0, 100, -100, 6e4, -6e4, 1e30, -1e30),
  fc.double({ min: -200, max: 200, noNaN: true }),
);

/** Equal, or apart by no more than float64 rounds; how much depends on the size of what is added up. */
const near = (a: number, b: number, size: number): boolean =>
  a === b || Math.abs(a - b) <= 1e-14 * Math.max(1, Math.abs(size));

Deno.test("mergeLse() adds up what was exponentiated", () => {
  const small = fc.double({ min: -300, max: 300, noNaN: true });
  fc.assert(fc.property(small, small, (a, b) => {
    const { lse, weight } = mergeLse(a, b);
    const sum = Math.exp(a) + Math.exp(b);
    assert.ok(near(lse, Math.log(sum), Math.max(Math.abs(a), Math.abs(b))));
    assert.ok(Math.abs(weight - Math.exp(b) / sum) <= 1e-13);
  }));
});

Deno.test("mergeLse() has the empty set as its identity", () => {
  fc.assert(fc.property(lse, (a) => {
    assert.deepEqual(mergeLse(a, -Infinity), { lse: a, weight: 0 });
    if (a !== -Infinity) assert.deepEqual(mergeLse(-Infinity, a), { lse: a, weight: 1 });
  }));
});

Deno.test("mergeLse() is commutative, and the two weights add up to 1", () => {
  fc.assert(fc.property(lse, lse, (a, b) => {
    const [ab, ba] = [mergeLse(a, b), mergeLse(b, a)];
    assert.equal(ab.lse, ba.lse);
    assert.ok(ab.weight >= 0 && ab.weight <= 1);
    if (a !== -Infinity || b !== -Infinity) {
      assert.ok(Math.abs(ab.weight + ba.weight - 1) <= 2 ** -52);
    }
  }));
});

Deno.test("mergeLse() is associative, in the lse and in the merged value", () => {
  const value = fc.double({ min: -10, max: 10, noNaN: true });
  const part = fc.record({ lse, value });
  const merge = (a: { lse: number; value: number }, b: { lse: number; value: number }) => {
    const { lse, weight } = mergeLse(a.lse, b.lse);
    return { lse, value: a.value * (1 - weight) + b.value * weight };
  };
  fc.assert(fc.property(part, part, part, (a, b, c) => {
    const [left, right] = [merge(merge(a, b), c), merge(a, merge(b, c))];
    const size = Math.max(...[a, b, c].map((x) => x.lse === -Infinity ? 0 : Math.abs(x.lse)));
    assert.ok(near(left.lse, right.lse, size));
    // Where the lse is large, its rounding is what the weights lose.
    if (size <= 1e5 && left.lse !== -Infinity) {
      assert.ok(Math.abs(left.value - right.value) <= 1e-13 * Math.max(100, size));
    }
  }));
});

Deno.test("lseOf() is −∞ for a row that saw nothing, whatever its running maximum", () => {
  for (const m of [-Infinity, -3.4e38, 0, 5]) assert.equal(lseOf(m, 0), -Infinity);
  assert.equal(lseOf(-3.4e38, 7), -3.4e38);
  assert.equal(lseOf(2, Math.E), 3);
});
