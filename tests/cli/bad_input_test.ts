/**
 * Bad input: each kind of it is one sentence on standard error that says what to do, and nothing else is left.
 *
 * @module
 */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { cards } from "../../plugins/nats_cluster/control.ts";
import { dialNats } from "../../plugins/nats_connection.ts";
import { devices } from "../../cli/devices.ts";
import type { NodeCard } from "../../runtime/membership.ts";
import { version } from "../../runtime/version.ts";
import { annulus, type Finished, scratch, twoAtOnce } from "../support/cli.ts";
import { natsServer, noNatsServer } from "../support/nats.ts";
import { normals } from "../support/random.ts";
import { fileOf, fileOfTensors, type Tensor } from "../support/tensors.ts";

/** One thing that a person may get wrong. */
interface Case {
  readonly name: string;
  /** 1 unless said otherwise; 2 is wrong usage. */
  readonly code?: 1 | 2;
  readonly says: RegExp;
  /** The bytes of `in.safetensors`, a good file by default; none, or a folder of that name. */
  readonly input?: Uint8Array<ArrayBuffer> | "none" | "folder";
  /** More flags for `annulus attend IN --out OUT`, or where that does not do, the whole command line. */
  readonly flags?: ReadonlyArray<string>;
  readonly args?: (folder: string) => ReadonlyArray<string>;
  readonly env?: Readonly<Record<string, string>>;
}

const tensor = (seed: number, ...shape: ReadonlyArray<number>): Tensor => ({
  dtype: "f32",
  shape,
  values: normals(seed, shape.reduce((a, b) => a * b, 1)),
});
const good = {
  q: tensor(1, 1, 6, 4, 8),
  k: tensor(2, 1, 6, 2, 8),
  v: tensor(3, 1, 6, 2, 8),
};
const withChange = (change: Partial<Record<string, Tensor>>) =>
  fileOfTensors({ ...good, ...change } as Record<string, Tensor>);
/** Latents of rank 8 with 4 rope components, and values of 8. */
const latents = { q: good.q, latent: tensor(5, 1, 6, 12), kv_b: tensor(6, 4, 12, 8) };
/** A tensor with one value replaced. */
const spoiled = (from: Tensor, index: number, value: number): Tensor => ({
  ...from,
  values: from.values.map((x, i) => i === index ? value : x),
});
/** A file whose header is odd but for its form. */
const withHeader = (header: unknown, dataBytes: number) =>
  fileOf(JSON.stringify(header), new Uint8Array(dataBytes));
const entry = (shape: ReadonlyArray<unknown>, begin: number, end: number, dtype = "F32") => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

const run = async ({ input = fileOfTensors(good), flags = [], args, env }: Case) => {
  await using folder = await scratch();
  const file = `${folder.path}/in.safetensors`;
  if (input === "folder") await Deno.mkdir(file);
  else if (input !== "none") await Deno.writeFile(file, input);
  await Deno.mkdir(`${folder.path}/folder`);
  const names = async () => {
    const found = [];
    for await (const { name } of Deno.readDir(folder.path)) found.push(name);
    return found.sort();
  };
  const before = await names();
  const attend = ["attend", file, "--out", `${folder.path}/out.safetensors`];
  const command = args?.(folder.path) ??
    [...attend, ...flags, ...(flags.includes("--device") ? [] : ["--device", "reference"])];
  const finished = await annulus(command, env === undefined ? {} : { env });
  return { ...finished, left: (await names()).filter((name) => !before.includes(name)) };
};

const judge = ({ says, code = 1 }: Case, found: Finished & { left: ReadonlyArray<string> }) => {
  const lines = found.stderr.split("\n");
  assert.equal(lines.pop(), "", "the last line ends");
  assert.equal(lines.length, 1, `one line: ${found.stderr}`);
  assert.match(lines[0]!, /^annulus: \S/);
  assert.match(lines[0]!, says);
  assert.doesNotMatch(lines[0]!, /internal error|file:\/\/|\bat .*\.ts\b/);
  assert.equal(found.stdout, "");
  assert.equal(found.code, code);
  assert.deepEqual(found.left, []);
};

