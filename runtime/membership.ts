/**
 * What nodes and drivers say to each other besides tensors: small JSON, checked by a schema at either end.
 *
 * @module
 */
import { Schema } from "effect";
import { Beat } from "./beat.ts";
import { WorkCard } from "./job.ts";
import { Standing } from "./standing.ts";
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

/** A word that means nothing else in a subject. */
const Word = Schema.String.check(Schema.isPattern(/^[\w-]+$/));

/** How a node introduces itself. */
export const NodeCard = Schema.Struct({
  id: Word,
  /** Of its certificate, if it has one. */
  name: Schema.optionalKey(Word),
  version: Schema.String,
  host: Schema.String,
  pid: Schema.Number,
  device: DeviceInfo,
  /** Attention variants from files that its operator named. */
  plugins: Schema.Array(Schema.Struct({ name: Schema.String, hash: Schema.String })),
  /** Folders of models that its operator named, and what is in them. */
  models: Schema.optionalKey(
    Schema.Array(Schema.Struct({ folder: Schema.String, hash: Schema.String })),
  ),
  /** Measured when the node started: attention in GFLOP/s, and bytes through the server in MB/s. */
  attentionGflops: Schema.Number,
  linkMegabytes: Schema.Number,
  state: Schema.Literals(["idle", "busy"]),
});
/** How a node introduces itself. */
export type NodeCard = typeof NodeCard.Type;

const Run = Schema.String.check(Schema.isPattern(/^[0-9a-f]{16}$/));

/** What a driver asks of a node. Whatever is asked twice is answered twice and done once. */
export const Request = Schema.Union([
  /** To take a rank, in the job's epoch. */
  Schema.Struct({
    ask: Schema.Literal("offer"),
    version: Schema.String,
    job: WorkCard,
    rank: Schema.Natural,
    /** By rank, the name of the node that has it. */
    members: Schema.Array(Word),
  }),
  /** To stop what it does for a run, and to say what it has of it. */
  Schema.Struct({ ask: Schema.Literal("regroup"), run: Run, epoch: Schema.Natural }),
  /** To forget a run. */
  Schema.Struct({ ask: Schema.Literal("release"), run: Run }),
  /** To be there. */
  Schema.Struct({ ask: Schema.Literal("ping") }),
]);
/** What a driver asks of a node. */
export type Request = typeof Request.Type;

/** The node's answer. */
export const Answer = Schema.Union([
  Schema.Struct({ accepted: Schema.Literal(true) }),
  Schema.Struct({
    accepted: Schema.Literal(false),
    reason: Schema.String,
    /** With another run, which may be over without its knowing yet. */
    busy: Schema.optionalKey(Schema.Boolean),
  }),
  /** It is about to stop: ask again. */
  Schema.Struct({ stopping: Schema.Literal(true) }),
  /** The ranks that it holds of a run. */
  Schema.Struct({
    holds: Schema.Array(Schema.Struct({ rank: Schema.Natural, standing: Standing })),
  }),
]);
/** The node's answer. */
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
  Schema.Struct({ event: Schema.Literal("beat"), beat: Beat }),
  Schema.Struct({
    event: Schema.Literal("finished"),
    summary: Schema.Struct({
      rank: Schema.Number,
      device: DeviceInfo,
      sentBytes: Schema.Number,
      sentGradientBytes: Schema.Number,
      kvPeakBytes: Schema.Number,
      rssBytes: Schema.Number,
      links: Schema.Record(Schema.String, Schema.Number),
    }),
  }),
  Schema.Struct({ event: Schema.Literal("failed"), tag: Schema.String, reason: Schema.String }),
]);
/** What a node reports of a rank while it works on it. */
export type RankEvent = typeof RankEvent.Type;
