/**
 * What must not grow: memory of nodes by the steps that they did, and what they hold when they have nothing to do.
 *
 * @module
 */
import type { Life, Node, Server } from "./cluster.ts";

/** Steps and resident mebibytes of a process at one moment. */
export interface Sample {
  readonly steps: number;
  readonly mebibytes: number;
}

const sum = (values: ReadonlyArray<number>): number => values.reduce((a, b) => a + b, 0);
const mean = (values: ReadonlyArray<number>): number => sum(values) / values.length;

/**
 * Mebibytes for each 1,000 steps by least squares: one slope for all of these processes, each of which begins at a height
 * of its own. `error` is its standard error if samples were independent, which they are not quite.
 */
export const slopeOf = (
  processes: ReadonlyArray<ReadonlyArray<Sample>>,
): { readonly slope: number; readonly error: number } => {
  const points = processes.flatMap((samples) => {
    const x = mean(samples.map(({ steps }) => steps / 1000));
    const y = mean(samples.map(({ mebibytes }) => mebibytes));
    return samples.map(({ steps, mebibytes }) => [steps / 1000 - x, mebibytes - y] as const);
  });
  const spread = sum(points.map(([x]) => x * x));
  const slope = sum(points.map(([x, y]) => x * y)) / spread;
  const rest = sum(points.map(([x, y]) => (y - slope * x) ** 2));
  return { slope, error: Math.sqrt(rest / (points.length - processes.length - 1) / spread) };
};

/**
 * The least of each `window` samples: between two collections of garbage memory grows and falls, and what is held is what
 * is there at the lowest.
 */
export const floorsOf = (samples: ReadonlyArray<Sample>, window: number): ReadonlyArray<Sample> =>
  Array.from(
    { length: Math.floor(samples.length / window) },
    (_, i) =>
      samples.slice(i * window, (i + 1) * window)
        .reduce((a, b) => b.mebibytes < a.mebibytes ? b : a),
  );

const residentMiB = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(Deno.readTextFileSync(`/proc/${pid}/status`))?.[1] ?? NaN) / 1024;
const openFiles = (pid: number): number => [...Deno.readDirSync(`/proc/${pid}/fd`)].length;

/** Looks at the memory of nodes every second, in all of their lives. */
export class Memory implements Disposable {
  readonly lives = new Map<Life, Array<Sample>>();
  readonly #timer: ReturnType<typeof setInterval>;

  /** @param stepsOfRank Blocks that are merged for a rank of a layer. */
  constructor(nodes: ReadonlyArray<Node>, stepsOfRank: number) {
    this.#timer = setInterval(() => {
      for (const { life, pid, gone } of nodes) {
        if (gone) continue;
        const samples = this.lives.get(life) ?? [];
        this.lives.set(life, samples);
        const mebibytes = residentMiB(pid);
        // It has none when it is just ending.
        if (mebibytes > 0) samples.push({ steps: life.ranks * stepsOfRank, mebibytes });
      }
    }, 1000);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

/** What nodes hold. */
export interface Holdings {
  /** By node: connections to the server, and subjects that it listens to over them. */
  readonly connections: ReadonlyArray<number>;
  readonly subscriptions: ReadonlyArray<number>;
  /** By node. */
  readonly descriptors: ReadonlyArray<number>;
  /** By node: processes that it started. */
  readonly children: ReadonlyArray<number>;
  /** All that anybody listens to at the server. */
  readonly subjects: number;
}

/** What nodes hold now. */
export const holdingsOf = async (
  server: Server,
  nodes: ReadonlyArray<Node>,
): Promise<Holdings> => {
  const { byPort, all } = await server.subscriptions();
  return {
    connections: nodes.map(({ way }) => way.ports.length),
    subscriptions: nodes.map(({ way }) => sum(way.ports.map((port) => byPort.get(port) ?? 0))),
    descriptors: nodes.map(({ pid }) => openFiles(pid)),
    children: nodes.map(({ life }) => life.process.descendants().size),
    subjects: all,
  };
};

/** What is more than it was, in sentences. Nodes are alike: one may have what any of them had. */
export const grown = (was: Holdings, is: Holdings): ReadonlyArray<string> =>
  Object.entries(was).flatMap(([what, before]: [string, number | ReadonlyArray<number>]) => {
    const after = is[what as keyof Holdings];
    const most = Math.max(...[before].flat());
    return [after].flat().every((count) => count <= most)
      ? []
      : [`${what} grew: ${[before].flat().join(", ")} before, ${[after].flat().join(", ")} after`];
  });