/** Runs all cases, two at once, then judges each in a step of its own. */
const judgeAll = async (t: Deno.TestContext, cases: ReadonlyArray<Case>) => {
  const found = await twoAtOnce(cases, run);
  for (const [i, one] of cases.entries()) await t.step(one.name, () => judge(one, found[i]!));
};

const cannotUse = (name: string) => `Cannot use tensor "${name}" of ".*in\\.safetensors": `;

Deno.test("attend refuses tensors that do not make a problem", (t) =>
  judgeAll(t, [
    {
      name: "a tensor is missing",
      input: fileOfTensors({ q: good.q, v: good.v }),
      says: RegExp(`${cannotUse("k")}it must be there, \\[batch.*: found tensors "q", "v"`),
    },
    { name: "no tensor at all", input: withHeader({}, 0), says: RegExp(cannotUse("q")) },
    {
      name: "a tensor of another rank",
      input: withChange({ q: { ...good.q, shape: [6, 4, 8] } }),
      says: RegExp(`${cannotUse("q")}it must be of 4 dimensions, .*: found \\[6, 4, 8\\]`),
    },
    {
      name: "heads that do not divide",
      input: withChange({ k: tensor(2, 1, 6, 3, 8), v: tensor(3, 1, 6, 3, 8) }),
      says: RegExp(`${cannotUse("k")}.*divides the 4 heads of q: found \\[1, 6, 3, 8\\]`),
    },
    ...[6, 260].map((headDim): Case => ({
      name: `a head dim of ${headDim}`,
      input: fileOfTensors({
        q: tensor(1, 1, 6, 2, headDim),
        k: tensor(2, 1, 6, 2, headDim),
        v: tensor(3, 1, 6, 2, headDim),
      }),
      says: RegExp(`${cannotUse("q")}.*multiple of 4 up to 256: found \\[1, 6, 2, ${headDim}\\]`),
    })),
    ...["I32", "F64"].map((dtype): Case => {
      const width = dtype === "F64" ? 8 : 4;
      const [q, kv] = [6 * 4 * 8 * width, 6 * 2 * 8 * width];
      return {
        name: `elements of type ${dtype}`,
        input: withHeader({
          q: entry([1, 6, 4, 8], 0, q, dtype),
          k: entry([1, 6, 2, 8], q, q + kv, dtype),
          v: entry([1, 6, 2, 8], q + kv, q + 2 * kv, dtype),
        }, q + 2 * kv),
        says: RegExp(`${cannotUse("q")}it must be of type F32, F16 or BF16: found ${dtype}`),
      };
    }),
    {
      name: "k of another batch size",
      input: withChange({ k: tensor(2, 2, 6, 2, 8) }),
      says: RegExp(`${cannotUse("k")}.*\\[1, 6, kv_heads, 8\\].*: found \\[2, 6, 2, 8\\]`),
    },
    {
      name: "k of another length",
      input: withChange({ k: tensor(2, 1, 7, 2, 8) }),
      says: RegExp(`${cannotUse("k")}.*: found \\[1, 7, 2, 8\\]`),
    },
    {
      name: "v of another length",
      input: withChange({ v: tensor(3, 1, 5, 2, 8) }),
      says: RegExp(`${cannotUse("v")}.*\\[1, 6, 2, 8\\].*: found \\[1, 5, 2, 8\\]`),
    },
    {
      name: "v of other heads",
      input: withChange({ v: tensor(3, 1, 6, 4, 8) }),
      says: RegExp(`${cannotUse("v")}.*: found \\[1, 6, 4, 8\\]`),
    },
    {
      name: "no tokens",
      input: fileOfTensors({
        q: tensor(1, 1, 0, 4, 8),
        k: tensor(2, 1, 0, 2, 8),
        v: tensor(3, 1, 0, 2, 8),
      }),
      says: RegExp(`${cannotUse("q")}.*at least one element: found \\[1, 0, 4, 8\\]`),
    },
    {
      name: "latents beside keys",
      input: withChange({ latent: tensor(5, 1, 6, 12) }),
      says: RegExp(`${cannotUse("k")}it must be absent beside "latent": found both`),
    },
    {
      name: "latents and nothing that makes keys of them",
      input: fileOfTensors({ q: good.q, latent: tensor(5, 1, 6, 12) }),
      says: RegExp(
        `${cannotUse("kv_b")}it must be there, \\[heads, .*: found tensors "q", "latent"`,
      ),
    },
    {
      name: "latents of fewer tokens",
      input: fileOfTensors({ ...latents, latent: tensor(5, 1, 5, 12) }),
      says: RegExp(
        `${cannotUse("latent")}.*\\[1, 6, rank \\+ rope\\] to go with q: found \\[1, 5, 12\\]`,
      ),
    },
    ...[[4, 12, 6], [3, 12, 8], [4, 16, 8], [4, 4, 8], [4, 12, 16]].map((shape): Case => ({
      name: `latents and matrices of ${shape.join(" × ")}`,
      input: fileOfTensors({ ...latents, kv_b: tensor(6, ...shape) }),
      says: RegExp(`${cannotUse("kv_b")}.*rank \\+ rope = 12.*: found \\[${shape.join(", ")}\\]`),
    })),
    {
      name: "gradients of latents",
      input: fileOfTensors({ ...latents, do: good.q }),
      says: /attention with latents must be without gradients: found a cotangent/,
    },
    {
      name: "no KV heads",
      input: withChange({ k: tensor(2, 1, 6, 0, 8), v: tensor(3, 1, 6, 0, 8) }),
      says: RegExp(`${cannotUse("k")}.*: found \\[1, 6, 0, 8\\]`),
    },
    {
      name: "packed documents",
      input: (() => {
        const { q, k, v } = good;
        const bytes = [q, k, v].map(({ values }) => values.byteLength);
        const [a, b, c] = [bytes[0]!, bytes[0]! + bytes[1]!, bytes[0]! + bytes[1]! + bytes[2]!];
        return withHeader({
          q: entry(q.shape, 0, a),
          k: entry(k.shape, a, b),
          v: entry(v.shape, b, c),
          cu_seqlens: entry([2], c, c + 8, "I32"),
        }, c + 8);
      })(),
      says:
        /Cannot use attention "documents": it needs cu_seqlens\[1\] to be the sequence length, 6: found 0/,
    },
    {
      name: "a cotangent of another shape",
      input: withChange({ do: good.k }),
      says: RegExp(`${cannotUse("do")}.*the shape of q: found \\[1, 6, 2, 8\\]`),
    },
  ]));

