/**
 * `deno task chaos`: runs over real processes, of which some are killed, frozen or restarted at random moments, the server
 * among them. Every run must give the bytes of an undisturbed one. `deno task soak` does the same for half an hour.
 *
 * Prints a line for each fault and ends with a table: how much of the time was effective, and what grew. Exit code 1 if
 * one run fails or differs.
 *
 * @module
 */
import { Command, Flag } from "effect/cli";
import { Effect, Exit, Scope } from "effect";
import { crc32 } from "node:zlib";
import { runCommandLine } from "../cli/command_line.ts";
import { print } from "../cli/output.ts";
import { runMain } from "../cli/platform.ts";
import { startNatsServer } from "../plugins/nats_server.ts";
import { Annulus, scratch } from "./support/cli.ts";
import { normals, uniform } from "./support/random.ts";
import { fileOfTensors } from "./support/tensors.ts";

const cluster = "chaos";
/** Ranks, and nodes: with one to spare, so that a run can begin while another one is down. */
const [ring, count] = [4, 5];

interface Options {
  readonly minutes: number;
  readonly every: number;
  readonly seed: number;
  readonly tokens: number;
  readonly faults: boolean;
  readonly load: boolean;
}

const sleep = (seconds: number) =>
  new Promise<void>((resume) => setTimeout(resume, 1000 * seconds));

/** A server that can be killed and frozen. */
class Server {
  #scope: Scope.Closeable | undefined;
  pid = 0;
  url = "";
  #port = -1;

