/**
 * The Worker's side of a device: runs an attention kernel for the thread that started the Worker. The other side is
 * `device_worker.ts`.
 *
 * @module
 */
import type {
  Accumulation,
  Attended,
  AttentionKernel,
  DeviceInfo,
  KeyValues,
  Queries,
  Tile,
} from "./kernel.ts";
import type { Band } from "./mask.ts";

/** What the host asks for. `key` names an accumulator and is the host's choice. */
export type Request =
  | { readonly op: "open"; readonly options: unknown }
  | { readonly op: "begin"; readonly key: number; readonly queries: Queries }
  | {
    readonly op: "absorb";
    readonly key: number;
    readonly block: KeyValues;
    readonly tiles: ReadonlyArray<Tile>;
    readonly band: Band;
  }
  | { readonly op: "finish"; readonly key: number }
  | { readonly op: "close"; readonly key: number };

/** What each request is answered with. */
export interface Answers {
  readonly open: DeviceInfo;
  readonly begin: void;
  /** Milliseconds for which the device was busy. */
  readonly absorb: number;
  readonly finish: Attended;
  readonly close: void;
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

/**
 * Serves the kernel that `open` makes, called once with the host's options. Call it while the Worker's module loads.
 * Requests are handled strictly one after another. The arrays that `finish` gives are transferred, so that the
 * kernel must not use them again.
 */
export const serveDevice = (open: (options: unknown) => Promise<AttentionKernel>): void => {
  const scope = self as unknown as DedicatedWorkerGlobalScope;
  const accumulations = new Map<number, Accumulation>();
  let kernel: AttentionKernel | undefined; // there is one before the host asks for anything else

  const accumulationOf = (key: number): Accumulation => {
    const found = accumulations.get(key);
    if (found === undefined) throw new Error("its accumulator was closed before");
    return found;
  };

  const answer = async (request: Request): Promise<Answers[keyof Answers]> => {
    switch (request.op) {
      case "open":
        kernel = await open(request.options);
        return kernel.info;
      case "begin":
        accumulations.set(request.key, await kernel!.begin(request.queries));
        return;
      case "absorb": {
        const accumulation = accumulationOf(request.key);
        const began = performance.now();
        await accumulation.absorb(request.block, request.tiles, request.band);
        return performance.now() - began;
      }
      case "finish":
        return await accumulationOf(request.key).finish();
      case "close":
        // An accumulator that never began, because that failed, is closed as well.
        accumulations.get(request.key)?.close();
        accumulations.delete(request.key);
        return;
    }
  };

  const post = (reply: Reply, transfer: Array<Transferable> = []) =>
    scope.postMessage(reply, transfer);

  const handle = async (id: number, request: Request): Promise<void> => {
    try {
      const value = await answer(request);
      const arrays = typeof value === "object" && "o" in value ? [value.o, value.lse] : [];
      post({ id, answer: value }, [...new Set(arrays.map((array) => array.buffer))]);
    } catch (cause) {
      post({ id, refusal: refusalOf(cause) });
    }
  };

  let last = Promise.resolve();
  scope.addEventListener("message", ({ data }: MessageEvent<{ id: number; request: Request }>) => {
    last = last.then(() => handle(data.id, data.request));
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