const nonFinite = [
  ["q", NaN],
  ["k", NaN],
  ["v", NaN],
  ["q", -Infinity],
  ["k", Infinity],
  ["do", NaN],
] as const;

Deno.test("attend refuses values that are not finite, or would not be", (t) =>
  judgeAll(t, [
    ...nonFinite.map(([name, value]): Case => ({
      name: `${value} in ${name}`,
      input: withChange({ [name]: spoiled(good[name === "do" ? "q" : name], 37, value) }),
      flags: ["--json", "--ring", "2"],
      says: RegExp(
        `${cannotUse(name)}it must be finite everywhere: found ${value} at element 37\\b`,
      ),
    })),
    {
      name: "values beyond the range of the wire's format",
      input: withChange({ k: spoiled(good.k, 5, 1e5) }),
      flags: ["--wire", "f16", "--json"],
      says: RegExp(`${cannotUse("k")}.*within the range of f16.*: found 100000 at element 5\\b`),
    },
    ...devices.flatMap(({ name: device }) =>
      ["memory", "nats"].filter((link) => link === "memory" || !noNatsServer).map((
        link,
      ): Case => ({
        name: `scores beyond the range of float32, on ${device} over ${link}`,
        input: withChange({
          q: { ...good.q, values: good.q.values.map(() => 3e38) },
          k: { ...good.k, values: good.k.values.map(() => 3e38) },
        }),
        flags: ["--json", "--device", device, "--link", link],
        says:
          /Rank 0 \(.*\) failed: Cannot return "(o|lse)" of rank 0: .* must give finite numbers/,
      }))
    ),
  ]));

