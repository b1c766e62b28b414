/**
 * The Worker of one of the device's threads: takes items of jobs until there are no more.
 *
 * @module
 */
import { attend } from "./attend.ts";
import { type Blas, openBlas } from "./blas.ts";
import { Control } from "./control.ts";
import { differentiate } from "./differentiate.ts";
import { itemsOf, type Job } from "./job.ts";
import { Lifeline } from "./lifeline.ts";
import { delta, normalise, prepare } from "./prepare.ts";
import { Softmax } from "./softmax.ts";

/** What a thread works with. */
export interface Opening {
  /** The path of OpenBLAS. */
  readonly library: string;
  /** Words of the `Lifeline` of the device. */
  readonly lifeline: Int32Array;
}

/** What the device says to a thread. */
export type Order =
  | { readonly open: Opening }
  | {
    readonly id: number;
    readonly job: Job;
    readonly words: Int32Array;
    /** The job before: its items must be done before one of this job begins. */
    readonly before: { readonly words: Int32Array; readonly items: number } | undefined;
  };

/** What a thread says to the device; of the end of a job only that thread tells which did its last item. */
export type Report =
  | { readonly opened: string }
  | { readonly unavailable: string }
  | { readonly id: number; readonly failure?: string };

const scope = self as unknown as DedicatedWorkerGlobalScope;
const report = (report: Report): void => scope.postMessage(report);

let tools:
  | { readonly blas: Blas; readonly softmax: Softmax; readonly lifeline: Lifeline }
  | undefined;

const open = async ({ library, lifeline: words }: Opening): Promise<void> => {
  try {
    const [blas, lifeline] = [openBlas(library), new Lifeline(words)];
    const product: Blas["product"] = (...of) => {
      if (lifeline.cut) throw new Error("the device was closed");
      blas.product(...of);
    };
    tools = { blas: { ...blas, product }, softmax: await Softmax.load(), lifeline };
    report({ opened: blas.description });
  } catch (cause) {
    report({ unavailable: cause instanceof Error ? cause.message : String(cause) });
  }
};

/** What computes one item of a job. */
const workOf = (job: Job, control: Control): (item: number) => void => {
  const { blas, softmax } = tools!;
  switch (job.kind) {
    case "prepare":
      return (item) => prepare(softmax, job, item);
    case "attend":
      return attend(blas, softmax, job);
    case "normalise":
      return (item) => normalise(job, item);
    case "delta":
      return (item) => delta(job, item);
    case "differentiate":
      return differentiate(blas, softmax, control, job);
  }
};

const work = ({ id, job, words, before }: Exclude<Order, { readonly open: Opening }>): void => {
  const control = new Control(words, itemsOf(job));
  try {
    if (before !== undefined) new Control(before.words, before.items).waitForAll();
    const compute = workOf(job, control);
    for (let item = control.take(); item !== undefined; item = control.take()) {
      compute(item);
      if (control.finish()) report({ id });
    }
  } catch (cause) {
    control.fail();
    report({ id, failure: cause instanceof Error ? cause.message : String(cause) });
  }
};

scope.addEventListener("message", ({ data }: MessageEvent<Order>) => {
  if ("open" in data) open(data.open);
  else tools?.lifeline.hold(() => work(data));
});
