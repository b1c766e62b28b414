/**
 * Paths of this project's own files.
 *
 * @module
 */
import { fileURLToPath } from "node:url";

/** The path of a `file:` URL, without a slash at its end. */
export const fromFileUrl = (url: URL): string => fileURLToPath(url).replace(/[/\\]$/, "");