Deno.test({
  name: "the command refuses a named device that is not there",
  ignore: !devices.some(({ name }) => name === "webgpu") || noNatsServer,
  fn: (t) => {
    // Without the second, OpenGL would stand in.
    const env = { VK_DRIVER_FILES: "/nonexistent", DENO_WEBGPU_BACKEND: "vulkan" };
    const says = /Cannot use device "webgpu": it needs .*: found /;
    return judgeAll(t, [
      { name: "attend", flags: ["--device", "webgpu"], env, says },
      { name: "attend over nats", flags: ["--device", "webgpu", "--link", "nats"], env, says },
      { name: "verify", args: () => ["verify", "--device", "webgpu", "--json"], env, says },
      { name: "up", args: () => ["up", "-n", "2", "--device", "webgpu", "--json"], env, says },
    ]);
  },
});

Deno.test("attend refuses files that it cannot read", (t) => {
  const sound = fileOfTensors(good);
  const gigabyte = sound.slice();
  new DataView(gigabyte.buffer).setBigUint64(0, 2n ** 30n, true);
  const endless = sound.slice();
  new DataView(endless.buffer).setBigUint64(0, 2n ** 64n - 1n, true);
  const cannotOpen = 'Cannot open ".*in\\.safetensors": ';
  const [q, kv] = [6 * 4 * 8 * 4, 6 * 2 * 8 * 4];
  return judgeAll(t, [
    {
      name: "cut short",
      input: sound.slice(0, -40),
      says: RegExp(`${cannotOpen}.*cut short or damaged`),
    },
    {
      name: "cut within its header",
      input: sound.slice(0, 60),
      says: RegExp(`${cannotOpen}its header must end within the file's 60 bytes`),
    },
    { name: "of no bytes", input: new Uint8Array(0), says: RegExp(`${cannotOpen}.*found 0 bytes`) },
    {
      name: "a header of a gigabyte",
      input: gigabyte,
      says: RegExp(
        `${cannotOpen}its header must have at most \\d+ bytes: found a length of 1073741824`,
      ),
    },
    {
      name: "a header longer than any file",
      input: endless,
      says: RegExp(`${cannotOpen}.*: found a length of 18446744073709551615`),
    },
    {
      name: "tensors that overlap",
      input: withHeader({
        q: entry([1, 6, 4, 8], 0, q),
        k: entry([1, 6, 2, 8], q - 16, q - 16 + kv),
        v: entry([1, 6, 2, 8], q + kv, q + 2 * kv),
      }, q + 2 * kv),
      says: RegExp(`${cannotOpen}tensor "k" must begin where the one before it ends`),
    },
    {
      name: "NaN in a shape",
      input: fileOf(
        '{"q":{"dtype":"F32","shape":[1,NaN,4,8],"data_offsets":[0,0]}}',
        new Uint8Array(0),
      ),
      says: RegExp(`${cannotOpen}its header must be one JSON object`),
    },
    {
      name: "null in a shape",
      input: withHeader({ q: entry([1, NaN, 4, 8], 0, 0) }, 0),
      says: RegExp(`${cannotOpen}tensor "q" must have whole numbers .* as shape: found null`),
    },
    {
      name: "no safetensors file",
      input: new TextEncoder().encode("%PDF-1.7 and so on and so forth, as PDF files go"),
      says: RegExp(`${cannotOpen}its header must`),
    },
    {
      name: "terminal escapes in a name",
      input: withHeader({ "\x1b[2J\nq": entry([1, 1, 1, 4], 0, 16) }, 16),
      says: RegExp(`${cannotUse("q")}it must be there, [^\\x1b]*$`),
    },
    { name: "a missing file", input: "none", says: RegExp(`${cannotOpen}.*No such file`) },
    { name: "a folder", input: "folder", says: RegExp(`${cannotOpen}.*: found a folder`) },
  ]);
});

