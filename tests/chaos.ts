/**
 * `deno task chaos`: runs over real processes, one after the other, while something goes wrong at random moments: nodes
 * are killed, frozen and cut off, connections break, are slow and flip bits, the server is killed and hangs. Every run
 * must give the bytes of an undisturbed one. `deno task soak` does the same for half an hour, and has limits.
 *
 * It has a ring of four and a fifth node to spare, on one server. A run is the command `attend` over a file of thirty
 * layers, the last of them with gradients, which takes about 20 s: what it takes undisturbed is said first. Prints a line
 * for each fault and each run, and ends with a table.
 *
 * *Effective time.* Of the time from the first run to the last, the share in which runs made progress that was not thrown
 * away. A run that no fault touched is effective from its beginning to its end. One that a fault touched counts for as
 * long as an undisturbed run takes (the median of those of the same soak that no fault touched), however long it stood
 * still, computed anew what had been lost, or was slow. One that failed does not count. So 90 % means that the faults
 * took a tenth of the throughput away.
 *
 * *Memory.* A step is one block merged into one rank. Every second it looks at how much memory each node has and how many
 * steps it has done; the least of each half-minute counts, and the first steps of each life of a node are its warm-up. The
 * slope is the one of all nodes together that lived for five minutes more, by least squares.
 *
 * *Leaks.* When all is over and nodes wait, they have no more connections, subscriptions, descriptors and children than
 * when they waited after the first runs; no process has left a child or a temporary file behind, and no driver part of a
 * result.
 *
 * Exit code 1, with a sentence for each reason, if a run fails or differs, if something leaks, if a run loses
 * a rank or a link by a fault that takes none, or if a limit is passed.
 *
 * @module
 */
import { Effect } from "effect";
import { Command, Flag } from "effect/cli";
import { crc32 } from "node:zlib";
import { runCommandLine } from "../cli/command_line.ts";
import { print } from "../cli/output.ts";
import { runMain } from "../cli/platform.ts";
import { accountOf, type Fault, median, type Run, tableOf } from "./chaos/account.ts";
import { type Life, Node, Server } from "./chaos/cluster.ts";
import { drawn, kindsOf, sleep } from "./chaos/faults.ts";
import { floorsOf, grown, holdingsOf, Memory, slopeOf } from "./chaos/watch.ts";
import { Way } from "./chaos/way.ts";
import { Annulus, scratch } from "./support/cli.ts";
import { normals, uniform } from "./support/random.ts";
import { fileOfTensors } from "./support/tensors.ts";

const cluster = "chaos";
/** Ranks, and nodes: with one to spare, so that a run can begin while another one is down. */
const [ring, count] = [4, 5];
/** Runs before the first fault. */
const cleanRuns = 3;
/** Seconds between two faults, at least. */
const pause = 3;
/** Seconds after which what nodes still hold is taken for lost. */
const settling = 20;
/** Seconds of which the least memory counts, and so many of them that tell something of a node. */
const [window, fewestWindows] = [30, 10] as const;
/**
 * Of nodes: glibc gives large buffers back at once. As it comes, it keeps some of what was freed, so that memory grows for
 * minutes without anything being held; a leak cannot be told from that.
 */
const frugal = { MALLOC_MMAP_THRESHOLD_: "131072" };

interface Options {
  readonly minutes: number;
  readonly every: number;
  readonly seed: number;
  readonly tokens: number;
  readonly layers: number;
  readonly faults: boolean;
  readonly only: string;
  readonly load: boolean;
  readonly frugal: boolean;
  readonly warmUp: number;
  readonly effective: number;
  readonly slope: number;
}

/** What of a layer's report is looked at. */
interface LayerReport {
  readonly recoveries: ReadonlyArray<unknown>;
  readonly links: ReadonlyArray<Readonly<Record<string, number>>>;
  readonly ranks: ReadonlyArray<{ readonly steps: ReadonlyArray<unknown> }>;
}

