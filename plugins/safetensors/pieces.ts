/**
 * Pieces: the reads and writes that move the regions of a tensor. A long region becomes several of them, many short
 * ones become one that covers them and what lies between.
 *
 * The file calls are the synchronous ones. A file has one position, so that seeking and reading must not be torn
 * apart by another fiber; and a synchronous pair of calls takes 2 µs, an asynchronous one 180 µs, for every row of a
 * striped shard. Other fibers run after every few MiB.
 *
 * @module
 */
import { Effect, Result } from "effect";
import { FileInvalid } from "../../runtime/errors.ts";
import type { Region } from "../../runtime/region.ts";
import { knownDtypes, quoted, type SafetensorsTensor } from "./header.ts";

/** The most bytes that one read or write moves. */
export const pieceBytes = 4 * 2 ** 20;

/** What a call costs, in bytes that could have been moved instead. */
const callBytes = 4096;

/** The bytes `begin` … `end − 1`, from the begin of the file. */
interface Range {
  readonly begin: number;
  readonly end: number;
}

/** A range and the place of its first byte among the caller's bytes. */
interface Part extends Range {
  readonly packed: number;
}

/** One read or write of the bytes `begin` … `end − 1`, which cover all the parts. */
export interface Piece {
  begin: number;
  end: number;
  readonly parts: Array<Part>;
}

/** Whether ranges that lie in one of `span` bytes, `bytes` of them in `count` parts, had better be one piece. */
type Worth = (span: number, bytes: number, count: number) => boolean;

/** A reader fetches up to 16 times what it needs: the rest is soon wanted for another shard. */
export const worthReading: Worth = (span, bytes) => span <= 16 * bytes;

/** A writer fetches and rewrites what lies between the parts where that is cheaper than a call for each part. */
export const worthRewriting: Worth = (span, _, count) => span <= callBytes * count;

/** The bytes of a tensor's regions, when all of them lie within the tensor. */
export const rangesOf = (
  attempted: string,
  file: string,
  { name, dtype, elements, elementBytes, begin }: SafetensorsTensor,
  regions: Iterable<Region>,
): Result.Result<{ ranges: ReadonlyArray<Range>; bytes: number }, FileInvalid> => {
  const refuse = (needed: string, found: string) =>
    Result.fail(new FileInvalid({ attempted, file, needed, found }));
  if (elementBytes === undefined) {
    const needed = `tensor ${quoted(name)} must have one of ${knownDtypes.join(", ")} as dtype`;
    return refuse(needed, quoted(dtype));
  }
  const ranges: Array<Range> = [];
  let bytes = 0;
  for (const { offset, length } of regions) {
    const sound = Number.isSafeInteger(offset) && Number.isSafeInteger(length) &&
      offset >= 0 && length >= 0 && offset + length <= elements;
    if (!sound) {
      const needed = `the ${elements} elements of tensor ${quoted(name)} must hold every region`;
      return refuse(needed, `${length} elements from ${offset} on`);
    }
    const from = begin + offset * elementBytes;
    ranges.push({ begin: from, end: from + length * elementBytes });
    bytes += length * elementBytes;
  }
  return Result.succeed({ ranges, bytes });
};

/** The pieces that move `ranges`, in their order. */
export function* pieces(ranges: Iterable<Range>, worth: Worth): Generator<Piece> {
  let last: Piece = { begin: 0, end: 0, parts: [] };
  let bytes = 0;
  let packed = 0;
  for (const range of ranges) {
    for (let at = range.begin; at < range.end; at += pieceBytes) {
      const part = { begin: at, end: Math.min(at + pieceBytes, range.end), packed };
      const length = part.end - part.begin;
      packed += length;
      const begin = Math.min(last.begin, part.begin);
      const end = Math.max(last.end, part.end);
      const count = last.parts.length;
      if (
        count > 0 && end - begin <= pieceBytes && worth(end - begin, bytes + length, count + 1)
      ) {
        last.begin = begin;
        last.end = end;
        last.parts.push(part);
        bytes += length;
      } else {
        if (count > 0) yield last;
        last = { begin: part.begin, end: part.end, parts: [part] };
        bytes = length;
      }
    }
  }
  if (last.parts.length > 0) yield last;
}

/** Copies `length` bytes between buffers. A view costs more than a few bytes do. */
export const copy = (
  from: Uint8Array,
  at: number,
  length: number,
  into: Uint8Array,
  to: number,
): void => {
  if (length > 32) into.set(from.subarray(at, at + length), to);
  else for (let i = 0; i < length; i++) into[to + i] = from[at + i]!;
};

/** Moves the pieces, a few MiB at a time, between which other fibers run. */
export const move = (
  work: Iterator<Piece>,
  one: (piece: Piece) => void,
  failed: (cause: unknown) => FileInvalid,
): Effect.Effect<void, FileInvalid> => {
  /** Whether there is more to do. */
  const some = () => {
    for (let moved = 0; moved < pieceBytes;) {
      const next = work.next();
      if (next.done === true) return false;
      one(next.value);
      moved += next.value.end - next.value.begin + callBytes;
    }
    return true;
  };
  return Effect.gen(function* () {
    while (yield* Effect.try({ try: some, catch: failed })) yield* Effect.yieldNow;
  });
};

/** Fills `into` from byte `at` of the file on. */
export const readAt = (file: Deno.FsFile, at: number, into: Uint8Array): void => {
  file.seekSync(at, Deno.SeekMode.Start);
  for (let done = 0; done < into.length;) {
    const read = file.readSync(into.subarray(done));
    if (read === null) throw new Deno.errors.UnexpectedEof(`its end after ${at + done} bytes`);
    done += read;
  }
};

/** Writes all of `bytes` from byte `at` of the file on. */
export const writeAt = (file: Deno.FsFile, at: number, bytes: Uint8Array): void => {
  file.seekSync(at, Deno.SeekMode.Start);
  for (let done = 0; done < bytes.length;) {
    const written = file.writeSync(bytes.subarray(done));
    if (written === 0) throw new Deno.errors.WriteZero("a device that takes no more bytes");
    done += written;
  }
};

/** What the system said, without the name of the file, which the sentence has already. */
export const reasonOf = (cause: unknown): string =>
  cause instanceof Error ? cause.message.replace(/: \w+ '.*$/s, "") : String(cause);
