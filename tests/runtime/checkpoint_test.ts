import { Effect } from "effect";
import { checkpointCases } from "../contract/checkpoints.ts";

for (const { name, run } of checkpointCases) Deno.test(name, () => Effect.runPromise(run));
