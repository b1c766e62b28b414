/**
 * The Worker's side of a device: runs an attention kernel for the thread that started the Worker. The other side is
 * `device_worker.ts`.
 *
 * @module
 */
import type { AttentionSpec } from "./attention_spec.ts";
import type { BlockGradients } from "./device.ts";
import { assertBlock, assertOutcome, assertQueries, type Shape } from "./fits.ts";
import type {
  Accumulation,
  Attended,
  AttentionKernel,
  BackwardPass,
  DeviceInfo,
  KeyValues,
  Outcome,
  Queries,
  Tile,
} from "./kernel.ts";
import type { DType } from "./dtype.ts";
import { withLatents } from "./latent_kernel.ts";
import type { Band } from "./mask.ts";
import type { Program, ProgramKernel, WeightSpec } from "./program.ts";
import { hostPrograms } from "./program_kernel.ts";

/** What the host asks for. `key` names an accumulator, forward or backward, or a model, and is the host's choice. */
export type Request =
  | { readonly op: "open"; readonly options: unknown }
  | {
    readonly op: "begin";
    readonly key: number;
    readonly queries: Queries;
    readonly attention?: AttentionSpec;
  }
  | {
    readonly op: "beginBackward";
    readonly key: number;
    readonly queries: Queries;
    readonly attention?: AttentionSpec;
    readonly outcome: Outcome;
  }
  | {
    readonly op: "absorb";
    readonly key: number;
    readonly block: KeyValues;
    readonly tiles: ReadonlyArray<Tile>;
    readonly band: Band;
  }
  | { readonly op: "finish"; readonly key: number }
  | {
    readonly op: "beginPrograms";
    readonly key: number;
    readonly weights: ReadonlyArray<WeightSpec>;
  }
  | {
    readonly op: "fill";
    readonly key: number;
    readonly weight: string;
    readonly first: number;
    readonly dtype: DType;
    readonly bytes: Uint8Array;
  }
  | { readonly op: "run"; readonly key: number; readonly program: Program }
  | { readonly op: "close"; readonly key: number }
  | { readonly op: "end" };

/** What each request is answered with. */
export interface Answers {
  readonly open: DeviceInfo;
  readonly begin: void;
  readonly beginBackward: void;
  /** Milliseconds for which the device was busy, and gradients of a backward pass. */
  readonly absorb: number | BlockGradients;
  /** The result, or dq of a backward pass. */
  readonly finish: Attended | Float32Array;
  readonly beginPrograms: void;
  readonly fill: void;
  readonly run: ReadonlyArray<Float32Array>;
  readonly close: void;
  readonly end: void;
}

/** Why a request was not answered; `needed` when the kernel said what would have helped. */
export interface Refusal {
  readonly needed?: string;
  readonly found: string;
}

/** What the guest posts: one reply for each request, in order, or that it will answer no more. */
export type Reply =
  | { readonly id: number; readonly answer: Answers[keyof Answers] }
  | { readonly id: number; readonly refusal: Refusal }
  | { readonly gone: string };

/** Thrown by a kernel that cannot run here, as it opens; becomes `DeviceUnavailable` on the other side. */
export class Unavailable extends Error {
  readonly needed: string;
  readonly found: string;
  constructor({ needed, found }: { readonly needed: string; readonly found: string }) {
    super(`needs ${needed}: found ${found}`);
    this.needed = needed;
    this.found = found;
  }
}

const refusalOf = (cause: unknown): Refusal => {
  if (cause instanceof Unavailable) return { needed: cause.needed, found: cause.found };
  return { found: cause instanceof Error ? cause.message || cause.name : String(cause) };
};

/** An accumulation and its calls of `absorb` that are not over. */
interface Open {
  readonly shape: Shape;
  readonly of: Accumulation | BackwardPass;
  readonly absorbing: Set<Promise<unknown>>;
  /** Its result was given, after which nothing promises that it still holds it. */
  finished: boolean;
}

/** Memory of the arrays in an answer that can be given away instead of copied. */
const memoryOf = (answer: Answers[keyof Answers]): Array<Transferable> => {
  if (typeof answer !== "object") return [];
  const arrays = answer instanceof Float32Array ? [answer] : Object.values(answer);
  const buffers = arrays.filter((x) => x instanceof Float32Array).map(({ buffer }) => buffer);
  return [...new Set(buffers)].filter((buffer) => buffer instanceof ArrayBuffer);
};

/**
 * Serves the kernel that `open` makes, called once with the host's options. Call it while the Worker's module loads.
 * Requests are handled one after another, but one call of `absorb` per accumulation need not be over when the next
 * request is handled. The arrays that a kernel gives are transferred, so that it must not use them again.
 *
 * @param ended Called when a kernel was closed and nothing here refers to it any more.
 */