/** A file of layers of which the last one asks for gradients. */
const inputOf = ({ tokens, layers }: Options): Uint8Array<ArrayBuffer> => {
  // Few tokens in large blocks: a step is short, and there are many of them.
  const [heads, headDim] = [8, 128];
  const names = Array.from({ length: layers }, (_, i) => ["q", "k", "v"].map((x) => `${i}.${x}`));
  const tensors = [...names.flat(), `${layers - 1}.do`].map((name, i) => {
    const values = normals(i, tokens * heads * headDim);
    return [name, { dtype: "f32", shape: [1, tokens, heads, headDim], values }] as const;
  });
  return fileOfTensors(Object.fromEntries(tensors));
};

/** Does it all, and gives what was wrong, in sentences. */
const chaos = async (options: Options): Promise<ReadonlyArray<string>> => {
  const { minutes, every, seed } = options;
  const random = uniform(seed);
  const complaints: Array<string> = [];
  const say = (words: string) => console.log(`${new Date().toISOString().slice(11, 19)} ${words}`);
  const complain = (words: string) => {
    complaints.push(words);
    say(`WRONG: ${words}`);
  };
  await using folder = await scratch();
  const [work, temporary] = ["work", "temporary"].map((name) => `${folder.path}/${name}`);
  for (const path of [work!, temporary!]) await Deno.mkdir(path);
  const env = { TMPDIR: temporary! };
  const [input, out] = ["in", "out"].map((name) => `${work}/${name}.safetensors`);
  await Deno.writeFile(input!, inputOf(options));

  await using stack = new AsyncDisposableStack();
  const server = new Server(folder.path);
  await server.start();
  stack.defer(() => server.stop());
  const wayIn = async () => stack.use(await Way.open(server.port, random));
  const driver = await wayIn();
  /** Who has which rank. */
  const holders = new Map<number, Life>();
  const nodes = await Promise.all(Array.from({ length: count }, async () => {
    const way = await wayIn();
    const member = ["--nats", way.url, "--cluster", cluster, "--device", "reference", "--json"];
    const node = new Node(
      way,
      (hear) =>
        new Annulus(["node", ...member], {
          env: { ...env, ...options.frugal ? frugal : {} },
          hear,
        }),
      (rank) => holders.set(rank, node.life),
    );
    stack.defer(() => node.end());
    return node;
  }));
  await Promise.all(nodes.map((node) => node.start()));
  for (let i = 0; options.load && i < 2 * navigator.hardwareConcurrency; i++) {
    const busy = new Deno.Command(Deno.execPath(), { args: ["eval", "for (;;);"] }).spawn();
    stack.defer(async () => {
      busy.kill("SIGKILL");
      await busy.status;
    });
  }

  const faults: Array<Fault & { readonly breaks: boolean; wentOn?: number }> = [];
  /** What each node's links sent again or refused, when it last said so. */
  const refused = new Map<Life, Readonly<Record<string, number>>>();
  let recoveries = 0;
  const recovered = (cause: string) => {
    recoveries++;
    const fault = faults.at(-1);
    const now = performance.now();
    if (fault === undefined || !fault.breaks) {
      complain(`a run lost something by "${fault?.name ?? "nothing"}": ${cause}`);
    } else {
      fault.wentOn ??= now;
      say(`  went on ${((now - fault.began) / 1000).toFixed(1)} s after the fault: ${cause}`);
    }
  };
  const run = async () => {
    const began = performance.now();
    await using process = new Annulus(
      ["attend", input!, "--out", out!, "--causal", "--ring", String(ring), "--json"]
        .concat("--nats", driver.url, "--cluster", cluster),
      {
        patience: 600_000,
        env,
        hear: (line) => {
          if (/^annulus: .* goes on in epoch/.test(line)) recovered(line.slice("annulus: ".length));
        },
      },
    );
    const { code, stdout, stderr } = await process.finished();
    const ended = performance.now();
    const left = [...process.descendants().values()];
    if (left.length > 0) complain(`a driver left ${left.join("; ")} behind`);
    if (code !== 0) return { began, ended, failure: stderr.trim().split("\n").at(-1)! };
    const { layers }: { readonly layers: ReadonlyArray<LayerReport> } = JSON.parse(stdout);
    for (const [rank, counts] of layers.at(-1)!.links.entries()) {
      const life = holders.get(rank);
      if (life !== undefined) refused.set(life, counts);
    }
    return { began, ended, layers, hash: crc32(await Deno.readFile(out!)) };
  };

  const clean: Array<Run> = [];
  let hash = NaN;
  let stepsOfRank = 0;
  for (let i = 0; i < cleanRuns; i++) {
    const { began, ended, ...rest } = await run();
    if ("failure" in rest) throw new Error(rest.failure);
    if (i > 0 && rest.hash !== hash) throw new Error("two undisturbed runs differ");
    hash = rest.hash!;
    stepsOfRank = rest.layers![0]!.ranks[0]!.steps.length;
    clean.push({ began, ended, right: true });
  }
  const takes = clean.map(({ began, ended }) => ((ended - began) / 1000).toFixed(1));
  say(`undisturbed: ${takes.join(", ")} s for ${options.layers * stepsOfRank} steps of each rank`);
  await sleep(2);
  const before = await holdingsOf(server, nodes);

  const end = performance.now() + 60_000 * minutes;
  let over = false;
  const trouble = (async () => {
    const all = kindsOf(server, nodes, driver, random);
    const kinds = drawn(all.filter(({ name }) => name.includes(options.only)), random);
    let next = performance.now();
    while (options.faults) {
      next = Math.max(next + 1000 * every * (0.5 + random()), performance.now() + 1000 * pause);
      if (next > end) break;
      await sleep((next - performance.now()) / 1000);
      const { name, breaks, happen } = kinds.next().value;
      say(name);
      const fault = { name, breaks, began: next, ended: Infinity };
      faults.push(fault);
      await happen();
      fault.ended = performance.now();
    }
    await sleep(Math.max(0, end - performance.now()) / 1000);
    over = true;
  })();
  // Its failure is told below; a run may go on until then.
  trouble.catch(() => over = true);
  using memory = new Memory(nodes, stepsOfRank);
  const runs: Array<Run> = [];
  while (!over) {
    const { began, ended, ...rest } = await run();
    const right = !("failure" in rest) && rest.hash === hash;
    runs.push({ began, ended, right });
    if ("failure" in rest) complain(`run ${runs.length} failed: ${rest.failure}`);
    else if (!right) complain(`run ${runs.length} has other bytes than the undisturbed ones`);
    const survived = rest.layers?.reduce((sum, { recoveries }) => sum + recoveries.length, 0) ?? 0;
    say(`run ${runs.length}: ${((ended - began) / 1000).toFixed(1)} s, ${survived} recoveries`);
    if (!right) await sleep(1);
  }
  await trouble;

  let more: ReadonlyArray<string> = [];
  for (let second = 0; second < settling; second++) {
    more = grown(before, await holdingsOf(server, nodes));
    if (more.length === 0) break;
    await sleep(1);
  }
  more.forEach(complain);
  const after = await holdingsOf(server, nodes);
  for (const { life: { process } } of nodes) {
    process.interrupt();
    await process.finished();
    const left = [...process.descendants().values()];
    if (left.length > 0) complain(`a node left ${left.join("; ")} behind`);
  }
  const files = [...Deno.readDirSync(work!), ...Deno.readDirSync(temporary!)]
    .map(({ name }) => name).filter((name) => !/^(in|out)\.safetensors$/.test(name));
  if (files.length > 0) complain(`files were left behind: ${files.join(", ")}`);

  const { undisturbed, untouched, effective, cost } = accountOf(clean, runs, faults);
  const wrong = runs.filter(({ right }) => !right).length;
  const inMinutes = (runs.at(-1)!.ended - runs[0]!.began) / 60_000;
  say(`${runs.length} runs in ${inMinutes.toFixed(1)} minutes, ${wrong} of them failed or wrong`);
  say(
    `effective time: ${(100 * effective).toFixed(1)} %; ${untouched} runs were untouched, and ` +
      `undisturbed ones take ${(undisturbed / 1000).toFixed(1)} s`,
  );
  if (effective < options.effective / 100) {
    complain(`effective time must be ${options.effective} % or more`);
  }

  const lives = [...memory.lives.values()].map((samples) =>
    floorsOf(samples.filter(({ steps }) => steps >= options.warmUp), window)
  );
  const long = lives.filter((samples) =>
    samples.length >= fewestWindows && samples.at(-1)!.steps > samples[0]!.steps
  );
  for (const samples of long) {
    const tenths = Array.from({ length: 10 }, (_, i) => {
      const [from, to] = [i, i + 1].map((part) => Math.floor(part * samples.length / 10));
      return median(samples.slice(from, to).map(({ mebibytes }) => mebibytes)).toFixed(0);
    });
    say(
      `a node from step ${samples[0]!.steps} to ${samples.at(-1)!.steps}: MiB by tenths of its ` +
        `life ${tenths.join(", ")}; slope ${slopeOf([samples]).slope.toFixed(2)}`,
    );
  }
  if (long.length > 0) {
    const { slope, error } = slopeOf(long);
    say(
      `memory: ${slope.toFixed(2)} ± ${error.toFixed(2)} MiB per 1,000 steps over ${long.length} ` +
        `of ${lives.length} lives of nodes, each after ${options.warmUp} steps`,
    );
    if (slope >= options.slope) {
      complain(`memory must grow by less than ${options.slope} MiB per 1,000 steps`);
    }
  } else if (options.slope < Infinity) complain("no node lived long enough to see its memory grow");
  say(
    `each node at first and at last: ${
      (["connections", "subscriptions", "descriptors", "children"] as const).map((what) =>
        `${what} ${before[what].join(", ")} and ${after[what].join(", ")}`
      ).join("; ")
    }; subjects in all ${before.subjects} and ${after.subjects}`,
  );
  say(`${recoveries} recoveries`);
  console.log(`\n${tableOf(faults, cost).join("\n")}\n`);
  const ways = [driver, ...nodes.map(({ way }) => way)];
  const bits = (part: "payload" | "line") => ways.reduce((sum, way) => sum + way.flipped[part], 0);
  const counts = new Map<string, number>();
  for (const [reason, count] of [...refused.values()].flatMap(Object.entries<number>)) {
    counts.set(reason, (counts.get(reason) ?? 0) + count);
  }
  console.log(
    `${bits("payload")} bits flipped in messages and ${bits("line")} between them; of what came, ` +
      `nodes that lived to say it counted ${
        [...counts].map(([reason, count]) => `${count} "${reason}"`).join(", ") || "nothing"
      }`,
  );
  return complaints;
};

