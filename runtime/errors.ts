/**
 * Every way in which a run can fail, one tag for each thing a caller would do differently. The sentence says what
 * was attempted, what is needed and what was found.
 *
 * | tag | whose turn it is |
 * | --- | --- |
 * | `InvalidProblem`, `VariantInvalid`, `PlanRefused`, `TensorInvalid`, `FileInvalid`, `ModelInvalid` | the caller: change the input or a flag |
 * | `DeviceUnavailable`, `DownloadFailed`, `PortUnavailable`, `ServerUnavailable`, `NotEnoughNodes`, `NotPermitted`, `VersionMismatch`, `NodeRefused` | the operator: install, start or update something |
 * | `CacheUnusable` | nobody: the text is read as if none had been kept |
 * | `DeviceFailed`, `LinkFailed`, `LinkClosed`, `FrameRejected`, `RankFailed` | nobody yet: the run is lost, start it again |
 * | `MergeViolation`, `NonFinite`, `NotExact` | us: the answer would have been wrong, so there is none |
 *
 * @module
 */
import { Schema } from "effect";

/** The lengths, heads, mask or layout asked for cannot be computed at all. */
export class InvalidProblem extends Schema.TaggedError<InvalidProblem>()("InvalidProblem", {
  what: Schema.String,
  needed: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot plan attention: ${this.what} must be ${this.needed}: found ${this.found}`;
  }
}

/** The problem is sound but does not fit the machines; `knob` names what to change. */
export class PlanRefused extends Schema.TaggedError<PlanRefused>()("PlanRefused", {
  needed: Schema.String,
  found: Schema.String,
  knob: Schema.String,
}) {
  override get message() {
    return `Cannot place the run: it needs ${this.needed}: found ${this.found}; ${this.knob}`;
  }
}

/** A tensor of the input is missing or has the wrong rank, shape, type or values. */
export class TensorInvalid extends Schema.TaggedError<TensorInvalid>()("TensorInvalid", {
  file: Schema.String,
  tensor: Schema.String,
  needed: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot use tensor "${this.tensor}" of "${this.file}": it must be ${this.needed}: found ${this.found}`;
  }
}

/** An attention variant cannot be what it says, or not with these parameters, tensors or devices. */
export class VariantInvalid extends Schema.TaggedError<VariantInvalid>()("VariantInvalid", {
  variant: Schema.String,
  needed: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot use attention "${this.variant}": it needs ${this.needed}: found ${this.found}`;
  }
}

/** A file cannot be opened, read, written, or is not what its name says. */
export class FileInvalid extends Schema.TaggedError<FileInvalid>()("FileInvalid", {
  attempted: Schema.String,
  file: Schema.String,
  needed: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot ${this.attempted} "${this.file}": ${this.needed}: found ${this.found}`;
  }
}

/** A folder is no model, or none that is known. */
export class ModelInvalid extends Schema.TaggedError<ModelInvalid>()("ModelInvalid", {
  model: Schema.String,
  needed: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot use model "${this.model}": ${this.needed}: found ${this.found}`;
  }
}

/** Keys and values of a text could not be kept, or are not as they were. */
export class CacheUnusable extends Schema.TaggedError<CacheUnusable>()("CacheUnusable", {
  cache: Schema.String,
  attempted: Schema.String,
  rank: Schema.Number,
  reason: Schema.String,
}) {
  override get message() {
    return `Cannot ${this.attempted} cache ${this.cache} with rank ${this.rank}: ${this.reason}`;
  }
}

/** A model could not be fetched, or is not what the server says. */
export class DownloadFailed extends Schema.TaggedError<DownloadFailed>()("DownloadFailed", {
  name: Schema.String,
  file: Schema.String,
  needed: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot fetch "${this.file}" of model "${this.name}": ${this.needed}: found ${this.found}`;
  }
}

/** The device asked for does not exist here. A named device is never replaced by another. */
export class DeviceUnavailable
  extends Schema.TaggedError<DeviceUnavailable>()("DeviceUnavailable", {
    device: Schema.String,
    needed: Schema.String,
    found: Schema.String,
  }) {
  override get message() {
    return `Cannot use device "${this.device}": it needs ${this.needed}: found ${this.found}`;
  }
}

/** A device that was there gave up in the middle of its work. */
export class DeviceFailed extends Schema.TaggedError<DeviceFailed>()("DeviceFailed", {
  device: Schema.String,
  attempted: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot ${this.attempted} on device "${this.device}": ${this.found}`;
  }
}

/** A link lost, doubled or reordered frames, or stayed silent beyond its deadline. */
export class LinkFailed extends Schema.TaggedError<LinkFailed>()("LinkFailed", {
  run: Schema.String,
  self: Schema.String,
  peer: Schema.String,
  needed: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot go on with the link from ${this.self} to ${this.peer} in run ${this.run}: it needs ${this.needed}: found ${this.found}`;
  }
}

