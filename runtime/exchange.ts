/**
 * What the driver and a rank exchange: the rank's shard on its way out, and its rows of the result on their way home. It
 * streams, so that a driver never holds more of a tensor than a few chunks a rank.
 *
 * @module
 */
import { Context, Effect } from "effect";
import { type Checkpoint, type Checkpoints, keepRows } from "./checkpoint.ts";
import { decode, type DType, elementBytes, encode, firstNonFinite } from "./dtype.ts";
import { type FileInvalid, TensorInvalid } from "./errors.ts";
import type { Job } from "./job.ts";
import { upRowsOf, widthOf } from "./latent.ts";
import type { Link } from "./link.ts";
import { manifestOf } from "./manifest.ts";
import { type BlockPlan, type Plan, type RankPlan, valueDimOf } from "./plan.ts";
import { type Region, regions, type TokenArray } from "./region.ts";
import { contiguous, type Span } from "./span.ts";
import type { Standing } from "./standing.ts";
import { receive, send } from "./transfer.ts";

/**
 * Tensors that a driver reads. `do` is the cotangent of o. In place of k and v there may be `latent`, which travels
 * [batch, tokens, rank + rope], and `kv_b`, which makes them of it: [heads, headDim − rope + value, rank].
 */
export const inputs = ["q", "k", "v", "do", "latent", "kv_b"] as const;
/** One of them. */
export type Input = typeof inputs[number];
/** Tensors that it writes, all float32: the last three for gradients. */
export const outputs = ["o", "lse", "dq", "dk", "dv"] as const;
/** One of them. */
export type Output = typeof outputs[number];

/** Where inputs come from. Element regions refer to a whole tensor. */
export class Source extends Context.Service<Source, {
  /** For sentences: a path, or a name. */
  readonly name: string;
  /** Of tensors that there are. */
  readonly dtypes: Readonly<Record<Input, DType>>;
  /** The bytes of these regions, one after the other, in the tensor's own format. */
  readonly read: (
    tensor: Input,
    regions: ReadonlyArray<Region>,
  ) => Effect.Effect<Uint8Array, FileInvalid>;
}>()("annulus/runtime/Source") {}

/** Where results go: `lse` is [batch, heads, tokens], the others are shaped as their tensors. */
export class Sink extends Context.Service<Sink, {
  readonly write: (
    tensor: Output,
    regions: ReadonlyArray<Region>,
    bytes: Uint8Array,
  ) => Effect.Effect<void, FileInvalid>;
}>()("annulus/runtime/Sink") {}

const shapes = ({ problem }: Job) => {
  const { batch, tokens, heads, kvHeads, headDim } = problem;
  return {
    q: { outer: batch, tokens, inner: heads * headDim },
    k: { outer: batch, tokens, inner: kvHeads * headDim },
    o: { outer: batch, tokens, inner: heads * valueDimOf(problem) },
    lse: { outer: batch * heads, tokens, inner: 1 },
  };
};

/** Which element of the whole tensor is the `index`-th of some regions. */
const elementAt = (where: ReadonlyArray<Region>, index: number): number => {
  let before = 0;
  for (const { offset, length } of where) {
    if (index < before + length) return offset + index - before;
    before += length;
  }
  throw new Error(`element ${index} is in none of ${where.length} regions`);
};

/** Reads elements of a shard from the source, refuses what is not finite, and gives them in the format to travel in. */
export const reader = (source: Source["Service"], job: Job) =>
  Effect.fnUntraced(function* (
    tensor: Input,
    whole: TokenArray,
    spans: ReadonlyArray<Span>,
    from: number,
    to: number,
  ) {
    const own = source.dtypes[tensor];
    const travels = tensor === "q"
      ? job.dtype
      : tensor === "do" || tensor === "kv_b"
      ? "f32"
      : job.wire;
    const where = [...regions(whole, spans, from, to)];
    const bytes = yield* source.read(tensor, where);
    const invalid = (needed: string, index: number) => {
      const size = elementBytes(own);
      const [found] = decode(own, bytes.subarray(index * size, (index + 1) * size));
      return new TensorInvalid({
        file: source.name,
        tensor,
        needed,
        found: `${found} at element ${elementAt(where, index)}`,
      });
    };
    const bad = firstNonFinite(own, bytes);
    if (bad >= 0) return yield* invalid("finite everywhere", bad);
    if (own === travels) return bytes;
    const converted = encode(travels, decode(own, bytes));
    const overflow = firstNonFinite(travels, converted);
    if (overflow >= 0) {
      return yield* invalid(`within the range of ${travels} to travel in it`, overflow);
    }
    return converted;
  });

