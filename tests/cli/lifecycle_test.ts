/**
 * What becomes of processes and files when a run or a cluster is stopped, or loses a part.
 *
 * @module
 */
import { Effect, Schema } from "effect";
import assert from "node:assert/strict";
import { NodeCard } from "../../runtime/membership.ts";
import { version } from "../../runtime/version.ts";
import { Annulus, annulus, eventually, twoAtOnce } from "../support/cli.ts";
import { inFolder } from "../support/in_folder.ts";
import { missingServer, natsServer } from "../support/nats.ts";
import { normals } from "../support/random.ts";
import { fileOfTensors } from "../support/tensors.ts";

/** A file of so many tokens and heads of 64; zeros are as much work as anything. */
const writeInput = async (folder: string, tokens: number, heads: number, seed?: number) => {
  const shape = [1, tokens, heads, 64];
  const count = tokens * heads * 64;
  const values = (n: number) =>
    seed === undefined ? new Float32Array(count) : normals(seed + n, count);
  const tensor = (n: number) => ({ dtype: "f32", shape, values: values(n) }) as const;
  const path = `${folder}/in.safetensors`;
  await Deno.writeFile(path, fileOfTensors({ q: tensor(0), k: tensor(1), v: tensor(2) }));
  return path;
};
/** Ten seconds of work, of which every test sees the first. */
const long = [4096, 4] as const;

const namesIn = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

/** Starts a long run and returns when its ring turns. */
const startLong = async (folder: string, ...flags: ReadonlyArray<string>) => {
  const input = await writeInput(folder, ...long);
  const run = new Annulus(
    ["attend", input, "--out", `${folder}/out.safetensors`, "--device", "reference", ...flags],
  );
  try {
    await run.errorLine(/^\d+ %.*to go/);
  } catch (cause) {
    await run[Symbol.asyncDispose]();
    throw cause;
  }
  assert.equal(namesIn(folder).filter((name) => name.endsWith(".part")).length, 1);
  return run;
};

/** Not the shell that guards it. */
const isServer = (command: string) => command.startsWith("nats-server");
const isNode = (command: string) => / node --nats /.test(command);
const count = (run: Annulus, is: (command: string) => boolean) =>
  [...run.descendants().values()].filter(is).length;

const assertStopped = async (folder: string, run: Annulus) => {
  const { code, stdout, stderr } = await run.finished();
  assert.equal(code, 130);
  assert.equal(stdout, "");
  assert.doesNotMatch(stderr, /annulus: |\bat .*\.ts/);
  assert.deepEqual(namesIn(folder), ["in.safetensors"]);
  assert.deepEqual([...run.descendants()], []);
};

inFolder("Ctrl-C, SIGTERM and SIGHUP during a run in one process leave nothing", async (folder) => {
  const stops = [
    (run: Annulus) => run.interrupt(),
    (run: Annulus) => run.kill("SIGTERM"),
    (run: Annulus) => run.kill("SIGHUP"), // a terminal that was closed
  ];
  await twoAtOnce([...stops.entries()], async ([i, stop]) => {
    const own = `${folder}/${i}`;
    await Deno.mkdir(own);
    await using run = await startLong(own, "--ring", "2");
    stop(run);
    await assertStopped(own, run);
  });
});

inFolder("Ctrl-C during a run over nats leaves no file, no node and no server", async (folder) => {
  await using run = await startLong(folder, "--ring", "2", "--link", "nats");
  assert.deepEqual([count(run, isServer), count(run, isNode)], [1, 2]);
  run.interrupt();
  await assertStopped(folder, run);
}, missingServer);

inFolder("a run whose server dies has another one, and goes on", async (folder) => {
  await using run = await startLong(folder, "--ring", "2", "--link", "nats");
  const [server] = [...run.descendants()].find(([, command]) => isServer(command))!;
  Deno.kill(server, "SIGKILL");
  const { code, stderr } = await run.finished();
  assert.equal(code, 0, stderr);
  assert.doesNotMatch(stderr, /^annulus: /m);
  assert.deepEqual(namesIn(folder), ["in.safetensors", "out.safetensors"]);
  assert.deepEqual([...run.descendants()], []);
}, missingServer);

