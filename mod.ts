/**
 * annulus: exact attention over sequences that no single device can hold.
 *
 * The sequence is split over the ranks of a ring. Key/value blocks travel around it while every rank computes on the
 * blocks that it has, and the answer is the same as on one device.
 *
 * @example Four ranks agree with one
 * ```ts
 * import { Effect } from "effect";
 * import { attend, causal, inProcess, reference } from "./mod.ts";
 *
 * const [tokens, heads, headDim] = [50, 2, 8];
 * const noise = (seed: number) =>
 *   Float32Array.from({ length: tokens * heads * headDim }, (_, i) => Math.sin(seed + i * i));
 * const input = { tokens, heads, headDim, q: noise(1), k: noise(2), v: noise(3) };
 *
 * const over = (ring: number) =>
 *   attend({ ...input, ring, attention: [causal()] }).pipe(
 *     Effect.provide(inProcess(reference)),
 *     Effect.runPromise,
 *   );
 * const [one, four] = await Promise.all([over(1), over(4)]);
 * const apart = one.o.map((x, i) => Math.abs(x - four.o[i]!));
 * if (Math.max(...apart) > 1e-6) throw new Error("a ring of four disagrees with one device");
 * ```
 *
 * @module
 */
export {
  attend,
  type AttendOptions,
  type AttendResult,
  type RunOptions,
} from "./runtime/attend.ts";
export {
  alibi,
  alibiSlopes,
  bidirectional,
  blocks,
  causal,
  chunked,
  dilated,
  documents,
  logN,
  prefix,
  sinks,
  sinkWindow,
  softcap,
  strided,
  temperature,
  window,
} from "./plugins/attention.ts";
export { cpu, cpuWith } from "./plugins/cpu.ts";
export { inProcess, memoryLinks, type MemoryLinksOptions } from "./plugins/memory.ts";
export { type ModelFolder, modelsIn, openModel } from "./plugins/models.ts";
export { type Answer } from "./plugins/models/answer.ts";
export { type Piece } from "./plugins/models/continuation.ts";
export { type Said } from "./plugins/models/engine.ts";
export { greedy, type Sampling } from "./plugins/models/sampler.ts";
export {
  type ModelOptions,
  type RunningModel,
  startModel,
  type Wanted,
} from "./plugins/models/start_model.ts";
export { type ChatMessage, openTokenizer, type TextTokens } from "./plugins/models/tokenizer.ts";
export { type ClusterOptions, onCluster } from "./plugins/nats_cluster.ts";
export { connectNats, type Nats, type NatsOptions } from "./plugins/nats.ts";
export { type NatsAccess } from "./plugins/nats_connection.ts";
export { type Identity, readIdentity } from "./plugins/nats_identity.ts";
export { natsLinks, type NatsLinksOptions } from "./plugins/nats_links.ts";
export { reference } from "./plugins/reference.ts";
export { webgpu, type WebgpuOptions, webgpuWith } from "./plugins/webgpu.ts";

export { type Attention, resolveAttention } from "./runtime/attention.ts";
export * from "./runtime/errors.ts";
export {
  type Accumulator,
  type BackwardAccumulator,
  type BlockGradients,
  Device,
  type Programs,
} from "./runtime/device.ts";
export { deviceInWorker, type WorkerSpec } from "./runtime/device_worker.ts";
export { serveDevice, Unavailable } from "./runtime/device_worker_guest.ts";
export type { Checkpoint, Checkpoints, Keeping, Mark } from "./runtime/checkpoint.ts";
export { Crew, type Equipment } from "./runtime/crew.ts";
export { type RunRecord } from "./runtime/driver.ts";
export { decode, type DType, encode } from "./runtime/dtype.ts";
export type {
  Accumulation,
  Attended,
  AttentionKernel,
  BackwardPass,
  DeviceInfo,
  KeyValues,
  Outcome,
  Queries,
  Tile,
} from "./runtime/kernel.ts";
export { type Held, type Linear, widened } from "./runtime/linear.ts";
export { type FixedLayout, type Layout, layouts, shardsOf } from "./runtime/layout.ts";
export {
  cheapest,
  costOf,
  type LayoutCost,
  layoutCosts,
  layoutFor,
} from "./runtime/layout_choice.ts";
export { type Latent, type LatentForm, type LatentShape } from "./runtime/latent.ts";
export { type HeadProduct, type HeadVectors } from "./runtime/head_product.ts";
export { type Ends, type Link, Links, type Slot } from "./runtime/link.ts";
export { asLse, type Lse, lseOf } from "./runtime/lse.ts";
export { allows, type Band, unbounded } from "./runtime/mask.ts";
export { type LoadedModel, type Model, Models, type Projected } from "./runtime/model.ts";
export {
  balanceOf,
  type BlockPlan,
  type HomingPlan,
  type Plan,
  planOf,
  type PlanSpec,
  type Problem,
  type RankPlan,
  type StepPlan,
} from "./runtime/plan.ts";
export { type KeptPart, type PartHead, type PartName, Parts } from "./runtime/parts.ts";
export { chooseDevice, type DevicePlugin } from "./runtime/plugin.ts";
export {
  type Program,
  type ProgramKernel,
  ProgramWriter,
  type Step,
  type Turns,
  type WeightSpec,
} from "./runtime/program.ts";
export { type RankSummary } from "./runtime/rank.ts";
export {
  type Extension,
  openSession,
  type Session,
  type SessionError,
  type SessionOptions,
} from "./runtime/session.ts";
export { type PartsError, type SessionParts, type Used } from "./runtime/session_parts.ts";
export { countUpTo, positionAt, type Span } from "./runtime/span.ts";
export { chromeTrace, hiddenFraction, type Interval } from "./runtime/timeline.ts";
export {
  contract,
  defineAttention,
  type Definition,
  float,
  floats,
  int,
  ints,
  type Overlap,
  type PairMask,
  type PairScore,
  type Param,
  type Params,
  type Range,
  type Shape,
  type Values,
  type Variant,
  type VariantMaker,
  type WgslForms,
} from "./runtime/variant.ts";
export { version } from "./runtime/version.ts";
