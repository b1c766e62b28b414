/**
 * A device in a Worker of its own: waiting for a GPU blocks the thread that waits, and so does arithmetic, while
 * sockets and fibers must go on. This is the host's side; the Worker's module calls `serveDevice` of
 * `device_worker_guest.ts`.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import { specOf } from "./attention_spec.ts";
import type { Accumulator, BackwardAccumulator, Device, Programs } from "./device.ts";
import type { Answers, Refusal, Reply, Request } from "./device_worker_guest.ts";
import { DeviceFailed, DeviceUnavailable } from "./errors.ts";
import type { KeyValues, Outcome, Queries, Tile } from "./kernel.ts";
import type { Band } from "./mask.ts";
import type { WeightSpec } from "./program.ts";

/** Which Worker to start. */
export interface WorkerSpec {
  /** The plugin's name, as errors and the process list repeat it. */
  readonly name: string;
  /** The module that calls `serveDevice`. */
  readonly url: URL;
  /** Given to the function that opens the kernel; must survive a structured clone. */
  readonly options?: unknown;
  /** Milliseconds that its kernel has to close before the Worker is stopped; that happens at once where it is absent. */
  readonly closing?: number;
}

/** A module may load and yet never serve; drivers take seconds to open, not minutes. */
const openWithin = "60 seconds";

/** An array as it crosses to the Worker: shared memory as it is, anything else as one copy that is given away. */
const crossing = <A extends Uint8Array | Float32Array>(
  array: A,
  transfer: Array<Transferable>,
): A => {
  if (array.buffer instanceof SharedArrayBuffer) return array;
  const copy = array.slice() as A & { readonly buffer: ArrayBuffer };
  transfer.push(copy.buffer);
  return copy;
};

/** A Worker and the requests that it has not answered yet. */
class Guest {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, (reply: Exclude<Reply, { readonly gone: string }>) => void>();
  #nextId = 0;
  #gone: string | undefined;

