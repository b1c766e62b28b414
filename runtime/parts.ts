/**
 * The parts port: where ranks keep their parts of a text's keys and values beyond the process, so that another one goes on
 * from there. Each rank has its own place; what belongs together has one name.
 *
 * @module
 */
import { Context, type Effect, Schema } from "effect";
import type { Cache, CacheShape } from "./cache.ts";
import type { FileInvalid } from "./errors.ts";

/** What parts that belong together are called: nothing that could be a path. */
export const PartsName = Schema.String.check(Schema.isPattern(/^[0-9a-f]{16}-[0-9a-f]{8}$/));

/** A part, of as many as the ring had ranks. */
export interface PartName {
  readonly name: string;
  readonly part: number;
}

/** What a part says of itself. */
export interface PartHead extends PartName {
  readonly ring: number;
  /** Of the model's files, with the window that its layers were given, if any. */
  readonly model: string;
  readonly shape: CacheShape;
  /** Tokens in it. */
  readonly tokens: number;
}

/** A part that was kept. */
export interface KeptPart {
  /** CRC-32 of all of it. */
  readonly sum: number;
  readonly bytes: number;
}

/** Where a member keeps parts. */
export class Parts extends Context.Service<Parts, {
  /** All that are there. */
  readonly there: Effect.Effect<ReadonlyArray<PartName>>;
  readonly keep: (head: PartHead, cache: Cache) => Effect.Effect<KeptPart, FileInvalid>;
  /** Fills a cache with the first tokens of a part, as many as it has, and fails where any byte of it is not as it was. */
  readonly read: (head: PartHead, sum: number, cache: Cache) => Effect.Effect<void, FileInvalid>;
  readonly forget: (name: string) => Effect.Effect<void>;
}>()("annulus/runtime/Parts") {}