Deno.test("attend refuses places that it cannot write to", (t) => {
  const attend = (out: (folder: string) => string, ...flags: ReadonlyArray<string>) =>
  (
    folder: string,
  ) => [
    "attend",
    `${folder}/in.safetensors`,
    "--out",
    out(folder),
    "--device",
    "reference",
    ...flags,
  ];
  return judgeAll(t, [
    {
      name: "a missing folder",
      args: attend((folder) => `${folder}/missing/out.safetensors`),
      says: /Cannot create ".*missing\/out\.safetensors": its folder must be there/,
    },
    {
      name: "a folder that is a file",
      args: attend((folder) => `${folder}/in.safetensors/out.safetensors`),
      says: /Cannot create ".*in\.safetensors\/out\.safetensors": its folder must be there/,
    },
    {
      name: "a folder in its place",
      args: attend((folder) => `${folder}/folder`),
      says: /Cannot create ".*\/folder": .*: found a folder/,
    },
    {
      name: "a missing folder for the trace",
      args: (folder) =>
        attend(
          (folder) => `${folder}/out.safetensors`,
          "--trace",
          `${folder}/missing/trace.json`,
        )(folder),
      says: /Cannot write ".*missing\/trace\.json": its folder must be there/,
    },
    {
      name: "a good place for the trace of a run that fails",
      args: (folder) =>
        attend(
          (folder) => `${folder}/out.safetensors`,
          ...["--trace", `${folder}/trace.json`, "--weights", "0,0"],
        )(folder),
      says: /the weights must be/,
    },
    {
      name: "a folder in the trace's place",
      args: (folder) =>
        attend((folder) => `${folder}/out.safetensors`, "--trace", `${folder}/folder`)(folder),
      says: /Cannot write ".*\/folder": /,
    },
  ]);
});

Deno.test("the command refuses flags that make no sense", (t) => {
  const misuse = (name: string, says: RegExp, ...flags: ReadonlyArray<string>): Case => ({
    name,
    code: 2,
    says: RegExp(`${says.source}.*; see annulus --help$`),
    flags,
  });
  const misused = (name: string, says: RegExp, ...args: ReadonlyArray<string>): Case => ({
    ...misuse(name, says),
    args: () => args,
  });
  return judgeAll(t, [
    ...["0", "-1", "99999999", "5000000000"].map((ring) =>
      misuse(`--ring ${ring}`, RegExp(`--ring: "${ring}".*from 1 to 1024`), "--ring", ring)
    ),
    ...["abc", "1.5"].map((ring) =>
      misuse(`--ring ${ring}`, RegExp(`--ring: "${ring}"`), "--ring", ring)
    ),
    misuse("--window 0", /--window.*at least 1/, "--window", "0"),
    misuse("--layout foo", /--layout.*contiguous.*zigzag/, "--layout", "foo"),
    misuse("--weights 1,x", /--weights needs numbers.*1,x/, "--weights", "1,x"),
    misuse("--weights 1,,2", /--weights needs numbers.*1,,2/, "--weights", "1,,2"),
    misuse("--wire f8", /--wire.*f32.*bf16/, "--wire", "f8"),
    misuse("an unknown device", /--device needs .*"reference": found "foo"/, "--device", "foo"),
    misuse("--link carrier-pigeon", /--link.*memory.*nats/, "--link", "carrier-pigeon"),
    misuse(
      "--link memory with --nats",
      /--link memory .*leave out --nats/,
      ...["--link", "memory", "--nats", "nats://127.0.0.1:4222"],
    ),
    misuse("--cluster without --nats", /--cluster needs --nats/, "--cluster", "here"),
    misuse(
      "a cluster with dots",
      /--cluster.*a\.b.*letters, digits/,
      ...["--nats", "nats://127.0.0.1:4222", "--cluster", "a.b"],
    ),
    misuse("an unknown flag", /--frobnicate/, "--frobnicate"),
    {
      name: "another number of weights",
      flags: ["--ring", "3", "--weights", "1,2"],
      says: /number of weights must be the ring size, 3: found 2/,
    },
    {
      name: "weights of nothing",
      flags: ["--weights", "0,0"],
      says: /the weights must be .*: found 0, 0/,
    },
    misused("no --out", /--out/, "attend", "in.safetensors"),
    misused("no input", /IN\.safetensors/, "attend", "--out", "out.safetensors"),
    misused(
      "two inputs",
      /b\.safetensors/,
      "attend",
      "a.safetensors",
      "b.safetensors",
      "--out",
      "o",
    ),
    misused(
      "the trace in the place of the input",
      /must be different files: found ".\/in\.safetensors" twice/,
      ...["attend", "in.safetensors", "--out", "o.safetensors", "--trace", "./in.safetensors"],
    ),
    misused(
      "the output in the place of the input",
      /must be different files: found "in\.safetensors" twice/,
      ...["attend", "in.safetensors", "--out", "in.safetensors"],
    ),
    misused("an output without a name", /a file needs a name/, "attend", "a", "--out", ""),
    misused("an unknown command", /frobnicate/, "frobnicate"),
    misused("up -n 0", /-?-n.*at least 1/, "up", "-n", "0"),
    misused("the wizard, which would prompt", /--wizard/, "--wizard"),
    misused("node without --nats", /--nats/, "node"),
    misused(
      "attend --verify-rows 0",
      /--verify-rows.*at least 1/,
      ...["attend", "in", "--out", "out", "--verify-rows", "0"],
    ),
    misused("verify --tokens 0", /--tokens.*at least 1/, "verify", "--tokens", "0"),
  ]);
});

