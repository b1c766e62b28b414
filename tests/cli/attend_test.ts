/**
 * `annulus attend` on files that another program made.
 *
 * @module
 */
import assert from "node:assert/strict";
import { devices } from "../../cli/devices.ts";
import type { Report } from "../../cli/report.ts";
import { denseAttention, denseGradients } from "../../kernels/oracle.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { decode, encode } from "../../runtime/dtype.ts";
import { findLibrary } from "../../runtime/library.ts";
import type { Problem } from "../../runtime/plan.ts";
import { annulus, twoAtOnce } from "../support/cli.ts";
import { inFolder } from "../support/in_folder.ts";
import { maxAbs, relativeL2 } from "../support/closeness.ts";
import { noNatsServer } from "../support/nats.ts";
import { tensorsOf } from "../support/tensors.ts";
import { causal, full, judged, type Mask, window } from "../support/masks.ts";

const noLibrary = findLibrary(libraryName) === undefined;
const maker = new URL("../support/make_safetensors.py", import.meta.url);
const noPython = await new Deno.Command("python3", { args: ["--version"], stdout: "null" })
  .output().then(({ success }) => !success, () => true);

/** What the other program is told. */
interface Shape {
  readonly batch: number;
  readonly tokens: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly dtype: "f32" | "f16" | "bf16";
}
const usual: Shape = {
  batch: 1,
  tokens: 203,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  dtype: "f32",
};

const make = async (path: string, { kvHeads, headDim, ...shape }: Shape, more: string[] = []) => {
  const flags = Object.entries({ ...shape, "kv-heads": kvHeads, "head-dim": headDim })
    .flatMap(([name, value]) => [`--${name}`, String(value)]);
  const { success, stderr } = await new Deno.Command("python3", {
    args: [maker.pathname, path, ...flags, ...more],
  }).output();
  assert.ok(success, new TextDecoder().decode(stderr));
};

const maskOf = (flags: ReadonlyArray<string>): Mask => {
  const at = flags.indexOf("--window");
  if (at >= 0) return window(Number(flags[at + 1]));
  return flags.includes("--causal") ? causal : full;
};

/** What is right, of the values as they travel. */
const expected = (input: string, shape: Shape, flags: ReadonlyArray<string>) => {
  const { q, k, v } = tensorsOf(input);
  const wire = flags.includes("--wire") ? "f16" : "f32";
  const problem: Problem = {
    ...shape,
    scale: 1 / Math.sqrt(shape.headDim),
    attention: maskOf(flags),
  };
  const [keys, values] = [k!, v!].map((tensor) => decode(wire, encode(wire, tensor.values)));
  return denseAttention(judged(problem), q!.values, keys!, values!);
};

/** Attends, compares with float64, and gives the report and the bytes of the output. */
const attend = async (
  folder: string,
  input: string,
  shape: Shape,
  flags: ReadonlyArray<string>,
) => {
  const out = `${folder}/${crypto.randomUUID()}.safetensors`;
  const device = flags.includes("--device") ? [] : ["--device", "reference"];
  const { code, stdout, stderr } = await annulus(
    ["attend", input, "--out", out, "--json", ...device, ...flags],
  );
  const title = `attend ${flags.join(" ")} on ${JSON.stringify(shape)}`;
  assert.equal(stderr, "", title);
  assert.equal(code, 0, title);
  const { o, lse } = tensorsOf(out);
  const { batch, tokens, heads, headDim } = shape;
  assert.deepEqual(o!.shape, [batch, tokens, heads, headDim]);
  assert.deepEqual(lse!.shape, [batch, heads, tokens]);
  const right = expected(input, shape, flags);
  const [apart, lseApart] = [relativeL2(o!.values, right.o), maxAbs(lse!.values, right.lse)];
  assert.ok(apart <= 2e-6, `${title}: o is ${apart} away`);
  assert.ok(lseApart <= 1e-5, `${title}: lse is ${lseApart} away`);
  return { report: JSON.parse(stdout) as Report, bytes: await Deno.readFile(out) };
};

