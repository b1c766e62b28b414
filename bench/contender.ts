/**
 * A contender's side of the bench: a process of its own that opens one job, computes it as often as it is asked and
 * gives the result of the last time. It takes JSON lines on standard input and answers each by one line with a mark on
 * standard output, where libraries print what they like besides. The bench's side is `process.ts`.
 *
 * @module
 */
import { createInterface } from "node:readline/promises";
import process from "node:process";
import { type Job, readTensors, type Tensors, writeTensors } from "./job.ts";

/** What precedes an answer. */
export const mark = "@bench ";

/** What a contender is asked for. */
export type Request =
  | { readonly op: "open"; readonly job: Job; readonly inputs: string }
  | { readonly op: "sample" }
  | { readonly op: "result"; readonly folder: string };

/** One measured computation. */
export interface Sample {
  /** Of the whole call, from inputs in memory to results in memory. */
  readonly seconds: number;
  /** Seconds of parts of the call, by name. */
  readonly parts?: Readonly<Record<string, number>>;
}

/** What each request is answered with: how it runs, a sample, the names of the tensors that were written. */
export interface Answers {
  readonly open: string;
  readonly sample: Sample;
  readonly result: ReadonlyArray<string>;
}

/** A line of a contender: an answer, or one sentence why there is none. */
export type Reply = { readonly answer: Answers[keyof Answers] } | { readonly refusal: string };

/** A job that is ready to be computed. */
export interface Contest {
  /** What computes it: library, version, threads, device. */
  readonly about: string;
  readonly sample: () => Promise<Sample>;
  /** What the last sample computed. */
  readonly result: () => Promise<Tensors>;
}

/** Seconds that `work` takes, with what it gives. */
export const timed = async <A>(work: () => Promise<A>): Promise<readonly [A, number]> => {
  const began = performance.now();
  const value = await work();
  return [value, (performance.now() - began) / 1000];
};

const inputNames: Record<Job["kind"], ReadonlyArray<string>> = {
  matmul: ["a", "b"],
  attention: ["q", "k", "v"],
  gradients: ["q", "k", "v", "dO"],
};

/** Serves the bench until it closes standard input, then ends the process. */
export const contend = async (
  open: (job: Job, inputs: Tensors) => Promise<Contest>,
): Promise<never> => {
  let contest: Contest | undefined;
  const answer = async (request: Request): Promise<Answers[keyof Answers]> => {
    if (request.op === "open") {
      const inputs = await readTensors(request.inputs, inputNames[request.job.kind]);
      contest = await open(request.job, inputs);
      return contest.about;
    }
    if (request.op === "sample") return await contest!.sample();
    const tensors = await contest!.result();
    await writeTensors(request.folder, tensors);
    return Object.keys(tensors);
  };
  for await (const line of createInterface({ input: process.stdin })) {
    let reply: Reply;
    try {
      reply = { answer: await answer(JSON.parse(line)) };
    } catch (cause) {
      reply = { refusal: cause instanceof Error ? cause.message : String(cause) };
    }
    process.stdout.write(`${mark}${JSON.stringify(reply)}\n`);
  }
  // Some libraries keep threads that would hold the process.
  Deno.exit(0);
};
