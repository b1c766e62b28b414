/**
 * `annulus attend` with attention that is more than causal, from file to file.
 *
 * @module
 */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { completeAttention } from "../../cli/attention.ts";
import { denseAttention } from "../../kernels/oracle.ts";
import type { SafetensorsFile } from "../../plugins/safetensors.ts";
import { defineAttention, floats } from "../../runtime/variant.ts";
import { relativeL2 } from "../support/closeness.ts";
import { annulus, scratch } from "../support/cli.ts";
import { noNatsServer } from "../support/nats.ts";
import { normals } from "../support/random.ts";
import { fileOfTensors, tensorsOf } from "../support/tensors.ts";

const [tokens, heads, kvHeads, headDim] = [150, 4, 2, 8];
const shape = { batch: 1, tokens, heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim) };
const tensor = (seed: number, heads: number) =>
  ({
    dtype: "f32",
    shape: [1, tokens, heads, headDim],
    values: normals(seed, tokens * heads * headDim),
  }) as const;
const [q, k, v] = [tensor(1, heads), tensor(2, kvHeads), tensor(3, kvHeads)];

/** The file of these tensors, with int32 tensors beside them. */
const fileWith = (
  tables: Readonly<Record<string, ReadonlyArray<number>>>,
): Uint8Array<ArrayBuffer> => {
  const file = fileOfTensors({ q, k, v });
  const length = Number(new DataView(file.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length)));
  const data = file.subarray(8 + length);
  let end = data.length;
  const parts: Array<Uint8Array> = [data];
  for (const [name, values] of Object.entries(tables)) {
    const bytes = new Uint8Array(Int32Array.from(values).buffer);
    header[name] = {
      dtype: "I32",
      shape: [values.length],
      data_offsets: [end, end += bytes.length],
    };
    parts.push(bytes);
  }
  const text = new TextEncoder().encode(JSON.stringify(header).padEnd(1024, " "));
  const size = new Uint8Array(8);
  new DataView(size.buffer).setBigUint64(0, BigInt(text.length), true);
  return new Uint8Array([size, text, ...parts].flatMap((part) => [...part]));
};

Deno.test("attend reads packed documents from the file, whether it is told to or not", async () => {
  await using folder = await scratch();
  const [input, out] = [`${folder.path}/in.st`, `${folder.path}/out.st`];
  const bounds = [0, 31, 31, 90, tokens];
  await Deno.writeFile(input, fileWith({ cu_seqlens: bounds }));
  const documentOf = (token: number) => bounds.findLastIndex((bound) => bound <= token);
  const sees = (_b: number, _h: number, a: number, b: number) =>
    b <= a && documentOf(a) === documentOf(b);
  const expected = denseAttention({ ...shape, rules: { sees } }, q.values, k.values, v.values);
  for (const flags of [["--causal"], ["--attention", "causal & documents"]]) {
    const { code, stdout, stderr } = await annulus([
      ...[
        "attend",
        input,
        "--out",
        out,
        "--ring",
        "3",
        "--device",
        "reference",
        "--verify",
        "--json",
      ],
      ...flags,
    ]);
    assert.equal(code, 0, stderr);
    assert.ok(relativeL2(tensorsOf(out)["o"]!.values, expected.o) <= 2e-6);
    const report = JSON.parse(stdout);
    assert.deepEqual(
      report.attention.map(({ name }: { name: string }) => name),
      ["causal", "documents"],
    );
    const pairs = bounds.slice(1).map((end, i) => end - bounds[i]!);
    assert.equal(report.pairs, pairs.reduce((sum, n) => sum + n * (n + 1) / 2, 0));
  }
});

Deno.test("a table that is called like a tensor of attend is not read from it", async () => {
  const { definition } = defineAttention({
    ...{ name: "weighed", contract: 1, module: import.meta.url },
    params: { v: floats(), lse: floats(), w: floats() },
  });
  const file = {
    tensor: () => ({ dtype: "F32", shape: [1] }),
    read: () => Effect.succeed(new Uint8Array(4)),
  } as unknown as SafetensorsFile;
  const { variants, read } = await completeAttention([{ definition, params: {} }], file, "in").pipe(
    Effect.runPromise,
  );
  assert.deepEqual(variants[0]!.params, { w: [0] });
  assert.deepEqual([...read], ["w"]);
});

