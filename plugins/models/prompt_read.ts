/**
 * How the tokens of a prompt came to be there.
 *
 * @module
 */
import type { Way } from "../../runtime/turn.ts";
import type { Said } from "./engine.ts";

/** What was there, and what was read. */
export interface PromptRead {
  readonly tokens: number;
  /** So many were there already. */
  readonly cached: number;
  readonly from: "memory" | "disk" | undefined;
  /** So many were read, while keys and values went around the ring or queries asked all ranks. */
  readonly ways: Readonly<Record<Way, number>>;
}

/** Hears how a prompt is read. */
export class PromptWatch implements PromptRead {
  #begin: Extract<Said, { readonly read: number }> | undefined;
  ways: PromptRead["ways"] = { ring: 0, star: 0 };

  see(said: Said): void {
    if (!("read" in said)) return;
    this.#begin ??= said;
    this.ways = said.ways ?? this.ways;
  }

  get tokens(): number {
    return this.#begin?.of ?? 0;
  }

  get cached(): number {
    return this.#begin?.read ?? 0;
  }

  get from(): PromptRead["from"] {
    return this.#begin?.from;
  }
}
