/**
 * The `annulus` command: verbs and flags. Every verb's work is in the file of its name, and `command_line.ts` says how
 * it ends.
 *
 * @module
 */
// Before Effect, or it does nothing.
import "../runtime/lean_fibers.ts";
import { Config, Effect, Option } from "effect";
import { Argument, Command, Flag } from "effect/cli";
import { allLayouts } from "../runtime/layout_choice.ts";
import { dtypes } from "../runtime/dtype.ts";
import { runAttend } from "./attend_command.ts";
import { runBench, showKept } from "./bench.ts";
import { runCerts } from "./certs.ts";
import { runChat } from "./chat.ts";
import { misuse, runCommandLine } from "./command_line.ts";
import { runDemo } from "./demo.ts";
import { devices } from "./devices.ts";
import { runDoctor } from "./doctor.ts";
import { runGenerate } from "./generate.ts";
import { runLogits } from "./logits.ts";
import { runNeedle } from "./needle.ts";
import { runNode } from "./node.ts";
import { listNodes } from "./nodes.ts";
import { print } from "./output.ts";
import { runPlan } from "./plan.ts";
import { runPluginCheck, writePlugin } from "./plugin.ts";
import { runMain } from "./platform.ts";
import { runPull } from "./pull.ts";
import { runResume } from "./resume.ts";
import { runServe } from "./serve.ts";
import { runUp } from "./up.ts";
import { runVerify } from "./verify.ts";
import { explain } from "./why.ts";

const optional = <A>(flag: Flag.Flag<A>) =>
  flag.pipe(Flag.optional, Flag.map((value) => Option.getOrUndefined(value)));
const boolean = (name: string) => Flag.withDefault(Flag.Boolean(name), false);
const json = boolean("json").pipe(Flag.withDescription("Print the result as JSON"));
const device = Flag.String("device").pipe(
  Flag.withDefault("auto"),
  Flag.withDescription(
    `What computes: ${
      devices.map(({ name }) => name).join(", ")
    }, or one of a --plugin; auto takes the ` +
      "best that is there",
  ),
);
const plugin = Flag.String("plugin").pipe(
  Flag.atLeast(0),
  Flag.withDescription(
    "A file with an attention or a device of your own; may be given several times",
  ),
);
const nats = Flag.String("nats").pipe(
  Flag.withDescription("A running NATS server, nats://host:port; without it one is started"),
);
/** How to speak to it. */
const access = {
  tls: optional(
    Flag.String("tls").pipe(
      Flag.withDescription("The folder of a member's certificate, as `annulus certs` makes it"),
    ),
  ),
  insecure: boolean("insecure").pipe(
    Flag.withDescription("Use a server on another machine without --tls and without credentials"),
  ),
};
const cluster = Flag.String("cluster").pipe(
  Flag.filter((name) => /^[\w-]+$/.test(name), () => "a name of letters, digits, - and _"),
);
const atLeast = (least: number) => (flag: Flag.Flag<number>) =>
  Flag.filter(flag, (value) => value >= least, () => `a number of at least ${least}`);
/** Every rank plans the whole ring: beyond this, planning takes longer than computing. */
const mostRanks = 1024;
const ringSize = (flag: Flag.Flag<number>) =>
  Flag.filter(flag, (n) => n >= 1 && n <= mostRanks, () => `a number from 1 to ${mostRanks}`);