Deno.test("attend moves the halo of a window, and says how much that was", async () => {
  await using folder = await scratch();
  const input = `${folder.path}/in.st`;
  await Deno.writeFile(input, fileOfTensors({ q, k, v }));
  const { code, stdout, stderr } = await annulus([
    ...["attend", input, "--out", `${folder.path}/out.st`, "--window", "11", "--ring", "5"],
    ...["--layout", "contiguous", "--device", "reference", "--verify", "--json"],
  ]);
  assert.equal(code, 0, stderr);
  const { bytes_sent: sent, hops } = JSON.parse(stdout);
  assert.deepEqual([...sent, hops], [...Array(4).fill(10 * 2 * kvHeads * headDim * 4), 0, 1]);
});

Deno.test({
  name: "nodes load the file of an attention that their operator named, and no other" +
    (noNatsServer ? " (not here: there is no nats-server)" : ""),
  ignore: noNatsServer,
  fn: async () => {
    await using folder = await scratch();
    const input = `${folder.path}/in.st`;
    await Deno.writeFile(input, fileOfTensors({ q, k, v }));
    const file = `${folder.path}/near.ts`;
    await Deno.writeTextFile(
      file,
      `import { defineAttention, int } from "annulus/variant";
export default defineAttention({
  name: "near",
  contract: 1,
  module: import.meta.url,
  params: { size: int({ least: 1 }) },
  mask: ({ size }) => (_b, _h, q, k) => Math.abs(q - k) < size,
});
`,
    );
    const run = (...flags: ReadonlyArray<string>) =>
      annulus([
        ...["attend", input, "--out", `${folder.path}/out.st`, "--ring", "2", "--link", "nats"],
        ...["--device", "reference", "--attention", "near(20)", "--verify", ...flags],
      ]);
    const with_ = await run("--plugin", file);
    assert.equal(with_.code, 0, with_.stderr);
    const without = await run();
    assert.equal(without.code, 2);
    assert.match(without.stderr, /--attention needs names .*: found "near\(20\)"/);
    const twice = await run("--plugin", file, "--plugin", file);
    assert.equal(twice.code, 1);
    assert.match(twice.stderr, /needs a name that no other has: found "near"/);
  },
});

Deno.test("a device and --verify refuse an attention whose form they need and which has it not", async () => {
  await using folder = await scratch();
  const input = `${folder.path}/in.st`;
  await Deno.writeFile(input, fileOfTensors({ q, k, v }));
  const file = `${folder.path}/near.ts`;
  await Deno.writeTextFile(
    file,
    `import { defineAttention } from "annulus/variant";
export default defineAttention({
  name: "near",
  contract: 1,
  module: import.meta.url,
  wgsl: { mask: "return abs(q - k) < 5;" },
});
`,
  );
  const needed = [
    [[], 'on device "reference"'],
    [["--verify"], "for --verify"],
  ] as const;
  for (const [flags, where] of needed) {
    const { code, stderr } = await annulus([
      ...["attend", input, "--out", `${folder.path}/out.st`, "--attention", "near"],
      ...["--plugin", file, "--device", "reference", ...flags],
    ]);
    assert.equal(code, 1);
    assert.match(
      stderr,
      RegExp(`Cannot use attention "near": it needs its mask in TypeScript ${where}: found none`),
    );
  }
});

Deno.test("a device from a file is chosen by name or score, and by no name that is taken", async () => {
  await using folder = await scratch();
  const input = `${folder.path}/in.st`;
  await Deno.writeFile(input, fileOfTensors({ q, k, v }));
  const root = new URL("../../", import.meta.url).href;
  const file = `${folder.path}/mine.ts`;
  const write = (name: string, score: number) =>
    Deno.writeTextFile(
      file,
      `import { Effect } from "effect";
import { reference } from "${root}plugins/reference.ts";
export default { ...reference, name: "${name}", score: Effect.succeed(${score}) };
`,
    );
  const run = (...flags: ReadonlyArray<string>) =>
    annulus([
      ...["attend", input, "--out", `${folder.path}/out.st`, "--plugin", file, "--json"],
      ...flags,
    ]);
  await write("mine", 1000);
  for (const flags of [["--device", "mine"], []]) {
    const { code, stdout, stderr } = await run(...flags, "--verify");
    assert.equal(code, 0, stderr);
    assert.equal(JSON.parse(stdout).device.backend, "JavaScript");
  }
  const unknown = await run("--device", "other");
  assert.equal(unknown.code, 2);
  assert.match(
    unknown.stderr,
    /--device needs "auto" or one of .*"mine": found "other"/,
  );
  await write("reference", 1);
  const taken = await run();
  assert.equal(taken.code, 1);
  assert.match(taken.stderr, /it needs a name that no other has: found "reference"/);
});