export const serveDevice = (
  open: (options: unknown) => Promise<AttentionKernel>,
  ended: () => void = () => {},
): void => {
  const scope = self as unknown as DedicatedWorkerGlobalScope;
  const accumulations = new Map<number, Open>();
  const models = new Map<number, ProgramKernel>();
  let kernel: AttentionKernel | undefined; // there is one before the host asks for anything else

  const add = (key: number, queries: Queries, of: Open["of"]): void => {
    const { bytes: _, ...shape } = queries; // the device has them
    accumulations.set(key, { shape, of, absorbing: new Set(), finished: false });
  };
  const openOf = (key: number): Open => {
    const found = accumulations.get(key);
    if (found === undefined) throw new Error("its accumulator was closed before");
    return found;
  };
  const modelOf = (key: number): ProgramKernel => {
    const found = models.get(key);
    if (found === undefined) throw new Error("its model was closed before");
    return found;
  };
  const settled = (key: number) => Promise.allSettled(accumulations.get(key)?.absorbing ?? []);

  /** The queries with the attention that the host could not send. */
  const whole = async (
    { queries, attention }: Extract<Request, { readonly op: "begin" | "beginBackward" }>,
  ): Promise<Queries> => {
    if (attention === undefined) return queries;
    // Only now, since it takes a tenth of a second.
    const { loadAttention } = await import("./attention_files.ts");
    return { ...queries, attention: await loadAttention(attention) };
  };

  /** A variant's own function may have thrown: whoever reads that should know which. */
  const asked = async <A>({ attention }: Shape, work: () => Promise<A>): Promise<A> => {
    try {
      return await work();
    } catch (cause) {
      if (attention === undefined || !(cause instanceof Error)) throw cause;
      const names = attention.specs.map(({ name }) => `"${name}"`).join(" and ");
      if (cause.message.startsWith("attention ")) throw cause;
      throw new Error(`${cause.message}; its queries came with attention ${names}`);
    }
  };

  const endKernel = async (): Promise<void> => {
    for (const key of [...accumulations.keys()]) await settled(key);
    const open = [...models.values(), ...Array.from(accumulations.values(), ({ of }) => of)];
    models.clear();
    accumulations.clear();
    const last = kernel;
    kernel = undefined;
    try {
      for (const each of open) each.close();
    } finally {
      await last?.close?.();
    }
  };

  let lastEnd = 0;
  const absorb = async (
    { shape, of }: Open,
    { block, tiles, band }: Extract<Request, { readonly op: "absorb" }>,
  ): Promise<number | BlockGradients> => {
    assertBlock(shape, block, tiles, band);
    const began = performance.now();
    const gradients = await asked(shape, async () => await of.absorb(block, tiles, band));
    // Two calls at once share the device: what the other one kept it busy with is not ours.
    const busy = performance.now() - Math.max(began, lastEnd);
    lastEnd = performance.now();
    return gradients instanceof Float32Array ? { gradients, busy } : busy;
  };

  const answer = async (request: Request): Promise<Answers[keyof Answers]> => {
    switch (request.op) {
      case "open":
        kernel = withLatents(await open(request.options));
        return kernel.info;
      case "begin": {
        const { key } = request;
        const queries = await whole(request);
        assertQueries(queries);
        add(key, queries, await kernel!.begin(queries));
        return;
      }
      case "beginBackward": {
        const { key, outcome } = request;
        const queries = await whole(request);
        assertQueries(queries);
        assertOutcome(queries, outcome);
        const of = await kernel!.beginBackward?.(queries, outcome);
        if (of === undefined) throw new Error("it has no backward pass");
        add(key, queries, of);
        return;
      }
      case "absorb": {
        const open = openOf(request.key);
        const absorbing = absorb(open, request);
        open.absorbing.add(absorbing);
        return await absorbing.finally(() => open.absorbing.delete(absorbing));
      }
      case "finish": {
        await settled(request.key);
        const open = openOf(request.key);
        if (open.finished) throw new Error("it was given before");
        open.finished = true;
        return await open.of.finish();
      }
      case "beginPrograms": {
        const { linear, programs } = kernel!;
        const { key, weights } = request;
        models.set(key, await programs?.(weights) ?? hostPrograms(weights, linear));
        return;
      }
      case "fill":
        return await modelOf(request.key)
          .fill(request.weight, request.first, request.dtype, request.bytes);
      case "run":
        return await modelOf(request.key).run(request.program);
      case "close":
        // An accumulator that never began, because that failed, is closed as well.
        await settled(request.key);
        accumulations.get(request.key)?.of.close();
        accumulations.delete(request.key);
        models.get(request.key)?.close();
        models.delete(request.key);
        return;
      case "end":
        try {
          return await endKernel();
        } finally {
          // What waited for it lets go of it a turn later.
          await new Promise((resume) => setTimeout(resume));
          ended();
        }
    }
  };

  const post = (reply: Reply, transfer: Array<Transferable> = []) =>
    scope.postMessage(reply, transfer);

  const handle = async (id: number, request: Request): Promise<void> => {
    try {
      const value = await answer(request);
      post({ id, answer: value }, memoryOf(value));
    } catch (cause) {
      post({ id, refusal: refusalOf(cause) });
    }
  };

  let last = Promise.resolve();
  scope.addEventListener("message", ({ data }: MessageEvent<{ id: number; request: Request }>) => {
    last = last.then(async () => {
      const { request } = data;
      const absorbing = request.op === "absorb" ? accumulations.get(request.key)?.absorbing : null;
      if (absorbing === null) return handle(data.id, request);
      // Its failure is told to whom it concerns.
      if (absorbing !== undefined && absorbing.size > 1) {
        await Promise.race(absorbing).catch(() => {});
      }
      handle(data.id, request);
    });
  });
  scope.addEventListener("messageerror", () => post({ gone: "a request could not be read" }));

  // A Worker that ends itself is no event for its host, which would wait for the replies forever.
  const close = scope.close.bind(scope);
  scope.close = () => {
    post({ gone: "its worker closed itself" });
    close();
  };
  scope.addEventListener("unload", () => post({ gone: "its worker exited" }));
};
