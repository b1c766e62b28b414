/**
 * The `annulus` command: verbs and flags. Every verb's work is in the file of its name, and `command_line.ts` says how
 * it ends.
 *
 * @module
 */
// Before Effect, or it does nothing.
import "../runtime/lean_fibers.ts";
import { Effect } from "effect";
import { Argument, Command, Flag } from "effect/cli";
import { allLayouts } from "../runtime/layout_choice.ts";
import { dtypes } from "../runtime/dtype.ts";
import { runAttend } from "./attend_command.ts";
import { runBench, showKept } from "./bench.ts";
import { runCerts } from "./certs.ts";
import { misuse, runCommandLine } from "./command_line.ts";
import { runDemo } from "./demo.ts";
import { runDoctor } from "./doctor.ts";
import {
  access,
  atLeast,
  boolean,
  caches as cachesOptions,
  cluster,
  crew,
  device,
  json,
  nats,
  optional,
  plugin,
  ringSize,
} from "./flags.ts";
import { caches, chat, generate, logits, needle, pull, serve } from "./model_verbs.ts";
import { runNode } from "./node.ts";
import { listNodes } from "./nodes.ts";
import { print } from "./output.ts";
import { runPlan } from "./plan.ts";
import { runPluginCheck, writePlugin } from "./plugin.ts";
import { runMain } from "./platform.ts";
import { runResume } from "./resume.ts";
import { runUp } from "./up.ts";
import { runVerify } from "./verify.ts";
import { explain } from "./why.ts";

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
    layout: Flag.Literals("layout", ["auto", ...allLayouts]).pipe(
      Flag.withDefault("auto"),
      Flag.withDescription("How tokens become shards"),
    ),
    weights: optional(
      Flag.String("weights").pipe(
        Flag.withDescription("One number a rank, the share of the tokens that it takes: 1,1,2"),
      ),
    ),
    ...crew,
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
  ...cachesOptions,
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
    caches,
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