const nodeCard = (id: string, changes: Partial<NodeCard> = {}): NodeCard => ({
  id,
  version,
  host: "elsewhere",
  pid: 1,
  device: {
    name: "reference",
    backend: "JavaScript",
    software: true,
    features: [],
    gradients: false,
    memory: 2 ** 34,
    largestTensor: 2 ** 31,
  },
  plugins: [],
  attentionGflops: 1,
  linkMegabytes: 1,
  state: "idle",
  ...changes,
});

/** A listener that says one thing to everybody, or nothing. */
const listener = (says: string) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => {
        const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
        const sockets: Array<Deno.Conn> = [];
        const serving = (async () => {
          for await (const socket of listener) {
            sockets.push(socket);
            await socket.write(new TextEncoder().encode(says));
          }
        })();
        return { listener, sockets, serving };
      }),
      ({ listener, sockets, serving }) =>
        Effect.promise(async () => {
          listener.close();
          await serving.catch(() => {});
          for (const socket of sockets) socket.close();
        }),
    ),
    ({ listener }) => `nats://127.0.0.1:${(listener.addr as Deno.NetAddr).port}`,
  );

Deno.test({
  name: "the command refuses clusters that cannot do the work",
  ignore: noNatsServer,
  fn: (t) =>
    Effect.scoped(Effect.gen(function* () {
      const { url } = yield* natsServer();
      const connection = yield* dialNats(url);
      const answer = (cluster: string, ...them: ReadonlyArray<NodeCard>) => {
        for (const card of them) {
          const said = cards.encode(card);
          connection.subscribe(`annulus.${cluster}.ctl.roll`, {
            callback: (_, message) => connection.publish(`${message.reply}.any`, said),
          });
        }
      };
      answer("mixed", nodeCard("aaaa"), nodeCard("bbbb", { version: "0.0.1" }));
      answer("busy", nodeCard("aaaa"), nodeCard("bbbb", { state: "busy" }));
      answer("mute", nodeCard("aaaa"));
      yield* Effect.promise(() => connection.flush());

      const ssh = yield* listener("SSH-2.0-OpenSSH_9.2\r\n");
      const silent = yield* listener("");
      const closed = yield* Effect.scoped(listener(""));
      const over = (
        server: string,
        cluster: string,
        ...flags: ReadonlyArray<string>
      ) => ["--nats", server, "--cluster", cluster, ...flags];
      const commands = (server: string): ReadonlyArray<ReadonlyArray<string>> => [
        ["nodes", "--nats", server],
        ["node", "--nats", server],
        ["up", "-n", "2", "--nats", server],
      ];
      yield* Effect.promise(() =>
        judgeAll(t, [
          {
            name: "no node",
            flags: over(url, "empty"),
            says:
              /Cannot form a ring of 1 in cluster "empty" at .*: found 0; start some with `annulus node/,
          },
          {
            name: "fewer nodes than ranks",
            flags: over(url, "busy", "--ring", "2"),
            says: /Cannot form a ring of 2 in cluster "busy" .*: found 1 \(1 more are busy\)/,
          },
          {
            name: "a node of another version",
            flags: over(url, "mixed", "--ring", "2"),
            says: RegExp(
              `Cannot use node bbbb on elsewhere: it must run annulus ${version}.*found 0\\.0\\.1; update`,
            ),
          },
          {
            name: "a node that does not take its rank",
            flags: over(url, "mute"),
            says: /Rank 0 \(node aaaa on elsewhere\) failed: .*it does not answer/,
          },
          {
            name: "no server at the address",
            flags: over(closed, "here"),
            says: /Cannot use the NATS server "nats:.*refused/,
          },
          {
            name: "another protocol at the address",
            flags: over(ssh, "here"),
            says: /Cannot use the NATS server "nats:.*another protocol, "SSH-2\.0/,
          },
          {
            name: "silence at the address",
            flags: over(silent, "here"),
            says: /Cannot use the NATS server "nats:.*within 5 seconds: found silence/,
          },
          {
            name: "an address of another form",
            flags: ["--nats", "http://127.0.0.1:4222"],
            says: /Cannot use the NATS server "http:.*nats:\/\/host:port: found another form/,
          },
          ...[closed, "nats://127.0.0.1:99999"].map((server): Case => ({
            name: `nodes of the run's own, and ${server}`,
            flags: ["--nats", server],
            // Not by way of a node that could not be started.
            says: /^(annulus: )?Cannot use the NATS server "/,
          })),
          ...[...commands(closed), ...commands("here")].map((args): Case => ({
            name: `${args.join(" ")} without a server`,
            args: () => args,
            says: /Cannot use the NATS server "/,
          })),
        ])
      );
    })).pipe(Effect.runPromise),
});

