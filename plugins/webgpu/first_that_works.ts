/**
 * Choices in order, best first: one that does not compile or computes wrongly makes way for the next, for good.
 *
 * @module
 */
import type { Gpu } from "./gpu.ts";

/** Remembers, for each kind of problem, how many choices were dropped. */
export class FirstThatWorks<C> {
  readonly #gpu: Gpu;
  readonly #nameOf: (choice: C) => string;
  readonly #warn: (sentence: string) => void;
  readonly #dropped = new Map<string, number>();

  /** @param warn Hears of each choice that is dropped. */
  constructor(gpu: Gpu, nameOf: (choice: C) => string, warn: (sentence: string) => void) {
    this.#gpu = gpu;
    this.#nameOf = nameOf;
    this.#warn = warn;
  }

  /** What `attempt` gives for the first choice that it takes. Rejects where it takes none, with its last reason. */
  async find<A>(
    problem: string,
    choices: ReadonlyArray<C>,
    attempt: (choice: C) => Promise<A>,
  ): Promise<A> {
    for (;;) {
      const dropped = this.#dropped.get(problem) ?? 0;
      const [choice, next] = choices.slice(dropped);
      try {
        return await attempt(choice!);
      } catch (cause) {
        this.#gpu.throwFault(); // which is no merit of another choice
        if (next === undefined) throw cause;
        // Two calls that wait for the same one drop it once.
        if ((this.#dropped.get(problem) ?? 0) > dropped) continue;
        this.#dropped.set(problem, dropped + 1);
        const reason = cause instanceof Error ? cause.message : String(cause);
        this.#warn(
          `${this.#nameOf(choice!)} is not used for ${problem}, but ${
            this.#nameOf(next)
          }: ${reason}`,
        );
      }
    }
  }
}
