/**
 * Parts of texts' keys and values as files: of each layer the keys, then the values.
 *
 * @module
 */
import { Effect, Layer, Result, Schema } from "effect";
import type { Cache } from "../../runtime/cache.ts";
import { dtypes } from "../../runtime/dtype.ts";
import { tokenBytesOf } from "../../runtime/cache.ts";
import { FileInvalid } from "../../runtime/errors.ts";
import { type PartHead, Parts, PartsName } from "../../runtime/parts.ts";
import { pieceBytes, readSealed, reasonOf } from "../sealed.ts";
import { type CacheFolder, keptIn, partFile } from "./cache_folder.ts";

/** What the keys and values of a model have the shape of. */
export const WrittenShape = Schema.Struct({
  layers: Schema.Natural,
  kvHeads: Schema.Natural,
  headDim: Schema.Natural,
  dtype: Schema.Literals([...dtypes]),
});
const Head = Schema.fromJsonString(Schema.Struct({
  annulus: Schema.Literal("cache part 1"),
  name: PartsName,
  part: Schema.Natural,
  ring: Schema.Natural,
  model: Schema.String,
  shape: WrittenShape,
  tokens: Schema.Natural,
}));
const [encodeHead, decodeHead] = [Schema.encodeSync(Head), Schema.decodeUnknownResult(Head)];
const longestHead = 4096;

const written = ({ name, part, ring, model, shape, tokens }: PartHead): string => {
  const { layers, kvHeads, headDim, dtype } = shape;
  return encodeHead({
    ...{ annulus: "cache part 1", name, part, ring, model, tokens },
    shape: { layers, kvHeads, headDim, dtype },
  });
};

/** The memory of a cache behind one another, in memory that a file call may have. */
const piecesOf = function* (cache: Cache, layers: number): Generator<Uint8Array> {
  const piece = new Uint8Array(pieceBytes);
  for (let layer = 0; layer < layers; layer++) {
    for (const memory of cache.memory(layer).flat()) {
      for (let at = 0; at < memory.length; at += pieceBytes) {
        const part = memory.subarray(at, at + pieceBytes);
        piece.set(part);
        yield piece.subarray(0, part.length);
      }
    }
  }
};

/** Puts bytes of a part that has so many tokens, as they come, where a cache has them, which may have fewer. */
const filling = (cache: Cache, { shape, tokens }: PartHead) => {
  const half = tokens * tokenBytesOf(shape) / shape.layers / 2;
  const places: Array<{ readonly at: number; readonly memory: Uint8Array }> = [];
  for (let layer = 0; layer < shape.layers; layer++) {
    for (const [i, memories] of cache.memory(layer).entries()) {
      let at = (2 * layer + i) * half;
      for (const memory of memories) {
        places.push({ at, memory });
        at += memory.length;
      }
    }
  }
  let next = 0;
  return (bytes: Uint8Array, at: number) => {
    const end = at + bytes.length;
    for (; next < places.length; next++) {
      const { at: begin, memory } = places[next]!;
      if (begin >= end) return;
      const [from, to] = [Math.max(begin, at), Math.min(begin + memory.length, end)];
      memory.set(bytes.subarray(from - at, to - at), from - begin);
      if (begin + memory.length > end) return;
    }
  };
};

/** Whether a part's file is whole, and what it says of itself; throws what is wrong with it. */
export const checkPart = async (
  path: string,
  body?: (head: PartHead) => (bytes: Uint8Array, at: number) => void,
): Promise<PartHead & { readonly sum: number }> => {
  let head: PartHead | undefined;
  let fill: ReturnType<typeof filling> | undefined;
  const { sum } = await readSealed(path, {
    longestHead,
    head: (line) => {
      const found = decodeHead(line);
      if (Result.isFailure(found)) throw new Error("it does not begin as a cache's part does");
      head = found.success;
      fill = body?.(head);
      return head.tokens * tokenBytesOf(head.shape);
    },
    body: (bytes, at) => fill?.(bytes, at),
  });
  return { ...head!, sum };
};

/** Keeps parts in a folder. */
export const partsIn = (folder: CacheFolder): Layer.Layer<Parts> =>
  Layer.succeed(
    Parts,
    Parts.of({
      there: Effect.promise(async () =>
        // A folder that was taken away has none.
        (await keptIn(folder.path).catch(() => [])).flatMap(({ name, parts }) =>
          parts.map((part) => ({ name, part }))
        )
      ),
      keep: Effect.fnUntraced(function* (head, cache) {
        const path = folder.pathOf(head.name, partFile(head.part));
        yield* Effect.tryPromise({
          try: () => folder.makeRoom(cache.bytes, head.name),
          catch: (cause) =>
            new FileInvalid({
              ...{ attempted: "write", file: path, needed: "there must be room for it" },
              found: reasonOf(cause),
            }),
        });
        const pieces = piecesOf(cache, head.shape.layers);
        return yield* folder.write(head.name, partFile(head.part), written(head), pieces);
      }),
      read: (head, sum, cache) => {
        const path = folder.pathOf(head.name, partFile(head.part));
        return Effect.tryPromise({
          try: async () => {
            const found = await checkPart(path, (own) => {
              if (written(own) !== written(head)) {
                throw new Error("it is of another text, model, format or ring");
              }
              return filling(cache, head);
            });
            if (found.sum !== sum) throw new Error("it is not the one that was kept with the rest");
            await folder.touch(head.name);
          },
          catch: (cause) =>
            new FileInvalid({
              ...{ attempted: "read", file: path, needed: "it must be as it was kept" },
              found: cause instanceof Deno.errors.NotFound ? "no such file" : reasonOf(cause),
            }),
        });
      },
      forget: (name) => Effect.promise(() => folder.remove(name)),
    }),
  );
