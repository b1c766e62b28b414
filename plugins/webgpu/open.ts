/**
 * Opens the attention kernel of the best WebGPU adapter.
 *
 * @module
 */
import { Unavailable } from "../../runtime/device_worker_guest.ts";
import type { AttentionKernel } from "../../runtime/kernel.ts";
import { describe, findAdapter, isSoftware } from "./adapter.ts";
import { unusableWidth } from "./environment.ts";
import { WebgpuBackward } from "./backward.ts";
import { DecoderKernels, WebgpuPrograms } from "./decoder.ts";
import { Gpu } from "./gpu.ts";
import { HeadProducts } from "./head_product.ts";
import { WebgpuAttention } from "./kernel.ts";
import {
  bestFirst,
  type Blocking,
  blockingNeeded,
  type Choice,
  isBlocking,
  ladder,
  largestHeadDim,
  largestHeld,
  mostRows,
  type Version,
  versionNamed,
} from "./ladder.ts";
import { checkSubgroups, type Subgroups } from "./subgroups.ts";
import { readTuning, type Task, tuningPath } from "./tuning.ts";

/** What a caller may ask of the device. */
export interface WebgpuOptions {
  /** Bytes that one buffer may have, where that is less than the adapter's own limit. */
  readonly largestBuffer?: number;
  /**
   * A version of the kernel by name or number, which is then used or refused; `auto`, the default, takes the best that
   * works.
   */
  readonly kernel?: string | number;
  /** The sizes to run it with, where they are not those that were measured, or its own. */
  readonly blocking?: Blocking;
  /** Where the file is of what was measured here, where that is not the user's own; false for none. */
  readonly tuning?: string | false;
}

/** Invocations that an adapter runs as one; what most GPUs do where it does not say. */
export const vectorOf = ({ subgroupMaxSize }: GPUAdapterInfo): number => subgroupMaxSize || 32;

/** Invocations of a workgroup of the backward pass on a GPU. */
const gpuLanes = 64;

/** The versions to try, best first, for a kernel that was asked for. */
const wantedVersions = (
  kernel: string | number,
  software: boolean,
): ReadonlyArray<Version> => {
  if (kernel === "auto") return bestFirst(software);
  const version = versionNamed(kernel);
  if (version !== undefined) return [version];
  const known = ladder.map(({ name, number }) => `"${name}" (${number})`).join(", ");
  throw new Unavailable({
    needed: `the kernel to be "auto" or one of ${known}`,
    found: `"${kernel}"`,
  });
};

/**
 * The kernel, once it has computed a small problem right. It asks for the adapter's own limits, and for the feature
 * `subgroups` where a version is to be tried that needs it: Deno has it without saying so.
 */
