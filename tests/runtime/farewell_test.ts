import { Cause, Exit } from "effect";
import assert from "node:assert/strict";
import { LinkClosed } from "../../runtime/errors.ts";
import { farewellOf } from "../../runtime/farewell.ts";

Deno.test("farewellOf() gives the sentence of whatever ended the scope", () => {
  assert.deepEqual(farewellOf(Exit.succeed(3)), { done: true, reason: "the peer is done" });
  const failed = (exit: Exit.Exit<unknown, unknown>) => {
    const { done, reason } = farewellOf(exit);
    assert.equal(done, false);
    return reason;
  };
  assert.equal(failed(Exit.fail(new Error("no memory"))), "no memory");
  assert.equal(failed(Exit.die(new TypeError("not a function"))), "not a function");
  assert.equal(failed(Exit.fail("words")), "words");
  assert.equal(failed(Exit.interrupt(1)), "the run was interrupted");
  const both = Cause.combine(Cause.interrupt(1), Cause.fail(new Error("no memory")));
  assert.equal(failed(Exit.failCause(both)), "no memory");
});

Deno.test("farewellOf() passes the first cause on around a ring, and bounds it", () => {
  let reason = "no memory";
  for (let rank = 63; rank >= 60; rank--) {
    const [self, peer] = [String(rank - 1), String(rank)];
    const error = new LinkClosed({ run: "r", self, peer, done: false, reason });
    reason = farewellOf(Exit.fail(error)).reason;
  }
  assert.equal(reason, "60 left: 61 left: 62 left: 63 left: no memory");
  assert.equal(farewellOf(Exit.fail(new Error("x".repeat(9999)))).reason.length, 1000);
});
