/**
 * The attention variants that come with annulus, each in a file of its own. Variants compose: a run takes a list of them.
 *
 * @module
 */
import type { Definition } from "../runtime/variant.ts";
import alibi, { alibiSlopes } from "./attention/alibi.ts";
import bidirectional from "./attention/bidirectional.ts";
import blocks from "./attention/blocks.ts";
import causal from "./attention/causal.ts";
import chunked from "./attention/chunked.ts";
import dilated from "./attention/dilated.ts";
import documents from "./attention/documents.ts";
import logN from "./attention/log_n.ts";
import prefix from "./attention/prefix.ts";
import sinkWindow from "./attention/sink_window.ts";
import sinks from "./attention/sinks.ts";
import softcap from "./attention/softcap.ts";
import strided from "./attention/strided.ts";
import temperature from "./attention/temperature.ts";
import window from "./attention/window.ts";

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
};

/** All of them. */
export const definitions: ReadonlyArray<Definition> = [
  alibi,
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
].map(({ definition }) => definition);
