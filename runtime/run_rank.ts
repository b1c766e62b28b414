/**
 * One rank of whatever work there is.
 *
 * @module
 */
import { Effect } from "effect";
import { inferRank } from "./decoder_rank.ts";
import { Device } from "./device.ts";
import { DeviceFailed } from "./errors.ts";
import { isInference, type Work } from "./job.ts";
import type { Links } from "./link.ts";
import { attendRank, type Observer, type RankError } from "./rank.ts";
import type { Tenure } from "./tenure.ts";

/**
 * Computes one rank's part on this process's device, or of what an earlier epoch left of it. The links stay open after
 * the result has reached the driver, until the driver closes its own.
 */
export const runRank = (
  work: Work,
  tenure: Tenure,
  observer: Observer,
): Effect.Effect<void, RankError, Device | Links> =>
  Effect.gen(function* () {
    if (isInference(work)) yield* inferRank(work, tenure.rank, observer);
    else yield* attendRank(work, tenure, observer);
  }).pipe(
    // As good as a device that failed; its links tell nobody before this is told.
    Effect.catchDefect((defect) =>
      Effect.flatMap(
        Device,
        ({ info }) =>
          Effect.fail(
            new DeviceFailed({
              ...{ device: info.name, attempted: "compute a rank", found: String(defect) },
            }),
          ),
      )
    ),
    Effect.tapError(observer.failed),
    Effect.scoped,
  );
