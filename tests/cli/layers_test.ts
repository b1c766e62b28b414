/**
 * `annulus attend` over the layers of a file, each with an attention of its own.
 *
 * @module
 */
import assert from "node:assert/strict";
import { denseAttention } from "../../kernels/oracle.ts";
import { relativeL2 } from "../support/closeness.ts";
import { annulus, scratch } from "../support/cli.ts";
import { noNatsServer } from "../support/nats.ts";
import { normals } from "../support/random.ts";
import { fileOfTensors, type Tensor, tensorsOf } from "../support/tensors.ts";

const [tokens, heads, kvHeads, headDim] = [120, 4, 2, 8];
const shape = { batch: 1, tokens, heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim) };
const tensor = (seed: number, heads: number): Tensor => ({
  dtype: "f32",
  shape: [1, tokens, heads, headDim],
  values: normals(seed, tokens * heads * headDim),
});
const layer = (i: number) => ({
  [`${i}.q`]: tensor(3 * i, heads),
  [`${i}.k`]: tensor(3 * i + 1, kvHeads),
  [`${i}.v`]: tensor(3 * i + 2, kvHeads),
});
const fiveLayers = { ...layer(0), ...layer(1), ...layer(2), ...layer(3), ...layer(4) };
const near = (q: number, k: number) => k <= q && q - k < 7;
/** Two layers with a window for each full one, from the first on. */
const pattern = ["--attention", "window(7)", "--attention", "window(7)", "--attention", "causal"];
const sees = (i: number) => (_b: number, _h: number, q: number, k: number) =>
  i % 3 === 2 ? k <= q : near(q, k);

for (const link of ["memory", "nats"] as const) {
  const missing = link === "nats" && noNatsServer;
  Deno.test({
    name: `attend gives each layer its attention, by a pattern, over ${link}` +
      (missing ? " (not here: there is no nats-server)" : ""),
    ignore: missing,
    fn: async () => {
      await using folder = await scratch();
      const [input, out] = [`${folder.path}/in.st`, `${folder.path}/out.st`];
      const trace = `${folder.path}/trace.json`;
      await Deno.writeFile(input, fileOfTensors({ ...fiveLayers, "2.do": tensor(20, heads) }));
      const { code, stdout, stderr } = await annulus([
        ...["attend", input, "--out", out, "--ring", "3", "--device", "reference", ...pattern],
        ...["--link", link, "--verify", "--json", "--trace", trace],
      ]);
      assert.equal(code, 0, stderr);
      const results = tensorsOf(out);
      for (let i = 0; i < 5; i++) {
        const [q, k, v] = ["q", "k", "v"].map((name) =>
          (fiveLayers as Record<string, Tensor>)[`${i}.${name}`]!.values
        );
        const expected = denseAttention({ ...shape, rules: { sees: sees(i) } }, q!, k!, v!);
        assert.ok(relativeL2(results[`${i}.o`]!.values, expected.o) <= 2e-6, `layer ${i}`);
        assert.equal(`${i}.dq` in results, i === 2);
      }
      const report = JSON.parse(stdout);
      const pairs = report.layers.map(({ pairs }: { pairs: number }) => pairs);
      const windowed = tokens * 7 - 7 * 6 / 2, full = tokens * (tokens + 1) / 2;
      assert.deepEqual(pairs, [windowed, windowed, full, windowed, windowed]);
      const sent = (i: number): number =>
        report.layers[i].bytes_sent.reduce((a: number, b: number) => a + b, 0);
      assert.ok(sent(0) < sent(2) / 5, `a window sent ${sent(0)} bytes, a whole layer ${sent(2)}`);
      const { traceEvents } = JSON.parse(await Deno.readTextFile(trace));
      const computed = (traceEvents as ReadonlyArray<{ name: string; ts: number }>)
        .filter(({ name }) => name.startsWith("compute")).map(({ ts }) => ts);
      const steps = report.layers.map(({ ranks }: { ranks: ReadonlyArray<never> }, i: number) =>
        ranks.flatMap(({ steps }: { steps: ReadonlyArray<{ state: string }> }) => steps)
          .filter(({ state }) => state !== "skip").length * (i === 2 ? 2 : 1)
      );
      assert.equal(computed.length, steps.reduce((a: number, b: number) => a + b, 0));
      // One layer after the other.
      let at = 0;
      const latest = steps.map((count: number) => Math.max(...computed.slice(at, at += count)));
      assert.deepEqual(latest, latest.toSorted((a: number, b: number) => a - b));
    },
  });
}