const attend = Command.make(
  "attend",
  {
    input: Argument.String("IN.safetensors").pipe(
      Argument.withDescription(
        "q [batch, sequence, heads, head_dim], k and v [batch, sequence, kv_heads, head_dim]",
      ),
    ),
    out: Flag.String("out").pipe(
      Flag.withDescription(
        "Where to write o [batch, sequence, heads, head_dim] and lse [batch, heads, sequence]",
      ),
    ),
    ring: optional(Flag.Int("ring").pipe(ringSize, Flag.withDescription("Ranks in the ring"))),
    causal: boolean("causal").pipe(
      Flag.withDescription("Each query sees itself and what comes before it"),
    ),
    window: optional(
      Flag.Int("window").pipe(
        atLeast(1),
        Flag.withDescription("Each query sees itself and the W − 1 tokens before it"),
      ),
    ),
    attention: Flag.String("attention").pipe(
      Flag.atLeast(0),
      Flag.withDescription(
        "Variants with & between them: 'causal & window(4096) & documents'; parameters that are not " +
          "given come from tensors of their names. Once for each layer of a pattern",
      ),
    ),
    plugin,
    layout: Flag.Literals("layout", ["auto", ...allLayouts]).pipe(
      Flag.withDefault("auto"),
      Flag.withDescription("How tokens become shards"),
    ),
    weights: optional(
      Flag.String("weights").pipe(
        Flag.withDescription("One number a rank, the share of the tokens that it takes: 1,1,2"),
      ),
    ),
    device,
    link: optional(
      Flag.Literals("link", ["memory", "nats"]).pipe(
        Flag.withDescription(
          "One process, or a process a rank; nats where --nats or --cluster is given, else memory",
        ),
      ),
    ),
    nats: optional(nats),
    ...access,
    cluster: optional(
      cluster.pipe(Flag.withDescription("Use the nodes of this cluster at --nats")),
    ),
    wire: optional(
      Flag.Literals("wire", [...dtypes]).pipe(
        Flag.withDescription("Format in which K and V travel; their own by default"),
      ),
    ),
    trace: optional(
      Flag.String("trace").pipe(
        Flag.withDescription("Where to write the timeline, for Perfetto or chrome://tracing"),
      ),
    ),
    record: optional(
      Flag.String("record").pipe(
        Flag.withDescription(
          "A folder for what was heard last of every rank, should the run fail: see `annulus why`",
        ),
      ),
    ),
    verify: boolean("verify").pipe(
      Flag.withDescription("Compare 256 random rows of every rank with the float64 reference"),
    ),
    verifyRows: optional(
      Flag.Int("verify-rows").pipe(
        atLeast(1),
        Flag.withDescription("The same with another number of rows of every rank"),
      ),
    ),
    checkpoint: optional(
      Flag.String("checkpoint").pipe(
        Flag.withDescription(
          "A folder for what ranks have gathered, from which `annulus resume` goes on",
        ),
      ),
    ),
    checkpointEvery: optional(
      Flag.Int("checkpoint-every").pipe(
        atLeast(1),
        Flag.withDescription("Blocks of a rank from one to the next; an eighth of them by default"),
      ),
    ),
    json,
  },
  (flags) => runAttend(flags),
).pipe(Command.withDescription("Exact attention over a ring, from file to file"));

const resume = Command.make(
  "resume",
  {
    folder: Argument.String("DIR"),
    nats: optional(nats.pipe(Flag.withDescription("The server, where it is another one now"))),
    json,
  },
  runResume,
).pipe(
  Command.withDescription("Goes on with a run that was told to --checkpoint DIR"),
);

/** How every command that runs a model finds it and who computes. */
const modelFlags = {
  model: Argument.String("MODEL").pipe(
    Argument.withDescription("A folder with config.json and weights, as Hugging Face writes it"),
  ),
  ring: optional(Flag.Int("ring").pipe(ringSize, Flag.withDescription("Ranks in the ring"))),
  device,
  plugin,
  link: optional(
    Flag.Literals("link", ["memory", "nats"]).pipe(
      Flag.withDescription(
        "One process, or a process a rank; nats where --nats or --cluster is given, else memory",
      ),
    ),
  ),
  nats: optional(nats),
  ...access,
  cluster: optional(
    cluster.pipe(Flag.withDescription("Use the nodes of this cluster at --nats")),
  ),
  cache: Flag.Literals("cache", [...dtypes]).pipe(
    Flag.withDefault("f32"),
    Flag.withDescription("Format in which keys and values are held"),
  ),
  json,
};

const logits = Command.make(
  "logits",
  {
    ...modelFlags,
    tokens: Flag.String("tokens").pipe(Flag.withDescription("A JSON array of token ids")),
    out: Flag.String("out").pipe(
      Flag.withDescription("Where to write logits [last, vocabulary], a safetensors file"),
    ),
    last: Flag.Int("last").pipe(
      atLeast(1),
      Flag.withDefault(1),
      Flag.withDescription("Of how many tokens, from the last one backwards"),
    ),
  },
  runLogits,
).pipe(Command.withDescription("The logits of a model, of tokens in a file"));

