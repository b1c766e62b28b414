/**
 * What nodes and drivers say to each other besides tensors: small JSON, checked by a schema at either end.
 *
 * @module
 */
import { Schema } from "effect";
import { JobCard } from "./job.ts";
import { activities } from "./timeline.ts";

const DeviceInfo = Schema.Struct({
  name: Schema.String,
  backend: Schema.String,
  software: Schema.Boolean,
  features: Schema.Array(Schema.String),
  gradients: Schema.Boolean,
  forms: Schema.optionalKey(Schema.Literals(["TypeScript", "WGSL"])),
  memory: Schema.Number,
  largestTensor: Schema.Number,
  largestHeadDim: Schema.optionalKey(Schema.Number),
});

/** How a node introduces itself. */
export const NodeCard = Schema.Struct({
  id: Schema.String,
  version: Schema.String,
  host: Schema.String,
  pid: Schema.Number,
  device: DeviceInfo,
  /** Attention variants from files that its operator named. */
  plugins: Schema.Array(Schema.Struct({ name: Schema.String, hash: Schema.String })),
  /** Measured when the node started: attention in GFLOP/s, and bytes through the server in MB/s. */
  attentionGflops: Schema.Number,
  linkMegabytes: Schema.Number,
  state: Schema.Literals(["idle", "busy"]),
});
/** How a node introduces itself. */
export type NodeCard = typeof NodeCard.Type;

/** A driver asks a node to take a rank. */
export const Offer = Schema.Struct({ version: Schema.String, job: JobCard, rank: Schema.Natural });
/** A driver asks a node to take a rank. */
export type Offer = typeof Offer.Type;

/** The node's answer to an offer. */
export const Answer = Schema.Union([
  Schema.Struct({ accepted: Schema.Literal(true) }),
  Schema.Struct({ accepted: Schema.Literal(false), reason: Schema.String }),
]);
/** The node's answer to an offer. */
export type Answer = typeof Answer.Type;

/** What a node reports of a rank while it works on it. */
export const RankEvent = Schema.Union([
  Schema.Struct({
    event: Schema.Literal("interval"),
    interval: Schema.Struct({
      rank: Schema.Number,
      activity: Schema.Literals([...activities]),
      step: Schema.Number,
      block: Schema.Number,
      begin: Schema.Number,
      end: Schema.Number,
      bytes: Schema.Number,
    }),
  }),
  Schema.Struct({
    event: Schema.Literal("finished"),
    summary: Schema.Struct({
      rank: Schema.Number,
      device: DeviceInfo,
      sentBytes: Schema.Number,
      sentGradientBytes: Schema.Number,
      kvPeakBytes: Schema.Number,
      rssBytes: Schema.Number,
    }),
  }),
  Schema.Struct({ event: Schema.Literal("failed"), tag: Schema.String, reason: Schema.String }),
  /** The rank's links are closed and the node is idle again. */
  Schema.Struct({ event: Schema.Literal("ended") }),
]);
/** What a node reports of a rank while it works on it. */
export type RankEvent = typeof RankEvent.Type;