inFolder("up starts a cluster that computes, and Ctrl-C ends it", async (folder) => {
  const name = "here_and-now";
  const input = await writeInput(folder, 100, 2, 1);
  await using up = new Annulus(
    ["up", "-n", "2", "--cluster", name, "--device", "reference", "--json"],
  );
  const said = JSON.parse(await up.line(/"event":"up"/));
  assert.equal(said.cluster, name);
  assert.deepEqual([count(up, isServer), count(up, isNode)], [1, 2]);

  const at = ["--nats", said.nats, "--cluster", name];
  const listed = await annulus(["nodes", ...at, "--json"]);
  assert.equal(listed.code, 0);
  const cards: ReadonlyArray<NodeCard> = JSON.parse(listed.stdout)
    .map((card: unknown) => Schema.decodeUnknownSync(NodeCard)(card));
  assert.deepEqual(
    JSON.parse(listed.stdout),
    said.nodes.toSorted(
      (a: NodeCard, b: NodeCard) => a.id < b.id ? -1 : 1,
    ),
  );
  const pids = [...up.descendants()].filter(([, command]) => isNode(command)).map(([pid]) => pid);
  assert.deepEqual(cards.map(({ pid }) => pid).sort(), pids.sort());
  for (const card of cards) {
    assert.match(card.id, /^[0-9a-f]{8}$/);
    assert.equal(card.version, version);
    assert.equal(card.host, Deno.hostname());
    assert.equal(card.state, "idle");
    assert.deepEqual([card.device.name, card.device.software], ["reference", true]);
    assert.ok(card.device.memory > 2 ** 20);
    assert.ok(card.attentionGflops > 0 && card.linkMegabytes > 0);
  }

  const table = await annulus(["nodes", ...at]);
  assert.equal(table.stdout.trim().split("\n").length, 3);
  for (const { id } of cards) {
    assert.match(table.stdout, RegExp(`^ *${id} .* reference \\(software\\) .* idle$`, "m"));
  }

  const outputs = [];
  for (const [i, link] of [at, at, ["--ring", "2"]].entries()) {
    const out = `${folder}/out-${i}.safetensors`;
    const flags = ["--device", "reference", "--json", ...link];
    const { code, stdout, stderr } = await annulus(["attend", input, "--out", out, ...flags]);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.equal(JSON.parse(stdout).ring, 2);
    outputs.push(await Deno.readFile(out));
  }
  assert.deepEqual(outputs[1], outputs[0], "the second run over the cluster");
  assert.deepEqual(outputs[2], outputs[0], "a run in one process");

  up.interrupt();
  const { code, stderr } = await up.finished();
  assert.deepEqual([code, stderr], [130, ""]);
  assert.deepEqual([...up.descendants()], []);
}, missingServer);

/** Starts nodes of a cluster and returns when they wait for work. */
const startNodes = async (url: string, cluster: string, count: number) => {
  await using stack = new AsyncDisposableStack();
  const nodes = Array.from({ length: count }, () =>
    stack.use(
      new Annulus(
        ["node", "--nats", url, "--cluster", cluster, "--device", "reference", "--json"],
      ),
    ));
  for (const node of nodes) await node.line(/"event":"waiting"/);
  const kept = stack.move();
  return { nodes, [Symbol.asyncDispose]: () => kept.disposeAsync() };
};

const withServer = (test: (url: string) => Promise<void>) =>
  Effect.scoped(
    Effect.flatMap(natsServer(), ({ url }) => Effect.promise(() => test(url))),
  ).pipe(Effect.runPromise);

inFolder(
  "a node ends with its standard input where it is told to",
  () =>
    withServer(async (url) => {
      const flags = ["--nats", url, "--device", "reference"];
      await using node = new Annulus(["node", ...flags, "--until-stdin-ends"], { stdin: true });
      const line = await node.line(/waits for a driver/);
      assert.match(
        line,
        /^node \w+ \(reference on JavaScript, software\) .*cluster "local" at 127/,
      );
      await node.closeStdin();
      const { code, stderr } = await node.finished();
      assert.deepEqual([code, stderr], [0, ""]);
    }),
  missingServer,
);

const killNode = async (url: string, folder: string) => {
  await using cluster = await startNodes(url, "a", 2);
  await using run = await startLong(folder, "--nats", url, "--cluster", "a");
  const [killed, other] = cluster.nodes as [Annulus, Annulus];
  killed.kill("SIGKILL");
  await run.errorLine(/^annulus: .*; the run goes on in epoch 1, rank \d on node/);
  other.kill("SIGKILL");
  const { code, stdout, stderr } = await run.finished();
  assert.equal(code, 1);
  assert.equal(stdout, "");
  assert.match(stderr, /^annulus: .*no other node is there to take it, after: /m);
  assert.deepEqual(namesIn(folder), ["in.safetensors"]);
};

const freezeNode = async (url: string, folder: string) => {
  await using cluster = await startNodes(url, "c", 3);
  await using run = await startLong(folder, "--nats", url, "--cluster", "c");
  const [frozen] = cluster.nodes as [Annulus];
  frozen.kill("SIGSTOP");
  await run.errorLine(/^annulus: .*silence; the run goes on in epoch 1, rank \d on node/);
  frozen.kill("SIGCONT");
  const { code, stderr } = await run.finished();
  assert.equal(code, 0, stderr);
  // It gives up what it had, and is there for the next run.
  await frozen.line(/"event":"waiting"/, 2);
};

const killDriver = async (url: string, folder: string) => {
  await using cluster = await startNodes(url, "b", 2);
  await using run = await startLong(folder, "--nats", url, "--cluster", "b");
  run.kill("SIGKILL");
  for (const node of cluster.nodes) {
    assert.match(await node.line(/"event":"failed"/), /silence/);
    await node.line(/"event":"waiting"/, 2);
  }
};

inFolder(
  "a run outlives nodes that are killed or frozen, but for the last one, and a killed driver frees its nodes",
  (folder) =>
    withServer(async (url) => {
      await twoAtOnce([killNode, killDriver, freezeNode], async (kill) => {
        const own = `${folder}/${kill.name}`;
        await Deno.mkdir(own);
        await kill(url, own);
      });
    }),
  missingServer,
);

inFolder(
  "a killed driver takes the nodes and the server along that it has started",
  async (folder) => {
    await using run = await startLong(folder, "--ring", "2", "--link", "nats");
    assert.equal(count(run, isNode), 2);
    run.kill("SIGKILL");
    await eventually("the nodes and the server to end", () => run.descendants().size === 0);
  },
  missingServer,
);
