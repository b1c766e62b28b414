/**
 * Plain state that fibers wait on, as with a condition variable: whoever changes the state says so, and whoever waits
 * looks again.
 *
 * @module
 */
import { Effect } from "effect";

/** The waiters of one piece of state. */
export class Condition {
  readonly #waiting = new Set<() => void>();

  /** Lets everybody who waits look again. Call it once the state is whole: waiters run before this returns. */
  changed(): void {
    for (const wake of [...this.#waiting]) wake();
  }

  /**
   * What `look` finds, as soon as it finds something. It runs in the waiting fiber, so whatever it takes out of the
   * state reaches that fiber; an interrupted waiter has taken nothing.
   */
  until<A, E>(look: () => Effect.Effect<A, E> | undefined): Effect.Effect<A, E> {
    return Effect.suspend(() => look() ?? Effect.andThen(this.#change, this.until(look)));
  }

  readonly #change = Effect.callback<void>((resume) => {
    const wake = () => {
      this.#waiting.delete(wake);
      resume(Effect.void);
    };
    this.#waiting.add(wake);
    return Effect.sync(() => void this.#waiting.delete(wake));
  });
}