const share = (flag: Flag.Flag<number>) =>
  Flag.filter(flag, (value) => value >= 0 && value <= 1, () => "a number from 0 to 1");
/** How tokens are chosen. */
const samplingFlags = {
  temperature: optional(Flag.Finite("temperature").pipe(atLeast(0))),
  topK: optional(Flag.Int("top-k").pipe(atLeast(0))),
  topP: optional(Flag.Finite("top-p").pipe(share)),
  minP: optional(Flag.Finite("min-p").pipe(share)),
  repetitionPenalty: optional(
    Flag.Finite("repetition-penalty").pipe(Flag.filter((x) => x > 0, () => "a number above 0")),
  ),
  seed: Flag.Int("seed").pipe(Flag.withDefault(0)),
  stop: Flag.String("stop").pipe(
    Flag.atLeast(0),
    Flag.withDescription("A text that ends the answer; may be given several times"),
  ),
  maxTokens: Flag.Int("max-tokens").pipe(atLeast(1), Flag.withDefault(256)),
};

const generate = Command.make(
  "generate",
  {
    ...modelFlags,
    prompt: Argument.String("PROMPT").pipe(
      Argument.withDescription("What to go on with; - reads standard input"),
      Argument.optional,
      Argument.map(Option.getOrUndefined),
    ),
    file: Flag.String("file").pipe(
      Flag.atLeast(0),
      Flag.withDescription("A text file, or a folder of such, to come before the prompt"),
    ),
    ...samplingFlags,
  },
  runGenerate,
).pipe(Command.withDescription("Goes on with a text"));

const chat = Command.make(
  "chat",
  {
    ...modelFlags,
    file: Flag.String("file").pipe(
      Flag.atLeast(0),
      Flag.withDescription("A text file, or a folder of such, to talk about"),
    ),
    system: optional(
      Flag.String("system").pipe(Flag.withDescription("What the model is told before all else")),
    ),
    ...samplingFlags,
  },
  runChat,
).pipe(Command.withDescription("A conversation, a question a line"));

const pull = Command.make(
  "pull",
  {
    name: Argument.String("ORG/NAME"),
    revision: Flag.String("revision").pipe(Flag.withDefault("main")),
    out: optional(
      Flag.String("out").pipe(
        Flag.withDescription("Where to put it; a folder of its name by default"),
      ),
    ),
    offline: boolean("offline").pipe(
      Flag.withDescription("Ask nobody: only look whether all is there as it was"),
    ),
    json,
  },
  runPull,
).pipe(
  Command.withDescription("Fetches a model from the Hugging Face hub, or from HF_ENDPOINT"),
);

const serve = Command.make(
  "serve",
  {
    ...modelFlags,
    host: Flag.String("host").pipe(Flag.withDefault("127.0.0.1")),
    port: Flag.Int("port").pipe(
      Flag.filter((port) => port >= 0 && port < 65_536, () => "a number from 0 to 65535"),
      Flag.withDefault(8080),
      Flag.withDescription("0 for one that is free"),
    ),
    apiKey: optional(
      Flag.String("api-key").pipe(
        Flag.withFallbackConfig(Config.String("ANNULUS_API_KEY")),
        Flag.withDescription("What clients must know; ANNULUS_API_KEY by default"),
      ),
    ),
    seed: samplingFlags.seed,
    kept: Flag.Int("kept").pipe(
      atLeast(0),
      Flag.withDefault(2 ** 17),
      Flag.withDescription("Tokens of texts that have ended, kept for those that begin like them"),
    ),
  },
  runServe,
).pipe(Command.withDescription("A model behind the OpenAI API"));

