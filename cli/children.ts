/**
 * Nodes as child processes: each with its own device and its own connection, with no more permissions than it needs,
 * and gone when this process is.
 *
 * @module
 */
import { resolve } from "node:path";
import { Effect, type Scope } from "effect";
import { NodeRefused } from "../runtime/errors.ts";
import type { NodeCard } from "../runtime/membership.ts";
import { libraryName } from "../plugins/cpu/blas.ts";
import { prepareDriver } from "../plugins/webgpu/environment.ts";
import { tuningPath } from "../plugins/webgpu/tuning.ts";
import { findLibrary } from "../runtime/library.ts";
import { accessArguments, type AccessFlags } from "./access.ts";
import { eachLine } from "./lines.ts";
import { fromFileUrl } from "./paths.ts";

const mainModule = new URL("./main.ts", import.meta.url);
const project = new URL("..", import.meta.url);

/**
 * The Deno permissions of a node: its server, its own files, the facts about the machine that its card tells, and what
 * its device may need: OpenBLAS alone, or what was measured of the WebGPU kernel.
 *
 * @param server `host:port` of the NATS server.
 * @param files What else it reads: plugins, models, and the folder of its certificate.
 * @param folder Where it writes parts of texts, if anywhere.
 */
export const nodePermissions = (
  server: string,
  device: string,
  files: ReadonlyArray<string> = [],
  folder?: string,
): ReadonlyArray<string> => {
  const library = ["auto", "cpu"].includes(device) ? findLibrary(libraryName) : undefined;
  const tuning = ["auto", "webgpu"].includes(device) ? tuningPath() : undefined;
  const own = folder === undefined ? [] : [resolve(folder)];
  const read = [...files.map((file) => resolve(file)), ...own];
  const readable = [fromFileUrl(project), tuning, library, ...read]
    .filter((file) => file !== undefined);
  return [
    `--allow-net=${server}`,
    `--allow-read=${readable.join(",")}`,
    ...own.map((folder) => `--allow-write=${folder}`),
    "--allow-env",
    "--allow-sys",
    ...(library === undefined ? [] : [`--allow-ffi=${library}`]),
  ];
};

/** The variable by which a user tells OpenBLAS, and with it the `cpu` device, how many threads to use. */
const threadsVariable = "OPENBLAS_NUM_THREADS";

/** What nodes that share this machine are told of it: their part of its processors, unless the user decided. */
const environment = (nodes: number): Record<string, string> => {
  if (Deno.env.has(threadsVariable)) return {};
  const threads = Math.max(1, Math.floor(navigator.hardwareConcurrency / nodes));
  return { [threadsVariable]: String(threads) };
};

/** A node that runs as a child process. */
export interface Child {
  readonly pid: number;
  readonly card: NodeCard;
  /** Returns when the process ended, with the last line that it wrote to standard error. */
  readonly ended: Effect.Effect<string>;
}

/**
 * A node's heap is small and what it passes on is large. Where V8 expects no more than the heap to begin with, that sets
 * off a full collection every 20 ms, which takes half of the processor. The tasks of deno.json have the same.
 */
export const heapFlag = "--v8-flags=--initial-old-space-size=128";

/** Starts one of so many nodes on this machine, and returns when it waits for work. It ends with the scope. */
export const startNode = Effect.fn("startNode")(function* (
  url: string,
  cluster: string,
  { device, plugin, model = [], caches, ...access }: AccessFlags & {
    readonly device: string;
    readonly plugin: ReadonlyArray<string>;
    /** Folders of models. */
    readonly model?: ReadonlyArray<string>;
    /** Where it keeps parts of texts, and how many bytes of them. */
    readonly caches?: { readonly path: string; readonly limit: number } | undefined;
  },
  nodes: number,
): Effect.fn.Return<Child, NodeRefused, Scope.Scope> {
  // The node inherits what it is not allowed to find out.
  prepareDriver();
  const { host } = new URL(url.replace(/^nats:/, "http:"));
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "--no-prompt",
          heapFlag,
          `--config=${fromFileUrl(new URL("../deno.json", import.meta.url))}`,
          ...nodePermissions(host, device, [
            ...plugin,
            ...model,
            ...(access.tls === undefined ? [] : [access.tls]),
          ], caches?.path),
          fromFileUrl(mainModule),
          ...["node", "--nats", url, "--cluster", cluster, "--device", device],
          ...plugin.flatMap((file) => ["--plugin", file]),
          ...model.flatMap((folder) => ["--model", folder]),
          ...(caches === undefined
            ? []
            : ["--caches", caches.path, "--caches-limit", `${caches.limit}B`]),
          ...accessArguments(access),
          "--json",
          "--until-stdin-ends",
        ],
        env: environment(nodes),
        stdin: "piped",
        stdout: "piped",
        stderr: "piped",
        // Away from the terminal: Ctrl-C is for the driver, which then ends its nodes.
        detached: true,
      }).spawn()
    ),
    (child) =>
      Effect.promise(async () => {
        // The end of its input is the goodbye; the signals are for one that does not listen any more.
        const kill = setTimeout(() => child.kill("SIGKILL"), 8000);
        await child.stdin.close().catch(() => {});
        await child.status;
        clearTimeout(kill);
      }),
  );
  let lastWords = "";
  const errors = eachLine(child.stderr, (line) => void (lastWords = line.trim() || lastWords));
  const card = Promise.withResolvers<NodeCard>();
  const output = eachLine(child.stdout, (line) => {
    const said = JSON.parse(line);
    if (said.event === "waiting" && said.card !== undefined) card.resolve(said.card);
  });
  const ended = Promise.all([errors, output, child.status]).then(() => lastWords);
  const refused = (reason: string) => new NodeRefused({ node: `process ${child.pid}`, reason });
  return {
    pid: child.pid,
    ended: Effect.promise(() => ended),
    card: yield* Effect.raceFirst(
      Effect.promise(() => card.promise),
      Effect.flatMap(
        Effect.promise(() => ended),
        (words) => Effect.fail(refused(words.replace(/^annulus: /, "") || "it ended at once")),
      ),
    ).pipe(
      Effect.timeoutOrElse({
        duration: "60 seconds",
        orElse: () => Effect.fail(refused("it was not ready within 60 seconds")),
      }),
    ),
  };
});
