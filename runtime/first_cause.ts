/**
 * What ends a run is often only what came of its first failure, which its sentence then tells as well.
 *
 * @module
 */
import { LinkClosed, LinkFailed, RankFailed, ServerUnavailable } from "./errors.ts";

/** The same failure, and in its sentence what the run's troubles began with, unless that is told already. */
export const beganWith = <E extends { readonly message: string }>(
  error: E,
  first: string,
): E | LinkClosed | LinkFailed | RankFailed | ServerUnavailable => {
  if (error.message.includes(first)) return error;
  const told = (last: string) => `${last}; it began with: ${first}`;
  if (error instanceof RankFailed) {
    const { rank, node, tag, reason } = error;
    return new RankFailed({ rank, node, tag, reason: told(reason) });
  }
  if (error instanceof LinkClosed) {
    const { run, self, peer, done, reason } = error;
    return new LinkClosed({ run, self, peer, done, reason: told(reason) });
  }
  if (error instanceof LinkFailed) {
    const { run, self, peer, needed, found } = error;
    return new LinkFailed({ run, self, peer, needed, found: told(found) });
  }
  if (error instanceof ServerUnavailable) {
    const { url, needed, found } = error;
    return new ServerUnavailable({ url, needed, found: told(found) });
  }
  return error;
};
