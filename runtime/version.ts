/**
 * The version of annulus, from `deno.json`. Members of one run must agree on it: they compute the plan each for
 * themselves, and the plan is what fixes the sizes and the order of everything on the wire.
 *
 * @module
 */
import config from "../deno.json" with { type: "json" };

/** For example `0.1.0`. */
export const version: string = config.version;