Deno.test("the command refuses what is not safe", (t) => {
  const elsewhere = ["--nats", "nats://10.0.0.1:4222"];
  const unsafe = /needs --tls or credentials on another machine .* or --insecure .*: found none of/;
  const certs = (...args: ReadonlyArray<string>) => (folder: string) => [
    ...["certs", folder, "--nodes", "1"],
    ...args,
  ];
  return judgeAll(t, [
    { name: "attend elsewhere", flags: elsewhere, says: unsafe },
    ...["node", "nodes", "up"].map((command): Case => ({
      name: `${command} elsewhere`,
      args: () => [command, ...elsewhere],
      says: unsafe,
    })),
    {
      name: "certificates for nodes that a run starts",
      flags: ["--tls", "certs/driver", ...elsewhere],
      code: 2,
      says: /--tls needs --cluster and --nats: nodes that a run starts have no certificates/,
    },
    {
      name: "a folder without certificates",
      args: (folder) => ["node", "--tls", `${folder}/folder`, ...elsewhere],
      says: /Cannot use the certificate in ".*ca\.pem": .* folders with ca\.pem.*: found No such/,
    },
    { name: "an odd host", args: certs("--host", "a b"), says: /--host needs names.*found "a b"/ },
    {
      name: "certificates for no node",
      args: () => ["certs", "x", "--nodes", "0"],
      code: 2,
      says: /at least 1/,
    },
    {
      name: "certificates without openssl",
      args: certs(),
      env: { PATH: "" },
      says: /^annulus: Cannot make certificates in ".*": it needs openssl 3 .*: found /,
    },
  ]);
});
