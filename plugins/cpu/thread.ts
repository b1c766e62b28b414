/**
 * The Worker of one of the device's threads: takes items of jobs until there are no more.
 *
 * @module
 */
import { attend } from "./attend.ts";
import { type Blas, openBlas } from "./blas.ts";
import { Control } from "./control.ts";
import { differentiate } from "./differentiate.ts";
import { type Attend, type Differentiate, itemsOf, type Job } from "./job.ts";
import { Lifeline } from "./lifeline.ts";
import { multiply } from "./linear.ts";
import { delta, normalise, prepare } from "./prepare.ts";
import { project } from "./project.ts";
import type { AttentionSpec } from "../../runtime/attention_spec.ts";
import { Asker } from "./pairs.ts";
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
  /** An attention that jobs will name by a number. */
  | { readonly attention: number; readonly spec: AttentionSpec }
  | { readonly forget: number }
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

/** By number; what could not be loaded throws. */
const attentions = new Map<number, () => Asker>();
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
  const asker = (job: Attend | Differentiate) =>
    job.attention === undefined ? undefined : attentions.get(job.attention)!();
  switch (job.kind) {
    case "prepare":
      return (item) => prepare(softmax, job, item);
    case "attend":
      return attend(blas, softmax, job, asker(job));
    case "normalise":
      return (item) => normalise(job, item);
    case "delta":
      return (item) => delta(job, item);
    case "differentiate":
      return differentiate(blas, softmax, control, job, asker(job));
    case "project":
      return project(blas, job);
    case "multiply":
      return multiply(blas, softmax, job);
  }
};

const work = ({ id, job, words, before }: Extract<Order, { readonly id: number }>): void => {
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

/** Loads an attention's files, which takes a while the first time. */
const learn = async (key: number, spec: AttentionSpec): Promise<void> => {
  try {
    const { loadAttention } = await import("../../runtime/attention_files.ts");
    const asker = new Asker(await loadAttention(spec), tools!.softmax);
    attentions.set(key, () => asker);
  } catch (cause) {
    attentions.set(key, () => {
      throw cause;
    });
  }
};

/** What came before the next order; only attentions take time. */
let learnt: Promise<void> | undefined;
const obey = (order: Order): void => {
  if ("open" in order) open(order.open);
  else if ("forget" in order) attentions.delete(order.forget);
  else if ("attention" in order) {
    const before = learnt ?? Promise.resolve();
    learnt = before.then(() => learn(order.attention, order.spec));
  } else tools?.lifeline.hold(() => work(order));
};

scope.addEventListener("message", ({ data }: MessageEvent<Order>) => {
  if (learnt === undefined || "attention" in data) obey(data);
  else learnt = learnt.then(() => obey(data));
});