const it = (name: string, test: (folder: string) => Promise<void>) =>
  inFolder(name, test, noPython ? "python3" : undefined);

it("attend is exact for every ring, layout and mask", async (folder) => {
  const input = `${folder}/in.safetensors`;
  await make(input, usual);
  const cases = [
    [],
    ["--causal"],
    ["--ring", "3"],
    ...["contiguous", "striped", "zigzag"].map((
      layout,
    ) => ["--ring", "3", "--causal", "--layout", layout]),
    ["--ring", "3", "--layout", "striped"],
    ["--ring", "4", "--window", "17"],
    ["--ring", "3", "--causal", "--weights", "1,0,2.5"],
    ["--weights", "3,1"],
    ["--ring", "3", "--wire", "f16"],
  ];
  const found = await twoAtOnce(cases, (flags) => attend(folder, input, usual, flags));
  for (const [i, flags] of cases.entries()) {
    const { report } = found[i]!;
    const at = flags.indexOf("--ring");
    assert.equal(report.ring, at < 0 ? flags.length === 2 ? 2 : 1 : Number(flags[at + 1]));
    assert.deepEqual(
      report.attention,
      maskOf(flags).map(({ definition: { name }, params }) => ({ name, params })),
    );
  }
  assert.deepEqual(found[8]!.report.ranks.map(({ tokens }) => tokens), [58, 0, 145]);
});

it("attend computes gradients where the file has a cotangent, and verifies them", async (folder) => {
  const shape = { ...usual, batch: 2, tokens: 97, heads: 6, kvHeads: 2 };
  const input = `${folder}/in.safetensors`;
  await make(input, shape, ["--cotangent"]);
  const { q, k, v, do: cotangent } = tensorsOf(input);
  const right = denseGradients(
    judged({ ...shape, scale: 1 / Math.sqrt(shape.headDim), attention: causal }),
    q!.values,
    k!.values,
    v!.values,
    cotangent!.values,
  );
  const links = noNatsServer ? ["memory"] : ["memory", "nats"];
  const bytes = await twoAtOnce(links, async (link) => {
    const out = `${folder}/${link}.safetensors`;
    const { code, stdout, stderr } = await annulus(
      ["attend", input, "--out", out, "--json", "--causal", "--ring", "3", "--verify"]
        .concat("--device", "reference", "--link", link),
    );
    assert.equal(stderr, "");
    assert.equal(code, 0);
    const report = JSON.parse(stdout) as Report;
    assert.ok(report.gradients && report.gradient_bytes_sent.every((bytes) => bytes > 0));
    const written = tensorsOf(out);
    for (const [name, of] of [["dq", q!], ["dk", k!], ["dv", v!]] as const) {
      assert.deepEqual(written[name]!.shape, of.shape);
      const apart = relativeL2(written[name]!.values, right[name]);
      assert.ok(apart <= 5e-6, `${name} is ${apart} away over ${link}`);
      assert.ok(report.error![name]! <= 5e-6);
    }
    return await Deno.readFile(out);
  });
  for (const other of bytes) assert.deepEqual(other, bytes[0]);
});

it("attend --verify passes gradients whose terms cancel, which are never exactly 0", async (folder) => {
  const cases: ReadonlyArray<readonly [number, ReadonlyArray<string>]> = [
    [1, []],
    [97, ["--window", "1"]],
  ];
  for (const [tokens, flags] of cases) {
    for (const device of noLibrary ? ["reference"] : ["reference", "cpu"]) {
      const input = `${folder}/${tokens}.safetensors`;
      await make(input, { ...usual, tokens }, ["--cotangent"]);
      const { code, stderr } = await annulus(
        [
          "attend",
          input,
          "--out",
          `${folder}/out`,
          "--verify",
          "--json",
          "--device",
          device,
          ...flags,
        ],
      );
      assert.equal(code, 0, stderr);
    }
  }
});

