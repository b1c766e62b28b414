/**
 * `deno task wan`: a ring whose nodes are at two sites, with a slow and lossy way between them: 40 ms there and back,
 * 3 ms of jitter, and one packet in two hundred lost. No node may be taken for lost, the result has the bits of a run
 * in one process, and enough compute hides the way. Needs root, for network namespaces of its own.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { fromFileUrl } from "../cli/paths.ts";
import { annulus, scratch } from "./support/cli.ts";
import { normals } from "./support/random.ts";
import { fileOfTensors } from "./support/tensors.ts";

const root = fromFileUrl(new URL("..", import.meta.url));
const cluster = "wan";
const sites = ["near", "far"].map((name) => `annulus-${Deno.pid}-${name}`) as [string, string];
const url = "nats://10.99.0.1:4222";
const [tokens, heads, headDim, ring] = [Number(Deno.args[0] ?? 8192), 2, 64, 4];
const [delay, jitter, loss] = [18.5, 3, 0.005];

const ip = (...args: ReadonlyArray<string>) => {
  const { success, stderr } = new Deno.Command("ip", { args: [...args] }).outputSync();
  if (!success) throw new Error(`ip ${args.join(" ")}: ${new TextDecoder().decode(stderr).trim()}`);
};

/** A process, and the lines that it says. */
class Helper {
  readonly #child: Deno.ChildProcess;
  readonly #lines: ReadableStreamDefaultReader<string>;
  #text = "";

  constructor(command: string, args: ReadonlyArray<string>) {
    this.#child = new Deno.Command(command, {
      args: [...args],
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    this.#lines = this.#child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  }

  async says(pattern: RegExp): Promise<string> {
    for (;;) {
      const found = pattern.exec(this.#text);
      if (found !== null) return found[0];
      const { done, value } = await this.#lines.read();
      if (done) throw new Error(`it ended without ${pattern}: ${this.#text}`);
      this.#text += value;
    }
  }

  /** Ends it, and gives the last line that it said. */
  async end(signal?: Deno.Signal): Promise<string> {
    await this.#child.stdin.close().catch(() => {});
    if (signal !== undefined) this.#child.kill(signal);
    for (;;) {
      const { done, value } = await this.#lines.read();
      if (done) break;
      this.#text += value;
    }
    await this.#child.status;
    return this.#text.trim().split("\n").at(-1)!;
  }
}

const annulusAt = (site: string, ...args: ReadonlyArray<string>) =>
  new Helper("ip", [
    ...["netns", "exec", site, Deno.execPath(), "run", "-A", `--config=${root}/deno.json`],
    ...[`${root}/cli/main.ts`, ...args],
  ]);

await using folder = await scratch();
await using stack = new AsyncDisposableStack();
for (const site of sites) {
  ip("netns", "add", site);
  stack.defer(() => ip("netns", "delete", site));
  ip("-n", site, "link", "set", "lo", "up");
}
const relay = new Helper(Deno.execPath(), [
  ...["run", "-A", `${root}/tests/support/relay.ts`],
  ...[...sites, delay, jitter, loss].map(String),
]);
stack.defer(async () => console.log(await relay.end()));
await relay.says(/up/);
const server = new Helper("ip", [
  ...["netns", "exec", sites[0], "nats-server", "-a", "10.99.0.1", "-p", "4222", "-l", "/dev/null"],
]);
stack.defer(async () => void (await server.end("SIGTERM")));
/** Milliseconds until a connection is there, which takes a round trip. */
const roundTrip = `const times = [];
for (let i = 0; i < 9; i++) {
  const began = performance.now();
  using _ = await Deno.connect({ hostname: "10.99.0.1", port: 4222 });
  times.push(performance.now() - began);
}
console.log(times.sort((a, b) => a - b).map((time) => time.toFixed(1)).join(" "));`;
const { stdout } = new Deno.Command("ip", {
  args: ["netns", "exec", sites[1], Deno.execPath(), "eval", roundTrip],
}).outputSync();
console.log(`milliseconds to connect: ${new TextDecoder().decode(stdout).trim()}`);

const size = tokens * heads * headDim;
const tensor = (n: number) =>
  ({ dtype: "f32", shape: [1, tokens, heads, headDim], values: normals(n, size) }) as const;
const input = `${folder.path}/in.safetensors`;
await Deno.writeFile(input, fileOfTensors({ q: tensor(1), k: tensor(2), v: tensor(3) }));
const flags = (out: string) => [
  ...["attend", input, "--out", `${folder.path}/${out}`, "--device", "reference", "--json"],
];
const alone = await annulus([...flags("alone.safetensors"), "--ring", String(ring)], {
  patience: 600_000,
});
assert.equal(alone.code, 0, alone.stderr);

const nodes = Array.from({ length: ring }, (_, i) =>
  annulusAt(
    sites[i % 2]!,
    ...["node", "--nats", url, "--insecure", "--cluster", cluster, "--device", "reference"],
    ...["--json", "--until-stdin-ends"],
  ));
for (const node of nodes) stack.defer(async () => void (await node.end()));
await Promise.all(nodes.map((node) => node.says(/"event":"waiting"/)));
const run = annulusAt(
  sites[0],
  ...flags("wan.safetensors"),
  ...["--ring", String(ring), "--nats", url, "--insecure", "--cluster", cluster],
);
const report = JSON.parse(await run.says(/^\{[\s\S]*\}\n/));
await run.end();
const [found, needed] = await Promise.all(
  ["wan", "alone"].map((name) => Deno.readFile(`${folder.path}/${name}.safetensors`)),
);
assert.deepEqual(report.recoveries, [], "no node is taken for lost");
assert.ok(Buffer.from(found!).equals(needed!), "the bits of a run in one process");
const moved = report.bytes_sent.reduce((sum: number, bytes: number) => sum + bytes, 0);
console.log(
  `${tokens} tokens over ${ring} nodes at two sites: ${report.seconds.toFixed(1)} s, ` +
    `${(moved / 2 ** 20).toFixed(0)} MiB moved, ${
      (100 * report.hidden_fraction).toFixed(1)
    } % of it hidden; ` +
    `in one process ${JSON.parse(alone.stdout).seconds.toFixed(1)} s`,
);
