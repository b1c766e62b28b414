/**
 * `annulus resume`: goes on with a run that was told to keep checkpoints.
 *
 * @module
 */
import { resolve } from "node:path";
import { Effect } from "effect";
import { runAttend } from "./attend_command.ts";
import { readRun } from "./saved_run.ts";

/** Does what is left of the run in a folder, as it was told then. */
export const runResume = Effect.fn("runResume")(function* (
  { folder, nats, json }: {
    readonly folder: string;
    readonly nats: string | undefined;
    readonly json: boolean;
  },
) {
  const path = resolve(folder); // which is removed in the end, from wherever
  const went = yield* readRun(path);
  const { args, ring } = went;
  yield* runAttend({ ...args, checkpoint: path, ring, nats: nats ?? args.nats, json }, went);
});