it("attend is exact for every shape and format", async (folder) => {
  const cases: ReadonlyArray<readonly [Partial<Shape>, ReadonlyArray<string>]> = [
    [{ dtype: "f16" }, ["--ring", "3", "--causal"]],
    [{ dtype: "bf16" }, ["--ring", "3", "--causal"]],
    [{ batch: 3, tokens: 50 }, ["--ring", "3", "--layout", "striped"]],
    [{ tokens: 2 }, ["--ring", "5", "--causal"]],
    [{ tokens: 1, heads: 1, kvHeads: 1, headDim: 4 }, []],
    [{ tokens: 31, heads: 6, kvHeads: 2, headDim: 80 }, ["--ring", "2"]],
    [{ tokens: 40, heads: 8, kvHeads: 1, headDim: 256 }, ["--ring", "2", "--causal"]],
  ];
  await twoAtOnce([...cases.entries()], async ([i, [changes, flags]]) => {
    const shape = { ...usual, ...changes };
    const input = `${folder}/in-${i}.safetensors`;
    await make(input, shape);
    const { report } = await attend(folder, input, shape, flags);
    assert.equal(report.wire, shape.dtype);
  });
});

for (const { name: device } of devices) {
  it(`attend on ${device} gives the same bytes every time and over every link`, async (folder) => {
    const input = `${folder}/in.safetensors`;
    await make(input, usual);
    const ring = ["--ring", "3", "--causal", "--device", device];
    const [first, second, nats] = await twoAtOnce(
      [ring, ring, ...(noNatsServer ? [] : [[...ring, "--link", "nats"]])],
      (flags) => attend(folder, input, usual, flags),
    );
    assert.deepEqual(second!.bytes, first!.bytes);
    if (nats !== undefined) assert.deepEqual(nats.bytes, first!.bytes);
    assert.equal(first!.report.device.name, device);
  });
}

for (const link of ["memory", "nats"]) {
  if (link === "nats" && noNatsServer) continue;
  it(`attend over ${link} reports what it did`, async (folder) => {
    const input = `${folder}/in.safetensors`, trace = `${folder}/trace.json`;
    await make(input, usual);
    const ring = 3;
    const { report } = await attend(folder, input, usual, [
      ...["--ring", String(ring), "--causal", "--layout", "striped", "--link", link],
      ...["--verify", "--trace", trace],
    ]);
    const { tokens, heads, kvHeads, headDim } = usual;
    const pairs = tokens * (tokens + 1) / 2;
    assert.equal(report.ring, ring);
    assert.equal(report.layout, "striped");
    assert.equal(report.wire, "f32");
    assert.equal(report.tokens, tokens);
    assert.deepEqual(report.device, {
      name: "reference",
      backend: "JavaScript",
      software: true,
    });
    assert.ok(report.seconds > 0);
    assert.equal(report.tokens_per_second, tokens / report.seconds);
    assert.equal(report.flops, 4 * headDim * heads * pairs);
    assert.ok(report.hidden_fraction >= 0 && report.hidden_fraction <= 1);

    // Striped: rank r holds the positions r, r + N, … Blocks are whole shards here, and each makes N − 1 hops.
    const shards = Array.from({ length: ring }, (_, r) => Math.ceil((tokens - r) / ring));
    assert.deepEqual(report.ranks.map(({ tokens }) => tokens), shards);
    const tokenBytes = 2 * kvHeads * headDim * 4;
    const sent = shards.map((_, r) =>
      // Every block but the right neighbour's passes from this rank to that one.
      shards.filter((_, home) => home !== (r + 1) % ring)
        .reduce((sum, count) => sum + count * tokenBytes, 0)
    );
    assert.deepEqual(report.bytes_sent, sent);
    assert.equal(report.kv_peak_bytes.length, ring);
    report.kv_peak_bytes.forEach((bytes, r) => assert.ok(bytes >= shards[r]! * tokenBytes));
    assert.ok(report.rss_bytes.every((bytes) => bytes > 2 ** 20));

    let total = 0;
    for (const { rank, pairs, steps } of report.ranks) {
      assert.equal(steps.length, ring);
      assert.deepEqual(steps.map(({ step }) => step), [0, 1, 2]);
      assert.deepEqual(steps.map(({ home }) => home), [0, 1, 2].map((d) => (rank - d + 3) % 3));
      assert.equal(steps.reduce((sum, step) => sum + step.pairs, 0), pairs);
      for (const { state, compute_ms, wait_ms } of steps) {
        assert.equal(state, "partial");
        assert.ok(compute_ms > 0 && wait_ms >= 0);
      }
      total += pairs;
    }
    assert.equal(total, pairs);
    const most = Math.max(...report.ranks.map(({ pairs }) => pairs));
    assert.equal(report.balance, most / (pairs / ring));

    assert.ok(report.error !== undefined);
    assert.equal(report.error.rows, tokens);
    assert.ok(report.error.o > 0 && report.error.o <= 2e-6 && report.error.lse <= 1e-5);

    const { traceEvents } = JSON.parse(await Deno.readTextFile(trace));
    const events: ReadonlyArray<{ ph: string; pid: number; cat: string; ts: number; dur: number }> =
      traceEvents.filter(({ ph }: { ph: string }) => ph === "X");
    for (let rank = 0; rank < ring; rank++) {
      const names = (activity: string) =>
        events.filter(({ pid, cat }) => pid === rank && cat === activity).length;
      // The queries and the rank's own block; then every block's compute, hops in and out; then home.
      assert.deepEqual(
        ["load", "compute", "receive", "forward", "home"].map(names),
        [2, ring, ring - 1, ring - 1, 1],
      );
    }
    assert.ok(
      events.every(({ ts, dur }) => Number.isFinite(ts) && Number.isFinite(dur) && dur > 0),
    );
    const left = [...Deno.readDirSync(folder)].map(({ name }) => name);
    assert.deepEqual(left.filter((name) => name.endsWith(".part")), []);
  });
}

