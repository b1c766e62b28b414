/** The kernel bench in small, without peers: its tables and files, and that a wrong result is found out. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { Effect } from "effect";
import { compare } from "../../bench/compare.ts";
import { type Contender, contendersWith } from "../../bench/contenders.ts";
import type { Job } from "../../bench/job.ts";
import { faultsOf, kernelMarkdown } from "../../bench/kernel_report.ts";
import { thisMachine } from "../../bench/machine.ts";
import { readResults, type Results } from "../../bench/results.ts";
import { type BenchOptions, measure } from "../../bench/kernels.ts";

const job: Job = { kind: "gradients", heads: 2, tokens: 37, headDim: 8, causal: true };
const options: BenchOptions = {
  rounds: 2,
  matmul: 64,
  progress: () => Effect.void,
  exclusively: (work) => work,
};
const script = (name: string, ...args: ReadonlyArray<string>): ReadonlyArray<string> => [
  Deno.execPath(),
  "run",
  "-A",
  new URL(`../support/${name}`, import.meta.url).pathname,
  ...args,
];
const reference = contendersWith([]).find(({ name }) => name === "annulus reference")!;
const odd = (name: string, computes: Contender["computes"] = ["gradients"]): Contender => ({
  ...reference,
  name,
  role: "peer",
  computes,
  command: script("odd_contender.ts", name),
});

Deno.test("a table has a row for each contender that computes right, with its ratios", async () => {
  const table = await Effect.runPromise(measure(job, [reference, odd("right")], options));
  assert.deepEqual(faultsOf([table]), []);
  assert.deepEqual(table.missing, []);
  const [own, peer] = table.rows;
  assert.equal(own!.samples.length, 2);
  assert.ok(own!.samples.every(({ seconds }) => seconds > 0));
  assert.ok(own!.verdict.error > 0 && own!.verdict.error < 5e-6, String(own!.verdict.error));
  assert.equal(peer!.name, "right");
  const lines = kernelMarkdown(table).split("\n");
  assert.match(lines[0]!, /gradients, 2 × 37 × 8, causal/);
  assert.match(lines.find((line) => line.includes("annulus reference"))!, /e-\d/);
});

for (const fault of ["o", "lse", "dq", "dk", "dv"]) {
  Deno.test(`a contender whose ${fault} is wrong makes the bench fail`, async () => {
    const table = await Effect.runPromise(measure(job, [odd(fault)], options));
    assert.equal(table.rows[0]!.verdict.right, false);
    assert.match(faultsOf([table]).join(), new RegExp(`${fault} is wrong`));
    assert.match(kernelMarkdown(table), /WRONG/);
  });
}

Deno.test("a contender without a result makes the bench fail", async () => {
  const table = await Effect.runPromise(measure(job, [odd("without")], options));
  assert.equal(faultsOf([table]).length, 1);
});

Deno.test("a contender that dies while it is measured makes the bench fail", async () => {
  const table = await Effect.runPromise(measure(job, [odd("dying")], options));
  assert.match(faultsOf([table]).join(), /did not end: .* exit code 7/);
});

Deno.test("a device that opens and computes nothing makes the bench fail, a peer does not", async () => {
  const mute: Contender = { ...odd("mute"), role: "annulus" };
  const table = await Effect.runPromise(measure(job, [mute, odd("mute")], options));
  assert.deepEqual(table.rows, []);
  assert.equal(table.missing.length, 2);
  assert.match(faultsOf([table]).join(), /^[^;]*: mute did not end: it computes nothing$/);
});

Deno.test("a contender that does not start is left out with its reason", async () => {
  const absent: Contender = { ...odd("absent"), command: ["no-such-program"] };
  const closed = odd("closed");
  const table = await Effect.runPromise(measure(job, [absent, closed], options));
  assert.deepEqual(faultsOf([table]), []);
  assert.match(table.missing[0]!.reason, /no-such-program does not start/);
  assert.match(table.missing[1]!.reason, /this contender is closed today/);
});

Deno.test("deno task bench kernels --quick writes its table as Markdown and JSON", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const flags = ["--quick", "--rounds", "1", "--only", "annulus reference", "--out", folder];
    const { code, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "bench/main.ts", "kernels", ...flags],
      cwd: fileURLToPath(new URL("../..", import.meta.url)),
    }).output();
    assert.equal(code, 0, new TextDecoder().decode(stderr));
    const { machine, tables }: Results = JSON.parse(
      await Deno.readTextFile(`${folder}/kernels.json`),
    );
    assert.equal(machine.deno, Deno.version.deno);
    assert.deepEqual(tables.map(({ title }) => title), [
      "attention, 2 × 96 × 32, full",
      "attention, 2 × 96 × 32, causal",
      "gradients, 2 × 96 × 32, full",
      "gradients, 2 × 96 × 32, causal",
    ]);
    for (const { rows } of tables) {
      const row = rows.find(({ name }) => name === "annulus reference");
      assert.equal(row!.samples.length, 1);
    }
    const markdown = await Deno.readTextFile(`${folder}/kernels.md`);
    for (const { title } of tables) assert.ok(markdown.includes(title), title);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("deno task bench says at once what it cannot do", async () => {
  for (
    const [flags, code, sentence] of [
      [["--quick", "--only", "cpu"], 2, /^bench: --only is no flag of both benches/],
      [["ring", "--quick", "--rings", ""], 2, /whole numbers from 1 to 64 with commas between/],
      [["ring", "--quick", "--rings", "1.5"], 2, /whole numbers from 1 to 64 with commas between/],
      [["ring", "--quick", "--devices", ","], 2, /webgpu, cpu, reference, with commas between/],
      [["kernels", "--quick", "--versions", "9"], 2, /whole numbers from 1 to 6 with commas/],
      [
        ["kernels", "--quick", "--only", "reference", "--out", "/proc/nope"],
        1,
        /^bench: cannot write results to "\/proc\/nope": .*\n$/,
      ],
      [
        ["kernels", "--quick", "--only", "nobody"],
        2,
        /^bench: --only needs parts .*: found "nobody"; see bench --help\n$/,
      ],
      [
        ["kernels", "--shapes", "2x64x6"],
        2,
        /^bench: .*head dim \(a multiple of 4 up to 256\).*\n$/,
      ],
      [
        ["kernels", "--shapes", "0x64x8"],
        2,
        /^bench: .*head dim \(a multiple of 4 up to 256\).*\n$/,
      ],
      [["kernels", "--rounds", "0"], 2, /^bench: .*a number of at least 1.*; see bench --help\n$/],
    ] as const
  ) {
    const bench = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "bench/main.ts", ...flags],
      cwd: fileURLToPath(new URL("../..", import.meta.url)),
    }).output();
    const said = new TextDecoder().decode(bench.stderr);
    assert.equal(bench.code, code, said);
    assert.match(said, sentence);
  }
});

Deno.test("a comparison gives for each row that two files share how many times as fast it is", () => {
  const results = (...milliseconds: ReadonlyArray<number>): Results => ({
    bench: "kernels",
    machine: thisMachine(),
    tables: [{
      title: "a job",
      rows: [{ name: "one", samples: milliseconds.map((ms) => ({ seconds: ms / 1000 })) }],
    }],
  });
  const lines = compare(results(40, 20, 30), results(9, 10, 11)).split("\n");
  assert.match(lines.at(-1)!, /a job.*one.*30\.0.*10\.0.*3\.00/);
});

Deno.test("a comparison refuses what is no result file, with a sentence", async () => {
  for (const path of ["deno.json", "no-such-file"]) {
    const error = await Effect.runPromise(Effect.flip(readResults(path)));
    assert.match(error.message, /Cannot compare ".*": needs a result file of the bench: found/);
  }
});