const needle = Command.make(
  "needle",
  {
    ...modelFlags,
    lengths: Flag.String("lengths").pipe(
      Flag.withDefault("4k,16k,64k"),
      Flag.withDescription("Tokens of the texts, question and answer included"),
    ),
    depths: Flag.String("depths").pipe(
      Flag.withDefault("0..100/10"),
      Flag.withDescription("Where the first needle is, in per cent of the text"),
    ),
    seeds: Flag.Int("seeds").pipe(atLeast(1), Flag.withDefault(1)),
    needles: Flag.Int("needles").pipe(
      atLeast(1),
      Flag.withDefault(1),
      Flag.withDescription("In one text; each is asked for"),
    ),
    haystack: Flag.String("haystack").pipe(
      Flag.atLeast(0),
      Flag.withDescription("A text file or a folder of such; speeches in the public domain else"),
    ),
    window: optional(
      Flag.Int("window").pipe(
        atLeast(1),
        Flag.withDescription("Let no layer see more than W tokens, for comparison"),
      ),
    ),
    out: Flag.String("out").pipe(Flag.withDescription("A folder for needle.json and needle.svg")),
  },
  runNeedle,
).pipe(Command.withDescription("Is what is hidden in a long text found again?"));

const up = Command.make("up", {
  nodes: Flag.Int("nodes").pipe(Flag.withAlias("n"), atLeast(1), Flag.withDefault(4)),
  nats: optional(nats),
  ...access,
  cluster: cluster.pipe(Flag.withDefault("local")),
  device,
  plugin,
  json,
}, runUp).pipe(Command.withDescription("A whole cluster on this machine, until Ctrl-C"));

const node = Command.make("node", {
  nats,
  ...access,
  cluster: cluster.pipe(Flag.withDefault("local")),
  device,
  plugin,
  model: Flag.String("model").pipe(
    Flag.atLeast(0),
    Flag.withDescription("The folder of a model that it may run; may be given several times"),
  ),
  json,
  untilStdinEnds: boolean("until-stdin-ends").pipe(
    Flag.withDescription("End when standard input does, for programs that start nodes"),
  ),
}, runNode).pipe(Command.withDescription("One node: takes ranks of the cluster's runs"));

const nodes = Command.make("nodes", {
  nats,
  ...access,
  cluster: cluster.pipe(Flag.withDefault("local")),
  json,
}, listNodes).pipe(Command.withDescription("Who is in a cluster"));

const certs = Command.make(
  "certs",
  {
    dir: Argument.String("DIR").pipe(Argument.withDescription("Where to make a folder for each")),
    nodes: Flag.Int("nodes").pipe(Flag.withAlias("n"), atLeast(1)),
    host: optional(
      Flag.String("host").pipe(
        Flag.withDescription("Names and addresses of the server, with commas; this machine alone"),
      ),
    ),
    cluster: cluster.pipe(Flag.withDefault("local")),
  },
  (flags) => runCerts({ ...flags, host: flags.host?.split(",") ?? [] }),
).pipe(Command.withDescription("Certificates for a server, a driver and nodes"));

const doctor = Command.make(
  "doctor",
  { nats: optional(nats), ...access, json },
  Effect.fn(function* (flags) {
    if (!(yield* runDoctor(flags))) Deno.exitCode = 1;
  }),
).pipe(Command.withDescription("What this machine has, and how to mend what is missing"));

const verify = Command.make("verify", {
  device,
  tokens: Flag.Int("tokens").pipe(
    atLeast(1),
    Flag.withDefault(1531),
    Flag.withDescription("Sequence length of every case"),
  ),
  json,
}, runVerify).pipe(Command.withDescription("The ring against the float64 reference, as a table"));

const bench = Command.make(
  "bench",
  {
    kernel: boolean("kernel").pipe(
      Flag.withDescription("Measure the versions of the WebGPU kernel, and keep the best"),
    ),
    kept: boolean("kept").pipe(
      Flag.withDescription("Show what was kept, adapter by adapter, and measure nothing"),
    ),
    headDim: Flag.Int("head-dim").pipe(
      Flag.filter((d) => d % 4 === 0 && d >= 4 && d <= 256, () => "a multiple of 4 from 4 to 256"),
      Flag.withDefault(64),
    ),
    dtype: Flag.Literals("dtype", [...dtypes]).pipe(
      Flag.withDefault("f32"),
      Flag.withDescription("Format of K and V"),
    ),
    tokens: Flag.Int("tokens").pipe(atLeast(1), Flag.withDefault(2048)),
    json,
  },
  Effect.fn(function* (flags) {
    if (flags.kernel === flags.kept) {
      return yield* misuse("bench needs to know what to do: either --kernel or --kept");
    }
    if (flags.kept) return yield* showKept(flags.json);
    yield* runBench(flags);
  }),
).pipe(Command.withDescription("How fast this machine's kernels are"));