it("attend reports an error only where it was asked to verify, and prints for people", async (folder) => {
  const input = `${folder}/in.safetensors`;
  await make(input, usual);
  const { report } = await attend(folder, input, usual, []);
  assert.ok(!("error" in report));
  const flags = ["--ring", "2", "--device", "reference", "--verify"];
  const { code, stdout, stderr } = await annulus(
    ["attend", input, "--out", `${folder}/o`, ...flags],
  );
  assert.equal(code, 0);
  assert.match(stdout, /^ring +2 ranks, contiguous, K and V travel as f32$/m);
  assert.match(stdout, /^device +reference .*software on the CPU, not a GPU$/m);
  assert.match(stdout, /^error +o \d.*lse \d.*over 203 rows$/m);
  assert.match(stderr, /^100 % \(rank 0: 100 %, 1: 100 %\)$/m);
  assert.ok(!(stdout + stderr).includes("\x1b"), "no terminal, no escapes");
});

it("attend does not mind that nobody reads what it prints", async (folder) => {
  const input = `${folder}/in.safetensors`, out = `${folder}/out.safetensors`;
  await make(input, usual);
  const main = new URL("../../cli/main.ts", import.meta.url).pathname;
  const command = `"$0" run -A "${main}" attend "${input}" --out "${out}" --device reference`;
  const { stderr } = await new Deno.Command("sh", {
    args: ["-c", `{ ${command}; echo "code $?" >&2; } | true`, Deno.execPath()],
    cwd: new URL("../..", import.meta.url),
  }).output();
  assert.match(new TextDecoder().decode(stderr), /^code 0$/m);
  assert.deepEqual(tensorsOf(out).o!.shape, [1, 203, 4, 16]);
});

it("attend replaces its output only when the new one is whole", async (folder) => {
  const input = `${folder}/in.safetensors`, out = `${folder}/out.safetensors`;
  await make(input, usual);
  await Deno.writeTextFile(out, "an earlier result");
  const command = ["attend", input, "--out", out, "--device", "reference", "--json"];
  const failed = await annulus([...command, "--ring", "2", "--weights", "1,2,3"]);
  assert.equal(failed.code, 1);
  assert.equal(await Deno.readTextFile(out), "an earlier result");
  const { code } = await annulus(command);
  assert.equal(code, 0);
  assert.deepEqual(tensorsOf(out).o!.shape, [1, 203, 4, 16]);
});