  async start(): Promise<void> {
    this.#scope = Effect.runSync(Scope.make());
    const server = startNatsServer({ port: this.#port }).pipe(Scope.provide(this.#scope));
    const { pid, url } = await Effect.runPromise(server);
    this.pid = pid;
    this.url = url;
    this.#port = Number(url.split(":").at(-1));
  }

  async stop(): Promise<void> {
    if (this.#scope !== undefined) await Effect.runPromise(Scope.close(this.#scope, Exit.void));
  }
}

/** A node, started again when it has been killed. */
class Node {
  process!: Annulus;
  /** Resident kibibytes and open files when it had just started, and now. */
  async start(url: string): Promise<void> {
    this.process = new Annulus(
      ["node", "--nats", url, "--cluster", cluster, "--device", "reference", "--json"],
    );
    await this.process.line(/"event":"waiting"/);
  }
}

const residentKiB = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(Deno.readTextFileSync(`/proc/${pid}/status`))?.[1] ?? NaN);
const openFiles = (pid: number): number => [...Deno.readDirSync(`/proc/${pid}/fd`)].length;

const chaos = async (options: Options): Promise<boolean> => {
  const { minutes, every, seed, tokens } = options;
  await using folder = await scratch();
  const next = uniform(seed);
  const pick = <A>(items: ReadonlyArray<A>): A => items[Math.floor(next() * items.length)]!;
  const server = new Server();
  await server.start();
  const nodes = Array.from({ length: count }, () => new Node());
  const busy = Array.from(
    { length: options.load ? 2 * navigator.hardwareConcurrency : 0 },
    () => new Deno.Command(Deno.execPath(), { args: ["eval", "for (;;);"] }).spawn(),
  );
  const say = (words: string) => console.log(`${new Date().toISOString().slice(11, 19)} ${words}`);
  try {
    await Promise.all(nodes.map((node) => node.start(server.url)));
    const [heads, headDim] = [2, 64];
    const tensor = (n: number) =>
      ({
        dtype: "f32",
        shape: [1, tokens, heads, headDim],
        values: normals(n, tokens * heads * headDim),
      }) as const;
    const input = `${folder.path}/in.safetensors`;
    await Deno.writeFile(input, fileOfTensors({ q: tensor(1), k: tensor(2), v: tensor(3) }));
    const out = `${folder.path}/out.safetensors`;
    const run = async () => {
      const began = performance.now();
      await using process = new Annulus(
        ["attend", input, "--out", out, "--causal", "--ring", String(ring), "--json"]
          .concat("--nats", server.url, "--cluster", cluster),
        { patience: 300_000 },
      );
      const { code, stdout, stderr } = await process.finished();
      const seconds = (performance.now() - began) / 1000;
      if (code !== 0) return { seconds, stderr, report: undefined, hash: NaN };
      const report = JSON.parse(stdout);
      return { seconds, stderr, report, hash: crc32(await Deno.readFile(out)) };
    };
    const clean = [await run(), await run()];
    if (clean.some(({ report }) => report === undefined)) throw new Error(clean[0]!.stderr);
    const undisturbed = Math.min(...clean.map(({ seconds }) => seconds));
    say(`undisturbed: ${clean.map(({ seconds }) => seconds.toFixed(1)).join(" and ")} s`);

    const faults: Record<string, () => Promise<void>> = {
      "a node is killed": async () => {
        const node = pick(nodes);
        node.process.kill("SIGKILL");
        await node.process[Symbol.asyncDispose]();
        await sleep(2);
        await node.start(server.url);
      },
      "a node is frozen for 6 s": async () => {
        const node = pick(nodes);
        node.process.kill("SIGSTOP");
        await sleep(6);
        node.process.kill("SIGCONT");
      },
      "the server is killed, and away for 1 s": async () => {
        Deno.kill(server.pid, "SIGKILL");
        await server.stop();
        await sleep(1);
        await server.start();
      },
      "the server is frozen for 3 s": async () => {
        Deno.kill(server.pid, "SIGSTOP");
        await sleep(3);
        Deno.kill(server.pid, "SIGCONT");
      },
    };
    const end = performance.now() + 60_000 * minutes;
    let over = false;
    const past: Array<{ readonly name: string; readonly at: number }> = [];
    const trouble = (async () => {
      if (!options.faults) await sleep(60 * minutes);
      while (performance.now() + 1000 * every < end) {
        await sleep(every / 2 + every * next());
        const name = pick(Object.keys(faults));
        say(name);
        past.push({ name, at: performance.now() });
        await faults[name]!();
      }
      over = true;
    })();
    let [runs, wrong, recoveries] = [0, 0, 0];
    const before = nodes.map(({ process }) => process.pid);
    const memory = before.map(residentKiB);
    const began = performance.now();
    while (!over) {
      const { report, hash, seconds, stderr } = await run();
      if (report === undefined) {
        wrong++;
        say(`FAILED: ${stderr.trim().split("\n").at(-1)}`);
        await sleep(1);
        continue;
      }
      runs++;
      recoveries += report.recoveries.length;
      const driveBegan = performance.now() - 1000 * report.seconds;
      for (const { cause, at } of report.recoveries) {
        const fault = past.findLast((fault) => fault.at < driveBegan + 1000 * at);
        const after = fault === undefined
          ? ""
          : `${((driveBegan + 1000 * at - fault.at) / 1000).toFixed(1)} s after "${fault.name}"`;
        say(`  went on ${after}: ${cause}`);
      }
      if (hash !== clean[0]!.hash) {
        wrong++;
        say("WRONG: other bytes than the undisturbed run");
      }
      say(`run ${runs}: ${seconds.toFixed(1)} s, ${report.recoveries.length} recoveries`);
    }
    await trouble;
    const wall = (performance.now() - began) / 1000;
    const effective = runs * undisturbed / wall;
    say(`${runs} runs, ${wrong} wrong or failed, ${recoveries} recoveries survived`);
    say(`effective time: ${(100 * effective).toFixed(1)} % of ${wall.toFixed(0)} s`);
    for (const [i, { process }] of nodes.entries()) {
      if (process.pid !== before[i]) continue;
      const [was, is] = [memory[i]!, residentKiB(process.pid)];
      say(`node ${process.pid}: ${was} → ${is} KiB, ${openFiles(process.pid)} open files`);
    }
    if (!options.faults && recoveries > 0) say("a node was taken for lost, and none was");
    return wrong === 0 && (options.faults || recoveries === 0);
  } finally {
    for (const process of busy) {
      process.kill("SIGKILL");
      await process.status;
    }
    await Promise.all(nodes.map(({ process }) => process?.[Symbol.asyncDispose]()));
    await server.stop();
  }
};

const command = Command.make(
  "chaos",
  {
    minutes: Flag.Finite("minutes").pipe(Flag.withDefault(3)),
    every: Flag.Finite("every").pipe(
      Flag.withDefault(15),
      Flag.withDescription("Seconds between two faults, about"),
    ),
    seed: Flag.Int("seed").pipe(Flag.withDefault(1)),
    tokens: Flag.Int("tokens").pipe(Flag.withDefault(8192)),
    faults: Flag.Boolean("faults").pipe(
      Flag.withDefault(true),
      Flag.withDescription("--no-faults: nothing is killed, and no node may be taken for lost"),
    ),
    load: Flag.Boolean("load").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Keeps all processors busy with something else"),
    ),
  },
  Effect.fn(function* (options) {
    const right = yield* Effect.promise(() => chaos(options));
    if (!right) return yield* Effect.fail(new Error("a run failed or was wrong"));
    yield* print("every run had the bytes of the undisturbed one");
  }),
).pipe(Command.withDescription("Runs over real processes, of which some are killed or frozen"));

runMain(runCommandLine("chaos", command, Deno.args));