export const openWebgpu = async (options: WebgpuOptions = {}): Promise<AttentionKernel> => {
  const adapter = await findAdapter();
  if (adapter === undefined) {
    throw new Unavailable(
      unusableWidth() ?? {
        needed: "a GPU or software adapter, with the Vulkan loader and a driver on Linux " +
          "(`deno task setup` installs them)",
        found: "no adapter",
      },
    );
  }
  const software = isSoftware(adapter.info);
  const { kernel = "auto" } = options;
  let versions = wantedVersions(kernel, software);
  if (options.blocking !== undefined && !isBlocking(options.blocking)) {
    throw new Unavailable({
      needed: `the blocking to have ${blockingNeeded}`,
      found: JSON.stringify(options.blocking),
    });
  }
  const notes: Array<string> = [];
  const warn = (sentence: string) => {
    notes.push(sentence);
    console.warn(`annulus: webgpu: ${sentence}`);
  };

  const { maxBufferSize, maxStorageBufferBindingSize, maxTextureDimension2D } = adapter.limits;
  const { maxComputeWorkgroupStorageSize } = adapter.limits;
  const requiredLimits = {
    maxComputeWorkgroupStorageSize,
    maxBufferSize,
    maxStorageBufferBindingSize,
    maxTextureDimension2D,
    maxStorageBuffersPerShaderStage: adapter.limits.maxStorageBuffersPerShaderStage,
  };
  const vector = vectorOf(adapter.info);
  let gpu: Gpu | undefined;
  let subgroups: Subgroups = { size: vector, directive: "" };
  if (versions.some((version) => version.subgroups)) {
    try {
      const requiredFeatures = ["subgroups" as GPUFeatureName];
      gpu = new Gpu(await adapter.requestDevice({ requiredFeatures, requiredLimits }));
      subgroups = await checkSubgroups(gpu, options.blocking?.lanes ?? vector);
    } catch (cause) {
      const found = cause instanceof Error ? cause.message : String(cause);
      await gpu?.close(); // whatever such a program did to it
      gpu = undefined;
      versions = versions.filter((version) => !version.subgroups);
      if (versions.length === 0) {
        throw new Unavailable({ needed: `subgroups for the kernel "${kernel}"`, found });
      }
      warn(`kernel "broadcast" is not used, since it needs subgroups: ${found}`);
    }
  }
  // An adapter may give one device only.
  gpu ??= new Gpu(await (await findAdapter() ?? adapter).requestDevice({ requiredLimits }));

  const largestBuffer = Math.min(
    maxBufferSize,
    maxStorageBufferBindingSize,
    options.largestBuffer ?? Infinity,
  );
  const path = options.tuning ?? tuningPath();
  const measured = kernel === "auto" && options.blocking === undefined && path
    ? readTuning(path, adapter.info)
    : undefined;
  if (measured?.note !== undefined) warn(measured.note);
  /** What was measured, where it can run: a file may say anything. */
  const bestFor = (task: Task): ReadonlyArray<Choice> => {
    const best = measured?.choice(task);
    if (best === undefined) return [];
    const { version: { name }, blocking: { lanes } } = best;
    const tried = versions.includes(best.version);
    if (tried && (!best.version.subgroups || lanes === subgroups.size)) return [best];
    const why = tried
      ? `it has ${lanes} lanes for kernel "${name}", and a subgroup here ${subgroups.size}`
      : `kernel "${name}" is none of those that are tried here`;
    const sentence =
      `the tuning in ${path} is not used: ${why}; annulus bench --kernel measures anew`;
    if (!notes.includes(sentence)) warn(sentence);
    return [];
  };
  /** The sizes that somebody asked for, where a program of that head dimension compiles with them. */
  const asked = (headDim: number): Blocking | undefined => {
    const { blocking } = options;
    if (blocking === undefined || blocking.rows <= mostRows(headDim)) return blocking;
    throw new Error(
      `a blocking of ${blocking.rows} rows is too large for head dim ${headDim}: at most ` +
        mostRows(headDim),
    );
  };
  const attention = new WebgpuAttention(gpu, {
    choices: (dtype, headDim) => [
      ...bestFor({ dtype, headDim }),
      ...(headDim > largestHeld ? [versionNamed("wide")!] : versions).map((version) => ({
        version,
        blocking: asked(headDim) ??
          version.blocking({ headDim, vector, workgroupBytes: maxComputeWorkgroupStorageSize }),
      })),
    ],
    directive: subgroups.directive,
    warn,
    largestBuffer,
    tallestTexture: maxTextureDimension2D,
  });
  const lanes = options.blocking?.lanes ?? (software ? vector : gpuLanes);
  const backward = new WebgpuBackward(gpu, {
    choices: [
      ...(versions.some(({ file }) => file === "attend_tiles")
        ? [{ keysIn: "buffer", lanes, form: "tiles" } as const]
        : []),
      // On a CPU a workgroup that is one subgroup needs a single pass; the next best has two.
      ...versions.flatMap(({ keysIn, subgroups }) =>
        (subgroups && software ? ["once", "lanes"] as const : ["lanes"] as const).map((form) => ({
          ...{ keysIn, lanes, form },
        }))
      ),
    ].filter(({ keysIn, form }, i, all) =>
      i === all.findIndex((other) => other.keysIn === keysIn && other.form === form)
    ),
    warn,
    directive: subgroups.directive,
    largestBuffer,
    tallestTexture: maxTextureDimension2D,
  });
  const products = new HeadProducts(gpu, largestBuffer);
  const decoder = new DecoderKernels(gpu.device);
  // The smallest program, so that a driver that computes wrongly is known at once.
  try {
    await attention.prepare("f32", 4);
  } catch (cause) {
    await gpu.close();
    throw cause;
  }
  return {
    info: {
      name: "webgpu",
      backend: describe(adapter.info),
      software,
      features: [...gpu.device.features],
      gradients: true,
      forms: "WGSL",
      memory: Deno.systemMemoryInfo().total,
      largestTensor: largestBuffer,
      largestHeadDim,
      notes,
    },
    begin: (queries) => attention.begin(queries),
    expandsLatents: true,
    product: (product) => products.compute(product),
    programs: (weights) => WebgpuPrograms.open(gpu, decoder, largestBuffer, weights),
    beginBackward: (queries, outcome) => backward.begin(queries, outcome),
    close: () => gpu.close(),
  };
};
