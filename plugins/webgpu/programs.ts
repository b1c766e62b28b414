/**
 * The compiled programs of a device: each is checked before its first use, and where there is a choice of versions, one
 * that fails makes way for the next.
 *
 * @module
 */
import type { DType } from "../../runtime/dtype.ts";
import { FirstThatWorks } from "./first_that_works.ts";
import type { Gpu } from "./gpu.ts";
import type { Choice, Version } from "./ladder.ts";
import { pairLayout, type PairProgram } from "./pairs.ts";
import {
  groupRows,
  type PlainVariant,
  program,
  texelFormat,
  type Variant,
  type VariantName,
} from "./program.ts";

/** A program on the device, and what it is given. */
export interface Compiled {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/** Bytes of a program's `Task`. */
export const taskBytes = 80;

/** What programs a device may use. */
export interface ProgramOptions {
  /** Best first, at least one. With one alone there is no way out: its failure is an error. */
  readonly choices: (dtype: DType, headDim: number) => ReadonlyArray<Choice>;
  /** What a program with subgroups begins with. */
  readonly directive: string;
  /** Hears of each choice that is dropped. */
  readonly warn: (sentence: string) => void;
}

/** A choice in words. */
const nameOf = ({ version: { name }, blocking: { rows, keys, lanes } }: Choice): string =>
  `kernel "${name}" (${rows} rows, ${keys} keys, ${lanes} lanes)`;

/** Programs by what they are made for. */
export class Programs {
  readonly #gpu: Gpu;
  readonly #options: ProgramOptions;
  readonly #check: (made: PlainVariant, compiled: Compiled) => Promise<void>;
  readonly #text: typeof program;
  readonly #checked = new Map<string, Promise<Compiled>>();
  readonly #unchecked = new Map<string, Promise<Compiled>>();
  readonly #choices: FirstThatWorks<Choice>;

  /**
   * @param check Rejects where a program computes wrongly.
   * @param text The program, for those who want to see a wrong one refused.
   */
  constructor(
    gpu: Gpu,
    options: ProgramOptions,
    check: (made: PlainVariant, compiled: Compiled) => Promise<void>,
    text = program,
  ) {
    this.#gpu = gpu;
    this.#options = options;
    this.#check = check;
    this.#text = text;
    this.#choices = new FirstThatWorks(gpu, nameOf, options.warn);
  }

  /** Query rows of the smallest workgroup that may come to be used, whatever K/V come. */
  leastRows(headDim: number): number {
    const choices = (["f32", "f16", "bf16"] as const).flatMap((dtype) =>
      this.#options.choices(dtype, headDim)
    );
    return Math.min(...choices.map((choice) => groupRows(choice, headDim)));
  }

  /**
   * The best choice that works, and its variants that `wanted` names, compiled and checked. Rejects where none works,
   * with the reason of the last.
   */
  async find(
    dtype: DType,
    headDim: number,
    wanted: (choice: Choice) => ReadonlyArray<VariantName>,
    pairs?: PairProgram,
  ): Promise<Choice & { readonly compiled: ReadonlyArray<Compiled> }> {
    const problem = `${dtype} and head dim ${headDim}`;
    return await this.#choices.find(
      problem,
      this.#options.choices(dtype, headDim),
      async (choice) => {
        const compiled: Array<Compiled> = [];
        for (const variant of wanted(choice)) {
          const made = { ...choice, dtype, headDim };
          const plain = await this.#checkedOnce({
            ...made,
            variant: variant === "pairwise" ? "masked" : variant,
          });
          // Answers of others are known to nobody: what they are made from is checked.
          compiled.push(
            pairs === undefined ? plain : await this.#compiledOnce({ ...made, variant, pairs }),
          );
        }
        return { ...choice, compiled };
      },
    );
  }

  #checkedOnce(made: PlainVariant): Promise<Compiled> {
    const key = JSON.stringify(made);
    const before = this.#checked.get(key);
    if (before !== undefined) return before;
    const checked = this.#compile(made).then(async (compiled) => {
      await this.#check(made, compiled);
      return compiled;
    });
    checked.catch(() => {}); // whoever asks hears of it
    this.#checked.set(key, checked);
    return checked;
  }

  #compiledOnce(made: Variant): Promise<Compiled> {
    const key = JSON.stringify({ ...made, pairs: made.pairs?.text });
    const compiled = this.#unchecked.get(key) ?? this.#compile(made);
    this.#unchecked.set(key, compiled);
    return compiled;
  }

  #compile(made: Variant): Promise<Compiled> {
    const { device } = this.#gpu;
    const { version, dtype, headDim, variant, pairs } = made;
    const label = `attend ${version.name}, ${dtype}, head dim ${headDim}, ${variant}`;
    return this.#gpu.run(() => {
      const layout = bindings(device, version, dtype, pairs);
      const directive = version.subgroups ? this.#options.directive : "";
      const pipeline = device.createComputePipeline({
        label,
        layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: {
          module: device.createShaderModule({ label, code: directive + this.#text(made) }),
          entryPoint: "attend",
        },
      });
      return { pipeline, layout };
    }, () => Promise.resolve());
  }
}

/** The bindings of `kernels/attend_task.wgsl`. */
const bindings = (
  device: GPUDevice,
  { keysIn }: Version,
  dtype: DType,
  pairs: PairProgram | undefined,
): GPUBindGroupLayout => {
  const visibility = GPUShaderStage.COMPUTE;
  const storage = (binding: number, type: GPUBufferBindingType) => ({
    binding,
    visibility,
    buffer: { type },
  });
  const keys = (binding: number) =>
    keysIn === "buffer" ? storage(binding, "read-only-storage") : {
      binding,
      visibility,
      storageTexture: { access: "read-only", format: texelFormat(dtype) } as const,
    };
  return device.createBindGroupLayout({
    entries: [
      {
        binding: 0,
        visibility,
        buffer: { type: "uniform", hasDynamicOffset: true, minBindingSize: taskBytes },
      },
      storage(1, "read-only-storage"),
      keys(2),
      keys(3),
      storage(4, "storage"),
      storage(5, "storage"),
      ...(pairs === undefined ? [] : pairLayout(pairs)),
    ],
  });
};
