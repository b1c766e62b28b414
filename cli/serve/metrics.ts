/**
 * What a server counts and measures, for Prometheus.
 *
 * @module
 */
import { Metric } from "effect";

const seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900];

/** Requests by the status of their answers. */
export const requests = Metric.counter("annulus_requests", {
  description: "Requests that were answered",
});
export const promptTokens = Metric.counter("annulus_prompt_tokens", {
  description: "Tokens of prompts that were read",
});
export const saidTokens = Metric.counter("annulus_generated_tokens", {
  description: "Tokens that were said",
});
export const firstToken = Metric.histogram("annulus_time_to_first_token_seconds", {
  description: "From a request to its first token",
  boundaries: seconds,
});
export const betweenTokens = Metric.histogram("annulus_inter_token_latency_seconds", {
  description: "From a token of a text to its next one",
  boundaries: seconds,
});
export const hop = Metric.histogram("annulus_hop_seconds", {
  description:
    "How long a block took to a rank from its first part on, or an answer from its question on",
  boundaries: seconds,
});
export const linkBytes = Metric.counter("annulus_link_bytes", {
  description: "Bytes of blocks and answers that ranks received",
});
export const activeTexts = Metric.gauge("annulus_active_texts", {
  description: "Texts that grow or wait",
});
export const cacheTokens = Metric.gauge("annulus_cache_tokens", {
  description: "Tokens whose keys and values are held",
});
export const sessions = Metric.counter("annulus_sessions_lost", {
  description: "Sessions that ended and were begun anew",
});
