/**
 * `annulus plugin new` writes a variant that keeps its contract, and `plugin check` finds those that do not, with the
 * pair that shows it.
 *
 * @module
 */
import { Effect, Result } from "effect";
import assert from "node:assert/strict";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { loadPlugin } from "../../plugins/plugin_file.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { findLibrary } from "../../runtime/library.ts";
import { annulus } from "../support/cli.ts";

const adapter = await findAdapter();
const root = new URL("../../", import.meta.url);

/** Runs `use` in a folder that is gone afterwards. */
const inFolder = async (use: (folder: string) => Promise<void>): Promise<void> => {
  const folder = await Deno.makeTempDir({ prefix: "annulus-plugin-" });
  try {
    await use(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
};

/** A variant with one parameter, in the usual form but for what is told. */
const variant = (parts: Readonly<Record<string, string>>): string => {
  const all = {
    name: '"mine"',
    contract: "1",
    module: "import.meta.url",
    params: "{ size: int({ least: 1 }) }",
    examples: "() => [{ size: 2 }, { size: 5 }]",
    mask: "({ size }) => (_b, _h, q, k) => k <= q && q - k < size",
    wgsl: '{ mask: "return k <= q && q - k < size;" }',
    ...parts,
  };
  return 'import { defineAttention, int, ints } from "annulus/variant";\nexport default defineAttention({\n' +
    Object.entries(all).map(([key, value]) => `  ${key}: ${value},`).join("\n") + "\n});\n";
};

const pair = "batch entry \\d, head \\d+, query \\d+, key \\d+";

/** What is wrong with a variant, and what the report says of it. */
const faults: ReadonlyArray<{
  readonly fault: string;
  readonly parts: Readonly<Record<string, string>>;
  readonly says: RegExp;
  /** Only WGSL that runs shows it. */
  readonly wgsl?: true;
}> = [
  {
    fault: "its WGSL half is wrong",
    parts: { wgsl: '{ mask: "return k < q && q - k < size;" }' },
    says: RegExp(`its masks differ at ${pair}: TypeScript true, WGSL false`),
    wgsl: true,
  },
  {
    fault: "its WGSL half is wrong in later heads alone",
    parts: { wgsl: '{ mask: "return k <= q && q - k < size && (h < 4 || k != q);" }' },
    says: RegExp(`its masks differ at ${pair}: TypeScript true, WGSL false`),
    wgsl: true,
  },
  {
    fault: "its tile lies",
    parts: { tile: '({ size }) => (q, k) => q.first - k.last > size - 2 ? "none" : "some"' },
    says: RegExp(
      `its tile says "none" of queries \\d+ … \\d+ and keys \\d+ … \\d+, and ${pair} counts`,
    ),
  },
  {
    fault: "its tile lies of long ranges alone",
    parts: {
      tile: "({ size }) => (q, k) => k.first > q.last || q.first - k.last >= size || " +
        '(q.last - q.first > 99 && k.last - k.first > 99) ? "none" : "some"',
    },
    says: RegExp(
      `its tile says "none" of queries \\d+ … \\d+ and keys \\d+ … \\d+, and ${pair} counts`,
    ),
  },
  {
    fault: "its tile says all of some",
    parts: { tile: '() => (q, k) => k.first <= q.first ? "all" : "some"' },
    says: RegExp(`its tile says "all" of .*, and ${pair} does not count`),
  },
  {
    fault: "its band is too narrow",
    parts: { band: "({ size }) => ({ back: size - 2, ahead: 0 })" },
    says: RegExp(`its mask lets ${pair} count, and its band does not`),
  },
  {
    fault: "its mask goes by local index",
    parts: {
      params: "{ document: ints() }",
      examples: "({ tokens }) => [1, 3].map((n) => " +
        "({ document: Array.from({ length: tokens }, (_, i) => Math.floor(i * n / tokens)) }))",
      mask: "({ document }) => (_b, _h, q, k) => document[q] === document[k]",
      wgsl: '{ mask: "return document[q % 16] == document[k % 16];" }',
    },
    says: RegExp(`its masks differ at ${pair}: TypeScript false, WGSL true`),
    wgsl: true,
  },
  {
    fault: "it ignores a parameter",
    parts: {
      mask: "() => (_b, _h, q, k) => k <= q && q - k < 3",
      wgsl: '{ mask: "let unused = size; return k <= q && q - k < 3;" }',
    },
    says: RegExp(`its parameter "size" is ignored: ${pair} is the same for size of \\d and of \\d`),
  },
  {
    fault: "its WGSL does not name a parameter",
    parts: { wgsl: '{ mask: "return k <= q && q - k < 2;" }' },
    says: /none of its WGSL forms reads its parameter "size"/,
  },
  {
    fault: "its WGSL does not compile",
    parts: { wgsl: '{ mask: "let a = size;\\nreturn k <= q && q - k < sise;" }' },
    says:
      /attention "mine", line 2 of its WGSL mask: return k <= q && q - k < sise;: no definition/,
    wgsl: true,
  },
  {
    fault: "its mask differs between heads without saying so",
    parts: {
      mask: "({ size }) => (_b, h, q, k) => k <= q && q - k < size + h",
      wgsl: '{ mask: "return k <= q && q - k < size + h;" }',
    },
    says: RegExp(`its mask differs between heads or batch entries at ${pair}`),
  },
  {
    fault: "its mask differs between later heads alone",
    parts: {
      mask: "({ size }) => (_b, h, q, k) => k <= q && q - k < size + (h < 4 ? 0 : 1)",
      wgsl: '{ mask: "return k <= q && q - k < size + select(1, 0, h < 4);" }',
    },
    says: RegExp(`its mask differs between heads or batch entries at ${pair}`),
  },
  {
    fault: "its score is no number",
    parts: {
      score: "({ size }) => (s, _b, _h, q, k) => q - k === size ? NaN : s",
      slope: "() => () => 1",
    },
    says: RegExp(`its score is NaN at ${pair}`),
  },
  {
    fault: "its score does what a mask is for",
    parts: {
      score: "() => (s, _b, _h, _q, k) => k === 0 ? -Infinity : s",
      slope: "() => (_s, _b, _h, _q, k) => k === 0 ? 0 : 1",
      wgsl: '{ mask: "return k <= q && q - k < size;", ' +
        'score: "return select(s, bitcast<f32>(0xff800000u | u32(min(q, 0))), k == 0);" }',
    },
    says: RegExp(
      `^(?!.*differ).*its score is -Infinity at ${pair} for a score of .*: a pair that does not ` +
        "count belongs in the mask",
      "s",
    ),
  },
  {
    fault: "its slope is not that of its score",
    parts: { score: "({ size }) => (s) => s * size", slope: "() => () => 1" },
    says: RegExp(`its slope is 1 at ${pair} for a score of .*, and its score rises by`),
  },
  {
    fault: "its score is a string",
    parts: { score: "() => (s) => `${s}`", slope: "() => () => 1" },
    says: RegExp(`its score is a string at ${pair}`),
  },
  {
    fault: "its mask throws",
    parts: { mask: '() => { throw new Error("not today"); }' },
    says: /Cannot use attention "mine": it needs functions that do not throw: found not today/,
  },
  {
    fault: "its defaults throw",
    parts: { defaults: '() => { throw new Error("nor tomorrow"); }' },
    says: /Cannot use attention "mine": it needs functions that do not throw: found nor tomorrow/,
  },
  {
    fault: "a parameter is named as WGSL names something else",
    parts: {
      params: "{ b: int({ least: 1 }) }",
      examples: "() => [{ b: 2 }]",
      mask: "({ b }) => (_b, _h, q, k) => q - k < b",
      wgsl: '{ mask: "return q - k < b;" }',
    },
    says: /it needs parameters whose names WGSL forms can have .*: found "b"/,
  },
  {
    fault: "its name is that of another",
    parts: { name: '"causal"' },
    says: /✗ name: it needs a name that no other has: found "causal"/,
  },
  {
    fault: "it is more than one file",
    parts: {
      mask: '(await import("node:path")) && (({ size }) => (_b, _h, q, k) => q - k < size)',
    },
    says: /it needs to be one file, which imports nothing but annulus\/variant: found import\(\)/,
  },
  {
    fault: "it has no examples",
    parts: { examples: "() => []" },
    says: /it has parameters, and no examples to try/,
  },
  {
    fault: "it is of another version of the contract",
    parts: { contract: "2" },
    says: /Cannot use attention "mine": it needs version 1 of the contract: found version 2/,
  },
];

for (const { fault, parts, says, wgsl } of faults) {
  const missing = wgsl === true && adapter === undefined;
  Deno.test({
    name: `plugin check finds where ${fault}${missing ? " (not here: there is no adapter)" : ""}`,
    ignore: missing,
    fn: () =>
      inFolder(async (folder) => {
        const file = `${folder}/mine.ts`;
        await Deno.writeTextFile(file, variant(parts));
        const { code, stdout, stderr } = await annulus([
          "plugin",
          "check",
          "--device",
          "reference",
          file,
        ]);
        assert.equal(code, 1, stdout + stderr);
        assert.match(stdout + stderr, says);
      }),
  });
}

Deno.test("plugin check compares no gradients of a score without a slope, and says so", () =>
  inFolder(async (folder) => {
    const file = `${folder}/mine.ts`;
    const score = { score: "() => (s) => s / 2", wgsl: '{ score: "return s * 0.5;" }' };
    await Deno.writeTextFile(file, variant({ ...score, params: "{}", mask: "undefined" }));
    const { code, stdout } = await annulus(["plugin", "check", "--device", "reference", file]);
    assert.equal(code, 0, stdout);
    assert.match(stdout, /✓ rings on reference: mine\n/);
    assert.match(stdout, /– gradients on reference: mine: it has no slope in TypeScript\n/);
  }));

Deno.test("plugin check skips what a variant without TypeScript forms does not say, and why", () =>
  inFolder(async (folder) => {
    const file = `${folder}/mine.ts`;
    await Deno.writeTextFile(file, variant({ mask: "undefined" }));
    const { code, stdout } = await annulus(["plugin", "check", "--device", "reference", file]);
    assert.equal(code, 0, stdout);
    const skipped = [
      "parameters matter",
      "forms agree: mask",
      "heads: mine\\(size: 2\\), 23 tokens, 3 heads",
      "bands and tiles: mine\\(size: 2\\)",
      "rings on reference: mine\\(size: 5\\)",
    ];
    for (const name of skipped) {
      assert.match(stdout, RegExp(`– ${name}: it has no mask in TypeScript\n`));
    }
    assert.match(stdout, /keeps its contract, but for \d+ of \d+ checks, which were skipped/);
  }));

Deno.test({
  name: "plugin check compares tables whose names are in each other's" +
    (adapter === undefined ? " (not here: there is no adapter)" : ""),
  ignore: adapter === undefined,
  fn: () =>
    inFolder(async (folder) => {
      const file = `${folder}/mine.ts`;
      const text = variant({
        params: "{ a: ints(), v0_a: ints() }",
        examples: "() => [{ a: [0, 1, 0], v0_a: [1, 1] }, { a: [1, 0, 1], v0_a: [0, 1] }]",
        mask: "({ a, v0_a }) => (_b, _h, q, k) => a[q % 3] === v0_a[k % 2]",
        wgsl: '{ mask: "return a[q % 3] == v0_a[k % 2];" }',
      });
      await Deno.writeTextFile(file, text);
      const { code, stdout } = await annulus(["plugin", "check", "--device", "webgpu", file]);
      assert.equal(code, 0, stdout);
    }),
});

Deno.test("plugin new writes a variant that keeps its contract, and no other file", () =>
  inFolder(async (folder) => {
    const run = (...args: ReadonlyArray<string>) =>
      new Deno.Command(Deno.execPath(), {
        args: [
          ...["run", "-A", "--config", new URL("deno.json", root).pathname],
          ...[new URL("cli/main.ts", root).pathname, "plugin", ...args],
        ],
        cwd: folder,
      }).output();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    assert.equal((await run("new", "every")).code, 0);
    const lines = (await Deno.readTextFile(`${folder}/every.ts`)).split("\n")
      .filter((line) => line !== "" && !line.startsWith("/**"));
    assert.ok(lines.length <= 10, `it has ${lines.length} lines of its own`);
    const again = await run("new", "every");
    assert.equal(again.code, 1);
    assert.match(text(again.stderr), /needs a name that no file has: found a file/);
    assert.equal((await run("new", "no/name")).code, 1);
    assert.deepEqual(Array.from(Deno.readDirSync(folder), ({ name }) => name), ["every.ts"]);
    const { code, stdout } = await run("check", "--device", "reference", "--json", "every.ts");
    const { ok, checks } = JSON.parse(text(stdout));
    assert.deepEqual([code, ok], [0, true]);
    assert.ok(checks.length >= 10);
  }));

Deno.test("a variant imports nothing but annulus, whatever its comments and strings speak of", () =>
  inFolder(async (folder) => {
    const helper = `${root.pathname}plugins/attention/alibi.ts`;
    const lines = [
      ['import "node:path";', 'an import of "node:path"'],
      [`import { alibiSlopes } from "${helper}"; alibiSlopes(2);`, `an import of "${helper}"`],
      [`export * from /* a comment */ '${helper}';`, `an import of "${helper}"`],
      [`await import("${root.pathname}runtime/mask.ts");`, "import()"],
      [`import { unbounded } from "${root.pathname}runtime/mask.ts"; unbounded;`],
      ['// The idea is from "Longformer".'],
      [`/* import("node:path") */ const said = ['import "node:path"', \`from "it"\`]; said;`],
    ] as const;
    for (const [i, [line, found]] of lines.entries()) {
      const file = `${folder}/mine${i}.ts`;
      await Deno.writeTextFile(file, `${line}\n${variant({})}`);
      const loaded = await Effect.runPromise(Effect.result(loadPlugin(file)));
      if (found === undefined) assert.ok(Result.isSuccess(loaded), line);
      else {
        assert.ok(Result.isFailure(loaded), line);
        assert.equal(
          loaded.failure.message,
          'Cannot use attention "mine": it needs to be one file, which imports nothing but ' +
            `annulus/variant: found ${found}`,
        );
      }
    }
  }));

Deno.test("plugin check says of a file that is no variant what it needs", () =>
  inFolder(async (folder) => {
    const file = `${folder}/odd.ts`;
    await Deno.writeTextFile(file, "export default 5;\n");
    for (const path of [file, `${folder}/none.ts`]) {
      const { code, stderr } = await annulus(["plugin", "check", path]);
      assert.equal(code, 1);
      assert.match(
        stderr,
        /Cannot load a plugin from ".*": it needs a default export that defineAttention made/,
      );
    }
  }));

Deno.test("the variant of docs/plugins.md keeps its contract", () =>
  inFolder(async (folder) => {
    const text = await Deno.readTextFile(new URL("docs/plugins.md", root));
    const [, code] = /```ts\n(.*?)```/s.exec(text)!;
    await Deno.writeTextFile(`${folder}/every.ts`, code!);
    const check = await annulus(["plugin", "check", "--device", "reference", `${folder}/every.ts`]);
    assert.equal(check.code, 0, check.stdout);
    assert.match(check.stdout, /attention "every" keeps its contract/);
  }));

Deno.test("every variant that comes with annulus keeps its contract", async () => {
  const folder = new URL("plugins/attention/", root);
  // Gradients that are 0 are not 0 in float32.
  const device = findLibrary(libraryName) === undefined ? "reference" : "cpu";
  for await (const { name } of Deno.readDir(folder)) {
    const file = new URL(name, folder).pathname;
    const { code, stdout } = await annulus(["plugin", "check", "--device", device, file]);
    assert.equal(code, 0, stdout);
  }
});