Deno.test("a table without a number is for all layers that have none of their own; what nobody reads is told", async () => {
  await using folder = await scratch();
  const [input, out] = [`${folder.path}/in.st`, `${folder.path}/out.st`];
  const table = (...values: ReadonlyArray<number>): Tensor => ({
    ...{ dtype: "f32", shape: [values.length], values: Float32Array.from(values) },
  });
  const slopes = [[1, 0.5, 0.25, 0.125], [0.1, 0.2, 0.3, 0.4]];
  const tensors = { ...layer(0), ...layer(1), cu_seqlens: table(0, 50, tokens) };
  const odd = { k: tensor(9, kvHeads), "0.kv_b": table(1), "1.x": table(2) };
  await Deno.writeFile(
    input,
    fileOfTensors({
      ...{ ...tensors, ...odd, slopes: table(...slopes[0]!), "1.slopes": table(...slopes[1]!) },
    }),
  );
  const { code, stderr } = await annulus([
    ...["attend", input, "--out", out, "--device", "reference", "--json"],
    ...["--attention", "causal & alibi"],
  ]);
  assert.equal(code, 0, stderr);
  assert.equal(stderr, 'annulus: ignoring tensors "k", "0.kv_b", "1.x"\n');
  const results = tensorsOf(out);
  for (const i of [0, 1]) {
    const [q, k, v] = ["q", "k", "v"].map((name) =>
      (tensors as Record<string, Tensor>)[`${i}.${name}`]!.values
    );
    const rules = {
      sees: (_b: number, _h: number, q: number, k: number) => k <= q && (k < 50) === (q < 50),
      score: (s: number, _b: number, h: number, q: number, k: number) =>
        s - slopes[i]![h]! * (q - k),
    };
    const expected = denseAttention({ ...shape, rules }, q!, k!, v!);
    assert.ok(relativeL2(results[`${i}.o`]!.values, expected.o) <= 2e-6, `layer ${i}`);
  }
});

Deno.test("attend says which layer is wrong, and nothing is left of the others", async () => {
  const { "1.q": _, ...gap } = fiveLayers;
  const odd = { ...fiveLayers, "3.k": tensor(4, 3) };
  const spoiled = tensor(5, heads);
  spoiled.values[77] = NaN;
  for (
    const [tensors, flags, code, sentence] of [
      [gap, [], 1, /tensor "1\.q" .*: it must be there, since there is "4\.q": found none/],
      [
        { ...layer(0), "1.k": tensor(3, kvHeads) },
        [],
        1,
        /tensor "1\.q" .*: it must be there, since there is "1\.k": found none/,
      ],
      [odd, [], 1, /tensor "3\.v" .*, the shape of k/],
      [{ ...fiveLayers, "4.q": spoiled }, [], 1, /tensor "4\.q" .*finite everywhere: found NaN/],
      [
        { ...layer(0), ...layer(1) },
        pattern,
        2,
        /--attention is for one layer each: found 3 .*2 layers/,
      ],
    ] as const
  ) {
    await using folder = await scratch();
    const [input, out] = [`${folder.path}/in.st`, `${folder.path}/out.st`];
    await Deno.writeFile(input, fileOfTensors(tensors as Record<string, Tensor>));
    const found = await annulus([
      ...["attend", input, "--out", out, "--device", "reference", ...flags],
    ]);
    assert.equal(found.code, code, found.stderr);
    assert.match(found.stderr, sentence);
    assert.deepEqual(Array.from(Deno.readDirSync(folder.path), ({ name }) => name), ["in.st"]);
  }
});