const plan = Command.make("plan", {
  tokens: Flag.Int("tokens").pipe(atLeast(1)),
  batch: Flag.Int("batch").pipe(atLeast(1), Flag.withDefault(1)),
  heads: Flag.Int("heads").pipe(atLeast(1), Flag.withDefault(8)),
  kvHeads: optional(Flag.Int("kv-heads").pipe(atLeast(1))),
  headDim: Flag.Int("head-dim").pipe(atLeast(4), Flag.withDefault(64)),
  latent: optional(
    Flag.String("latent").pipe(
      Flag.withDescription("Latents travel: RANK,ROPE,VALUE components, DeepSeek-V3's 512,64,128"),
    ),
  ),
  ring: Flag.Int("ring").pipe(ringSize, Flag.withDefault(1)),
  wire: Flag.Literals("wire", [...dtypes]).pipe(Flag.withDefault("f32")),
  layout: optional(Flag.Literals("layout", [...allLayouts])),
  attention: Flag.String("attention").pipe(
    Flag.atLeast(0),
    Flag.withDescription("One for each layer of a pattern, as for attend"),
  ),
  times: Flag.Int("times").pipe(
    atLeast(1),
    Flag.withDefault(1),
    Flag.withDescription("How often the layers are repeated"),
  ),
  plugin,
  json,
}, runPlan).pipe(Command.withDescription("What a run would compute and move, layer by layer"));

const newPlugin = Command.make(
  "new",
  { name: Argument.String("NAME").pipe(Argument.withDescription("Letters, digits and dashes")) },
  Effect.fn(function* ({ name }) {
    yield* print(`${yield* writePlugin(name)} is there; now: annulus plugin check ${name}.ts`);
  }),
).pipe(Command.withDescription("Writes the file of an attention that works"));

const checkPlugin = Command.make(
  "check",
  {
    file: Argument.String("FILE"),
    device,
    seconds: Flag.Int("seconds").pipe(
      atLeast(1),
      Flag.withDefault(300),
      Flag.withDescription("How long the file may take before it is ended"),
    ),
    memory: Flag.Int("memory").pipe(
      atLeast(1),
      Flag.withDefault(2048),
      Flag.withDescription("How many MiB it may need"),
    ),
    json,
  },
  Effect.fn(function* (flags) {
    if (!(yield* runPluginCheck(flags))) Deno.exitCode = 1;
  }),
).pipe(Command.withDescription("Does an attention keep its contract?"));

const plugins = Command.make("plugin").pipe(
  Command.withDescription("Attention of your own"),
  Command.withSubcommands([newPlugin, checkPlugin]),
);

const why = Command.make(
  "why",
  { folder: Argument.String("DIR"), json },
  explain,
).pipe(
  Command.withDescription("What every rank was doing when a run with --record DIR failed"),
);

const demo = Command.make("demo", {}, () => runDemo).pipe(
  Command.withDescription("A ring of four nodes over 8,192 tokens, checked"),
);

const annulus = Command.make("annulus").pipe(
  Command.withDescription("Exact attention over sequences that no single device can hold"),
  Command.withSubcommands([
    attend,
    resume,
    pull,
    generate,
    chat,
    logits,
    serve,
    needle,
    why,
    up,
    node,
    nodes,
    certs,
    doctor,
    verify,
    plan,
    bench,
    plugins,
    demo,
  ]),
);

/** Runs the command with these arguments; never fails, but sets the exit code. */
export const run = (args: ReadonlyArray<string>): Effect.Effect<void> =>
  runCommandLine("annulus", annulus, args);

if (import.meta.main) runMain(run(Deno.args));