const command = Command.make(
  "chaos",
  {
    minutes: Flag.Finite("minutes").pipe(Flag.withDefault(3)),
    every: Flag.Finite("every").pipe(
      Flag.withDefault(15),
      Flag.withDescription("Seconds between the beginnings of two faults, about"),
    ),
    seed: Flag.Int("seed").pipe(Flag.withDefault(1)),
    tokens: Flag.Int("tokens").pipe(Flag.withDefault(512)),
    layers: Flag.Int("layers").pipe(Flag.withDefault(30)),
    faults: Flag.Boolean("faults").pipe(
      Flag.withDefault(true),
      Flag.withDescription("--no-faults: nothing goes wrong, and no node may be taken for lost"),
    ),
    only: Flag.String("only").pipe(
      Flag.withDefault(""),
      Flag.withDescription("Only faults in whose name this is"),
    ),
    load: Flag.Boolean("load").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Keeps all processors busy with something else"),
    ),
    frugal: Flag.Boolean("frugal").pipe(
      Flag.withDefault(true),
      Flag.withDescription("--no-frugal: glibc keeps what nodes freed, as it does by itself"),
    ),
    warmUp: Flag.Int("warm-up").pipe(
      Flag.withDefault(5000),
      Flag.withDescription("Steps of a node's life that say nothing of its memory"),
    ),
    effective: Flag.Finite("effective").pipe(
      Flag.withDefault(0),
      Flag.withDescription("Per cent of the time that must be effective"),
    ),
    slope: Flag.Finite("slope").pipe(
      Flag.withDefault(Infinity),
      Flag.withDescription("MiB per 1,000 steps by which memory may not grow"),
    ),
  },
  Effect.fn(function* (options) {
    const complaints = yield* Effect.promise(() => chaos(options));
    if (complaints.length > 0) return yield* Effect.fail(new Error(complaints.join("\n")));
    yield* print("every run had the bytes of the undisturbed one, and nothing was left behind");
  }),
).pipe(Command.withDescription("Runs over real processes while something goes wrong"));

runMain(runCommandLine("chaos", command, Deno.args));