/** Sends one rank what it lacks of what makes keys and values of latents, its queries, its K/V blocks and dO. */
export const deliver = Effect.fnUntraced(function* (
  job: Job,
  plan: Plan,
  mine: RankPlan,
  { loaded }: Standing,
  checkpoint: Checkpoint | undefined,
  link: Link,
  read: ReturnType<typeof reader>,
) {
  const manifest = manifestOf(job);
  const { q, k } = shapes(job);
  const qBytes = elementBytes(job.dtype), kvBytes = elementBytes(job.wire);
  const { latent, batch, tokens, heads } = job.problem;
  if (latent !== undefined && !loaded) {
    const rows = heads * upRowsOf(latent, job.problem);
    const whole = { outer: 1, tokens: rows, inner: latent.rank };
    yield* send(
      link,
      manifest.up(mine),
      (from, to) => read("kv_b", whole, [contiguous(0, rows)], from / 4, to / 4),
    );
  }
  if (!loaded) {
    yield* send(
      link,
      manifest.queries(mine),
      (from, to) => read("q", q, mine.shard, from / qBytes, to / qBytes),
    );
  }
  if (checkpoint !== undefined) {
    const { o, lse } = manifest.restored(mine);
    yield* send(link, o, (from, to) => checkpoint.read("o", from, to));
    yield* send(link, lse, (from, to) => checkpoint.read("lse", from, to));
  }
  const blockPart = (block: BlockPlan) => (from: number, to: number) => {
    if (latent !== undefined) {
      const whole = { outer: batch, tokens, inner: widthOf(latent) };
      return read("latent", whole, [block.span], from / kvBytes, to / kvBytes);
    }
    const half = block.bytes / kvBytes / 2;
    const part = (tensor: "k" | "v", begin: number, end: number) =>
      begin < end ? read(tensor, k, [block.span], begin, end) : Effect.succeed(new Uint8Array(0));
    const [first, last] = [from / kvBytes, to / kvBytes];
    return Effect.map(
      Effect.all([
        part("k", first, Math.min(last, half)),
        part("v", Math.max(first - half, 0), last - half),
      ]),
      ([keys, values]) => {
        if (values.length === 0) return keys;
        if (keys.length === 0) return values;
        const both = new Uint8Array(keys.length + values.length);
        both.set(keys);
        both.set(values, keys.length);
        return both;
      },
    );
  };
  for (const block of plan.blocks.filter(({ home }) => home === mine.rank && !loaded)) {
    yield* send(link, manifest.home(block), blockPart(block));
  }
  if (!job.gradients) return;
  yield* send(
    link,
    manifest.cotangent(mine),
    (from, to) => read("do", q, mine.shard, from / 4, to / 4),
  );
});

/** Writes what comes of a tensor of some tokens, in its own order. */
const writer =
  (sink: Sink["Service"]) =>
  (tensor: Output, whole: TokenArray, spans: ReadonlyArray<Span>) =>
  (from: number, payload: Uint8Array): Effect.Effect<void, FileInvalid> => {
    if (payload.byteLength === 0) return Effect.void;
    const where = regions(whole, spans, from / 4, (from + payload.byteLength) / 4);
    return sink.write(tensor, [...where], payload);
  };

/** Takes one rank's result. */
export const collect = Effect.fnUntraced(function* (
  job: Job,
  plan: Plan,
  mine: RankPlan,
  link: Link,
  sink: Sink["Service"],
  checkpoints: Checkpoints | undefined,
) {
  const manifest = manifestOf(job);
  const { q, k, o, lse } = shapes(job);
  const into = writer(sink);
  // For gradients a rank needs more than these rows.
  const keeping = job.gradients ? undefined : yield* keepRows(checkpoints, mine);
  const both = (write: ReturnType<typeof into>) => (from: number, payload: Uint8Array) =>
    Effect.andThen(write(from, payload), keeping?.write(payload) ?? Effect.void);
  yield* receive(link, manifest.o(mine), both(into("o", o, mine.shard)));
  yield* receive(link, manifest.lse(mine), both(into("lse", lse, mine.shard)));
  yield* keeping?.commit ?? Effect.void;
  if (!job.gradients) return;
  yield* receive(link, manifest.dq(mine), into("dq", q, mine.shard));
  for (const block of plan.blocks.filter(({ home }) => home === mine.rank)) {
    const [dk, dv] = [into("dk", k, [block.span]), into("dv", k, [block.span])];
    const half = block.gradientBytes / 2;
    yield* receive(link, manifest.gradients(block), (from, payload) => {
      const ofK = Math.min(Math.max(half - from, 0), payload.byteLength);
      return Effect.andThen(
        dk(from, payload.subarray(0, ofK)),
        dv(from + ofK - half, payload.subarray(ofK)),
      );
    });
  }
}, Effect.scoped);

/** Takes one rank's result from where it was kept. */
export const collectKept = Effect.fnUntraced(function* (
  job: Job,
  mine: RankPlan,
  { read }: Checkpoint,
  sink: Sink["Service"],
) {
  const { restored } = manifestOf(job);
  const shape = shapes(job);
  for (const tensor of ["o", "lse"] as const) {
    const { bytes, chunkBytes } = restored(mine)[tensor];
    const write = writer(sink)(tensor, shape[tensor], mine.shard);
    for (let from = 0; from < bytes; from += chunkBytes) {
      yield* write(from, yield* read(tensor, from, Math.min(from + chunkBytes, bytes)));
    }
  }
});