/** The peer left the link, with the reason it gave. */
export class LinkClosed extends Schema.TaggedError<LinkClosed>()("LinkClosed", {
  run: Schema.String,
  self: Schema.String,
  peer: Schema.String,
  /** It left because all was done. */
  done: Schema.Boolean,
  reason: Schema.String,
}) {
  override get message() {
    return `Cannot go on with the link from ${this.self} to ${this.peer} in run ${this.run}: ${this.peer} left: ${this.reason}`;
  }
}

/** A frame arrived that is not the one the plan says comes next, or whose bytes changed on the way. */
export class FrameRejected extends Schema.TaggedError<FrameRejected>()("FrameRejected", {
  run: Schema.String,
  peer: Schema.String,
  what: Schema.String,
  field: Schema.String,
  needed: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot take a frame of ${this.what} from ${this.peer} in run ${this.run}: its ${this.field} must be ${this.needed}: found ${this.found}`;
  }
}

/** A (query shard, block) pair was about to be merged twice, or was never merged. */
export class MergeViolation extends Schema.TaggedError<MergeViolation>()("MergeViolation", {
  rank: Schema.Number,
  block: Schema.Number,
  times: Schema.Number,
}) {
  override get message() {
    return `Cannot return rank ${this.rank}'s result: block ${this.block} must be merged exactly once: found ${this.times} times`;
  }
}

/** A NaN or an infinity appeared where every input was finite. */
export class NonFinite extends Schema.TaggedError<NonFinite>()("NonFinite", {
  device: Schema.String,
  rank: Schema.Number,
  tensor: Schema.String,
  index: Schema.Number,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot return "${this.tensor}" of rank ${this.rank}: device "${this.device}" must give finite numbers: found ${this.found} at element ${this.index}; scores or sums of values beyond the range of float32 do this`;
  }
}

/** The finished result was compared with the float64 reference and is too far from it. */
export class NotExact extends Schema.TaggedError<NotExact>()("NotExact", {
  what: Schema.String,
  needed: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot vouch for ${this.what}: the error against the float64 reference must be at most ${this.needed}: found ${this.found}`;
  }
}

/** No NATS server answers at this address, or none could be started. */
export class ServerUnavailable
  extends Schema.TaggedError<ServerUnavailable>()("ServerUnavailable", {
    url: Schema.String,
    needed: Schema.String,
    found: Schema.String,
  }) {
  override get message() {
    return `Cannot use the NATS server "${this.url}": it needs ${this.needed}: found ${this.found}`;
  }
}

/** Nobody can listen there. */
export class PortUnavailable extends Schema.TaggedError<PortUnavailable>()("PortUnavailable", {
  address: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot serve at ${this.address}: it must be an address of this machine with a free port: found ${this.found}`;
  }
}

/** Fewer nodes wait in the cluster than the ring has ranks. */
export class NotEnoughNodes extends Schema.TaggedError<NotEnoughNodes>()("NotEnoughNodes", {
  cluster: Schema.String,
  url: Schema.String,
  /** The device asked for, or `auto`. */
  device: Schema.String,
  needed: Schema.Number,
  found: Schema.Number,
  busy: Schema.Number,
}) {
  override get message() {
    const idle = this.device === "auto" ? "idle nodes" : `idle nodes with device "${this.device}"`;
    const busy = this.busy === 0 ? "" : ` (${this.busy} more are busy)`;
    return `Cannot form a ring of ${this.needed} in cluster "${this.cluster}" at ${this.url}: it needs ${this.needed} ${idle}: found ${this.found}${busy}; start some with \`annulus node --nats nats://${this.url} --cluster ${this.cluster}\``;
  }
}

/** The server does not let a member speak or listen where its cluster does. */
export class NotPermitted extends Schema.TaggedError<NotPermitted>()("NotPermitted", {
  cluster: Schema.String,
  attempted: Schema.String,
  found: Schema.String,
}) {
  override get message() {
    return `Cannot ${this.attempted} in cluster "${this.cluster}": the server must let this member speak and listen there: found ${this.found}; --cluster must be the one that its certificates were made for`;
  }
}

/** Two members of a run are of different annulus versions. */
export class VersionMismatch extends Schema.TaggedError<VersionMismatch>()("VersionMismatch", {
  node: Schema.String,
  has: Schema.String,
  needed: Schema.String,
}) {
  override get message() {
    return `Cannot use node ${this.node}: it must run annulus ${this.needed}, as the driver does: found ${this.has}; update the older of the two`;
  }
}

/** A node declined a job. */
export class NodeRefused extends Schema.TaggedError<NodeRefused>()("NodeRefused", {
  node: Schema.String,
  reason: Schema.String,
}) {
  override get message() {
    return `Cannot give a rank to node ${this.node}: ${this.reason}`;
  }
}

/** A rank ended with an error; the sentence is the rank's own. */
export class RankFailed extends Schema.TaggedError<RankFailed>()("RankFailed", {
  rank: Schema.Number,
  node: Schema.String,
  tag: Schema.String,
  reason: Schema.String,
}) {
  override get message() {
    return `Rank ${this.rank} (${this.node}) failed: ${this.reason}`;
  }
}

/** What a link can fail with. */
export type LinkError = LinkFailed | LinkClosed;
