import assert from "node:assert/strict";
import { copyOf, Memory } from "../../plugins/cpu/memory.ts";

Deno.test("memory that came back is lent again, as zeros", () => {
  const memory = new Memory();
  const first = memory.lend();
  const [a, b] = [first.take(5), first.take(5)];
  assert.notEqual(a, b);
  a.fill(1);
  first.end();
  const second = memory.lend();
  const again = [second.take(5), second.take(5)];
  assert.ok(again.includes(a) && again.includes(b));
  assert.deepEqual(a, new Float32Array(5));
  assert.ok(a.buffer instanceof SharedArrayBuffer, "threads must see it");
});

Deno.test("nobody has memory that another one has", () => {
  const memory = new Memory();
  const [first, second] = [memory.lend(), memory.lend()];
  const mine = first.take(5);
  assert.notEqual(second.take(5), mine);
  first.end();
  first.end(); // gives nothing back twice
  const third = memory.lend();
  assert.notEqual(third.take(5), third.take(5));
});

Deno.test("memory at which a thread may still write never comes back", async () => {
  const memory = new Memory();
  const loan = memory.lend();
  const mine = loan.take(5);
  await assert.rejects(loan.within(Promise.reject(new Error("a thread failed"))), /thread failed/);
  loan.end();
  assert.notEqual(memory.lend().take(5), mine);
});

Deno.test("memory of other sizes is not kept for ever", () => {
  const memory = new Memory();
  const loan = memory.lend();
  const small = loan.take(5);
  loan.end();
  memory.lend().take(7);
  assert.notEqual(memory.lend().take(5), small);
});

Deno.test("a copy is nobody else's", () => {
  const array = new Float32Array(new SharedArrayBuffer(12)).fill(2);
  const copy = copyOf(array);
  array.fill(3);
  assert.deepEqual(copy, Float32Array.of(2, 2, 2));
  assert.ok(copy.buffer instanceof ArrayBuffer);
});