  constructor({ name, url }: WorkerSpec) {
    this.#worker = new Worker(url, { type: "module", name });
    this.#worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => {
      if ("gone" in data) return this.end(data.gone);
      const resume = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      resume?.(data);
    });
    this.#worker.addEventListener("error", (event) => {
      event.preventDefault(); // or the error would end this process as well
      this.end(`its worker crashed: ${event.message}`);
    });
    this.#worker.addEventListener("messageerror", () => this.end("a reply could not be read"));
  }

  /** Posts a request and gives what takes the reply back. */
  send(
    request: Request,
    transfer: Array<Transferable>,
    resume: (reply: Exclude<Reply, { readonly gone: string }>) => void,
  ): () => void {
    const id = this.#nextId++;
    if (this.#gone !== undefined) {
      resume({ id, refusal: { found: this.#gone } });
      return () => {};
    }
    this.#waiting.set(id, resume);
    try {
      this.#worker.postMessage({ id, request }, transfer);
    } catch (cause) {
      this.#waiting.delete(id);
      resume({ id, refusal: { found: `the request could not be sent: ${cause}` } });
    }
    return () => void this.#waiting.delete(id);
  }

  /**
   * The kernel was closed, or had its time. By the machine's own clock: a scope may end because of an interruption, and
   * while nobody moves that of a test.
   */
  closed(within: number): Effect.Effect<void> {
    return Effect.callback((resume) => {
      const over = Promise.withResolvers<void>();
      // Answered at once where the Worker has gone.
      const forget = this.send({ op: "end" }, [], () => over.resolve());
      const timer = setTimeout(over.resolve, within);
      over.promise.then(() => {
        clearTimeout(timer);
        forget();
        resume(Effect.void);
      });
    });
  }

  /** Stops the Worker; every request that waits, and every later one, is refused for this reason. */
  end(reason: string): void {
    if (this.#gone !== undefined) return;
    this.#gone = reason;
    this.#worker.terminate();
    for (const [id, resume] of this.#waiting) resume({ id, refusal: { found: reason } });
    this.#waiting.clear();
  }

  /** The answer to a request. */
  ask<R extends Request>(
    request: R,
    transfer: Array<Transferable> = [],
  ): Effect.Effect<Answers[R["op"]], Refusal> {
    return Effect.callback((resume) => {
      const forget = this.send(
        request,
        transfer,
        (reply) =>
          resume(
            "refusal" in reply
              ? Effect.fail(reply.refusal)
              : Effect.succeed(reply.answer as Answers[R["op"]]),
          ),
      );
      return Effect.sync(forget);
    });
  }
}

/**
 * Starts a Worker and opens the device that it serves; the scope's end stops it, whatever it is doing. Queries and
 * blocks that lie in a `SharedArrayBuffer` are not copied, so that callers keep them there, and leave them unchanged
 * until the call returns. After a Worker's death every call fails at once.
 */
export const deviceInWorker: (
  spec: WorkerSpec,
) => Effect.Effect<Device["Service"], DeviceUnavailable, Scope.Scope> = Effect.fn("deviceInWorker")(
  function* (spec) {
    const unavailable = ({ needed = "its worker to open it", found }: Refusal) =>
      new DeviceUnavailable({ device: spec.name, needed, found });
    const failed = (attempted: string) => ({ found }: Refusal) =>
      new DeviceFailed({ device: spec.name, attempted, found });

    const guest = yield* Effect.acquireRelease(
      Effect.sync(() => new Guest(spec)),
      (guest) =>
        Effect.ensuring(
          spec.closing === undefined ? Effect.void : guest.closed(spec.closing),
          Effect.sync(() => guest.end("the device was closed")),
        ),
    );
    const info = yield* guest.ask({ op: "open", options: spec.options }).pipe(
      Effect.mapError(unavailable),
      Effect.timeoutOrElse({
        duration: openWithin,
        orElse: () => Effect.fail(unavailable({ found: `no answer within ${openWithin}` })),
      }),
    );

    let nextKey = 0;
    /** An accumulator in the Worker, from the request that begins it to the end of the scope. */
    const beginWith = Effect.fnUntraced(function* (
      attempted: string,
      queries: Queries,
      outcome?: Outcome,
    ) {
      const key = nextKey++;
      // Before the request, so that an interruption between the two leaves nothing behind. The Worker keeps the
      // order, and nobody waits: a device that hangs must not hang the scope.
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => void guest.send({ op: "close", key }, [], () => {}))
      );
      const transfer: Array<Transferable> = [];
      // Functions do not cross; the Worker loads their files itself.
      const { attention, latent, ...rest } = queries;
      const placed = {
        ...rest,
        bytes: crossing(queries.bytes, transfer),
        ...(latent === undefined
          ? {}
          : { latent: { ...latent, up: crossing(latent.up, transfer) } }),
      };
      const asked = attention === undefined ? {} : { attention: specOf(attention) };
      const request: Request = outcome === undefined
        ? { op: "begin", key, queries: placed, ...asked }
        : {
          op: "beginBackward",
          key,
          queries: placed,
          ...asked,
          outcome: {
            o: crossing(outcome.o, transfer),
            lse: crossing(outcome.lse, transfer),
            cotangent: crossing(outcome.cotangent, transfer),
          },
        };
      yield* guest.ask(request, transfer).pipe(Effect.mapError(failed(attempted)));

      // Half a block may have been added when an absorb fails or is interrupted.
      let spoiled = false;
      const partial = { found: "an earlier block may have been added in part" };
      const absorb = (block: KeyValues, tiles: ReadonlyArray<Tile>, band: Band) =>
        Effect.suspend(() => {
          const attempted = `absorb a block of ${block.tokens} tokens`;
          if (spoiled) return Effect.fail(failed(attempted)(partial));
          const transfer: Array<Transferable> = [];
          const placed = { ...block, bytes: crossing(block.bytes, transfer) };
          return guest.ask({ op: "absorb", key, block: placed, tiles, band }, transfer).pipe(
            Effect.mapError(failed(attempted)),
            Effect.onError(() => Effect.sync(() => void (spoiled = true))),
          );
        });
      const finish = Effect.suspend(() =>
        spoiled ? Effect.fail(partial) : guest.ask({ op: "finish", key })
      ).pipe(Effect.mapError(failed("give the result back")));
      return { absorb, finish };
    });

    // What the Worker answers depends on how the accumulator began.
    const begin = (queries: Queries) =>
      Effect.map(
        beginWith("begin an accumulator", queries),
        (opened) => opened as Accumulator,
      );
    const beginBackward = (queries: Queries, outcome: Outcome) =>
      Effect.map(
        beginWith("begin a backward pass", queries, outcome),
        (opened) => opened as BackwardAccumulator,
      );
    const programs = Effect.fnUntraced(function* (weights: ReadonlyArray<WeightSpec>) {
      const key = nextKey++;
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => void guest.send({ op: "close", key }, [], () => {}))
      );
      yield* guest.ask({ op: "beginPrograms", key, weights }).pipe(
        Effect.mapError(failed("make room for a model")),
      );
      return {
        fill: (weight, first, dtype, bytes) =>
          Effect.suspend(() => {
            const transfer: Array<Transferable> = [];
            const placed = crossing(bytes, transfer);
            return guest.ask({ op: "fill", key, weight, first, dtype, bytes: placed }, transfer);
          }).pipe(Effect.mapError(failed(`fill weight "${weight}"`))),
        run: (program) =>
          guest.ask({ op: "run", key, program }).pipe(
            Effect.mapError(failed("run a program of a model")),
          ),
      } satisfies Programs;
    });
    return { info, begin, programs, ...(info.gradients ? { beginBackward } : {}) };
  },
);
