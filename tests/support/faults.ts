/**
 * Planting faults: a copy of the source with something wrong in it, and the first case of a contract that notices.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import assert from "node:assert/strict";
import { memoryLinks } from "../../plugins/memory.ts";
import { Device } from "../../runtime/device.ts";
import type { AttentionKernel } from "../../runtime/kernel.ts";
import type { Links } from "../../runtime/link.ts";

const root = new URL("../../", import.meta.url);
/** Where the source of devices and of a ring over memory links lies. */
const folders = [
  "runtime/",
  "kernels/",
  "kernels/softmax/",
  "plugins/",
  "plugins/attention/",
  "plugins/cpu/",
  "plugins/nats_cluster/",
  "plugins/nats_links/",
  "plugins/webgpu/",
  "tests/contract/",
  "tests/simulation/",
  "tests/support/",
];

/** Each text, which stands in its file once, and what it becomes. */
export type Changes = ReadonlyArray<readonly [from: string, to: string]>;

/** What is wrong, and by which changes of which files. */
export interface Fault {
  readonly fault: string;
  readonly changes: Readonly<Record<string, Changes>>;
}

/** A case of a contract. */
export interface Case {
  readonly name: string;
  readonly run: Effect.Effect<void, unknown>;
}

/** Loads a module of a copy of the source. */
export type Load = <M>(path: string) => Promise<M>;

/** Copies the source, plants a fault in it, and removes it after use. */
export const withCopy = async (changes: Fault["changes"], use: (load: Load) => Promise<void>) => {
  const folder = await Deno.makeTempDir({ prefix: "annulus-fault-" });
  const copy = new URL(`file://${folder}/`);
  try {
    await Deno.copyFile(new URL("deno.json", root), new URL("deno.json", copy));
    for (const part of folders) {
      await Deno.mkdir(new URL(part, copy), { recursive: true });
      for await (const { name, isFile } of Deno.readDir(new URL(part, root))) {
        if (isFile) await Deno.copyFile(new URL(part + name, root), new URL(part + name, copy));
      }
    }
    for (const [file, texts] of Object.entries(changes)) {
      let text = await Deno.readTextFile(new URL(file, copy));
      for (const [from, to] of texts) {
        assert.equal(text.split(from).length, 2, `${file} must have once: ${from}`);
        text = text.replace(from, () => to);
      }
      await Deno.writeTextFile(new URL(file, copy), text);
    }
    await use((path) => import(new URL(path, copy).href));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
};

/** Contracts, and where their cases are. */
const contracts = {
  ring: ["tests/contract/ring.ts", "ringCases"],
  device: ["tests/contract/device.ts", "deviceCases"],
  "gradients of a ring": ["tests/contract/ring_gradients.ts", "ringGradientCases"],
  "gradients of a device": ["tests/contract/gradients.ts", "gradientCases"],
  variants: ["tests/contract/variants.ts", "variantCases"],
  latents: ["tests/contract/latents.ts", "latentCases"],
  programs: ["tests/contract/programs.ts", "programCases"],
} as const;
/** One of them. */
export type Contract = keyof typeof contracts;

/** The cases of a copy's contract on one of its kernels. Services are known by their keys, so that these will do. */
export const casesOf = async (
  load: Load,
  contract: Contract,
  kernel: AttentionKernel,
): Promise<ReadonlyArray<Case>> => {
  const [path, name] = contracts[contract];
  const cases = (await load<Record<string, ReadonlyArray<Case>>>(path))[name]!;
  // Its latents are the copy's as well.
  const { inProcess } = await load<typeof import("./in_process.ts")>("tests/support/in_process.ts");
  const services = Layer.merge(Layer.succeed(Device, inProcess(kernel)), memoryLinks());
  return cases.map(({ name, run }): Case => ({
    name,
    run: Effect.provide(run as Effect.Effect<void, unknown, Device | Links>, services),
  }));
};

/** The same cases, beginning with those that are about the fault, if one says which: any may notice, these do at once. */
export const soonest = (cases: ReadonlyArray<Case>, about: string | undefined) =>
  cases.toSorted((a, b) =>
    about === undefined ? 0 : Number(b.name.startsWith(about)) - Number(a.name.startsWith(about))
  );

/** The first case that fails. */
export const firstToFail = async (cases: ReadonlyArray<Case>): Promise<string | undefined> => {
  for (const { name, run } of cases) {
    try {
      await Effect.runPromise(Effect.timeout(run, "60 seconds"));
    } catch (error) {
      const noticed = error instanceof assert.AssertionError ||
        error instanceof Error &&
          ("_tag" in error && error._tag !== "TimeoutError" ||
            error.message.startsWith("Property failed"));
      if (!noticed) throw error; // the fault broke the program, which is no merit of the case
      return name;
    }
  }
};

/** Which case of which contract noticed which fault. */
export const table: Array<readonly [fault: string, contract: string, name: string]> = [];

/** Some case notices, and is entered in the table. */
export const assertCaught = async (fault: string, contract: string, cases: ReadonlyArray<Case>) => {
  const name = await firstToFail(cases);
  assert.ok(name !== undefined, `no case of the ${contract} contract notices`);
  table.push([fault, contract, name]);
};

/** Prints what was caught by these contracts. */
export const printTable = (contracts: ReadonlyArray<string>) => {
  for (const [fault, contract, name] of table) {
    if (contracts.includes(contract)) console.log(`${fault} … caught by ${contract}: ${name}`);
  }
};
