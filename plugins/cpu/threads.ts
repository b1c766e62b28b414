/**
 * The threads of a device, as its own thread sees them: they compute, it answers messages.
 *
 * @module
 */
import type { AttentionSpec } from "../../runtime/attention_spec.ts";
import { Control } from "./control.ts";
import { itemsOf, type Job } from "./job.ts";
import type { Opening, Order, Report } from "./thread.ts";

/** Workers that share every job. */
export class Threads {
  readonly #workers: ReadonlyArray<Worker>;
  readonly #running = new Map<number, PromiseWithResolvers<void>>();
  #nextId = 0;
  #last: { readonly words: Int32Array; readonly items: number } | undefined;
  #gone: Error | undefined;

  private constructor(count: number) {
    this.#workers = Array.from(
      { length: count },
      (_, i) =>
        new Worker(new URL("./thread.ts", import.meta.url), {
          type: "module",
          name: `cpu thread ${i}`,
        }),
    );
  }

  /** Starts the threads and opens the library in each; gives its description. */
  static async open(
    count: number,
    opening: Opening,
  ): Promise<{ readonly threads: Threads; readonly description: string }> {
    const threads = new Threads(count);
    try {
      const opened = await Promise.all(
        threads.#workers.map((worker) =>
          new Promise<string>((resolve, reject) => {
            worker.addEventListener("message", ({ data }: MessageEvent<Report>) => {
              if ("opened" in data) resolve(data.opened);
              else if ("unavailable" in data) reject(new Error(data.unavailable));
              else threads.#ended(data);
            });
            worker.addEventListener("error", (event) => {
              event.preventDefault();
              threads.close(`a thread crashed: ${event.message}`);
              reject(new Error(event.message));
            });
            worker.postMessage({ open: opening } satisfies Order);
          })
        ),
      );
      return { threads, description: opened[0]! };
    } catch (cause) {
      threads.close();
      throw cause;
    }
  }

  #ended({ id, failure }: Extract<Report, { readonly id: number }>): void {
    const running = this.#running.get(id);
    this.#running.delete(id);
    if (failure === undefined) running?.resolve();
    else running?.reject(new Error(failure));
  }

  /** Returns when all items are done. Jobs are done in the order of the calls, one after the other. */
  run(job: Job): Promise<void> {
    if (this.#gone !== undefined) return Promise.reject(this.#gone);
    const items = itemsOf(job);
    if (items === 0) return Promise.resolve();
    const id = this.#nextId++;
    const running = Promise.withResolvers<void>();
    this.#running.set(id, running);
    const words = Control.words();
    const order: Order = { id, job, words, before: this.#last };
    this.#last = { words, items };
    for (const worker of this.#workers) worker.postMessage(order);
    return running.promise;
  }

  /** Lets jobs name an attention by the number that this gives. */
  learn(spec: AttentionSpec): number {
    const attention = this.#nextId++;
    for (const worker of this.#workers) worker.postMessage({ attention, spec } satisfies Order);
    return attention;
  }

  /** No job will name it again. */
  forget(attention: number): void {
    for (const worker of this.#workers) worker.postMessage({ forget: attention } satisfies Order);
  }

  /** Ends the threads; every job that runs, and every later one, is refused for this reason. */
  close(reason = "the threads were ended"): void {
    if (this.#gone !== undefined) return;
    this.#gone = new Error(reason);
    for (const worker of this.#workers) worker.terminate();
    for (const { reject } of this.#running.values()) reject(this.#gone);
    this.#running.clear();
  }
}
