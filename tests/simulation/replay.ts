/**
 * Lives through one seed of a simulation again: `deno run tests/simulation/replay.ts link 17`.
 *
 * @module
 */
import { simulateLink } from "./link.ts";
import { simulateRun } from "./run.ts";

const simulations = { link: simulateLink, run: simulateRun };

const [name = "", seed = ""] = Deno.args;
const simulate = simulations[name as keyof typeof simulations];
if (simulate === undefined || !/^\d+$/.test(seed)) {
  console.error(`usage: replay.ts ${Object.keys(simulations).join("|")} SEED`);
  Deno.exit(2);
}
const { hash, seen } = await simulate(Number(seed));
console.log(`seed ${seed}: events ${hash.toString(16)}`, Object.fromEntries(seen));
