/**
 * A process of which one fiber waits many times, and prints by how many bytes its heap has grown: with the command's modules
 * loaded, or with Effect alone.
 *
 * @module
 */
if (Deno.args[0] === "command") await import("../../cli/main.ts");
const { Effect } = await import("effect");
const collect = (globalThis as unknown as { readonly gc: () => void }).gc;

const used = (): number => {
  collect();
  return Deno.memoryUsage().heapUsed;
};

/** As a loop does that lives as long as its process. */
const waits = Effect.forEach(Array(20_000), () => Effect.yieldNow, { discard: true });

await Effect.runPromise(Effect.gen(function* () {
  yield* waits;
  const before = used();
  yield* waits;
  console.log(used() - before);
}));
