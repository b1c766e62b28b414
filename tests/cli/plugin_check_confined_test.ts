/**
 * Files that `annulus plugin check` must not let do what they want: each is refused in a sentence that says what it did,
 * and nothing of it is left.
 *
 * @module
 */
import assert from "node:assert/strict";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { findLibrary } from "../../runtime/library.ts";
import { Annulus, annulus, eventually, scratch } from "../support/cli.ts";

const root = new URL("../../", import.meta.url).pathname;

/** A variant that keeps its contract, with more before it, or another mask. */
const variant = (before: string, mask = "(_b, _h, q, k) => k <= q") =>
  `import { defineAttention } from "annulus/variant";
${before}
export default defineAttention({
  name: "mine",
  contract: 1,
  module: import.meta.url,
  mask: () => ${mask},
});
`;

/** What a check of such a file says; on plain loops, which are the same everywhere. */
const check = async (text: string, ...flags: ReadonlyArray<string>) => {
  await using folder = await scratch();
  const file = `${folder.path}/mine.ts`;
  await Deno.writeTextFile(file, text);
  const finished = await annulus(["plugin", "check", "--device", "reference", ...flags, file]);
  const left = Array.from(Deno.readDirSync(folder.path), ({ name }) => name);
  assert.deepEqual(left, ["mine.ts"], "it wrote to its folder");
  return finished;
};

/** What a file does before it is a variant, and what is said of it. */
const refusals: ReadonlyArray<{
  readonly does: string;
  readonly text: string;
  readonly says: RegExp;
  readonly flags?: ReadonlyArray<string>;
}> = [
  ...([
    ["reads a file", 'Deno.readTextFileSync("/etc/passwd");', 'read access to "/etc/passwd"'],
    ["reads its folder", "[...Deno.readDirSync(import.meta.dirname!)];", 'read access to ".*"'],
    ["imports its neighbour", 'import "./helper.ts";', 'read access to ".*/helper.ts"'],
    ["imports from the network", 'import "https://127.0.0.1/x.ts";', "import access to .*x.ts"],
    [
      "writes a file",
      'Deno.writeTextFileSync(import.meta.filename! + ".txt", "");',
      'write access to ".*mine.ts.txt"',
    ],
    [
      "opens a socket",
      'await Deno.connect({ hostname: "127.0.0.1", port: 9 });',
      'net access to "127.0.0.1:9"',
    ],
    ["reads the environment", 'Deno.env.get("HOME");', 'env access to "HOME"'],
    ["reads all of the environment", "Deno.env.toObject();", "env access"],
    ["asks who the machine is", "Deno.hostname();", 'sys access to "hostname"'],
    ["runs a program", 'new Deno.Command("true").outputSync();', 'run access to "true"'],
    ["kills a process", 'Deno.kill(Deno.ppid, "SIGKILL");', "run access"],
    ["loads a library", 'Deno.dlopen("libc.so.6", {});', 'ffi access to "libc.so.6"'],
    [
      "reads a file, and hides that",
      'try { Deno.readTextFileSync("/etc/passwd"); } catch { /* another time */ }',
      'read access to "/etc/passwd"',
    ],
    [
      "opens a socket in a thread of its own",
      'new Worker("data:application/javascript,Deno.listen({ port: 0 })", { type: "module" });' +
      "await new Promise((resume) => setTimeout(resume, 60_000));",
      'net access to "0.0.0.0:0"',
    ],
    [
      "asks for a file whose name is a megabyte",
      'try { Deno.readTextFileSync("}".repeat(2e6)); } catch { /* another time */ }',
      "read access to .*}}}",
    ],
  ] as const).map(([does, before, what]) => ({
    does,
    text: variant(before),
    says: RegExp(
      `Cannot check ".*mine.ts": it must do without permissions: found that it asked for ${what}`,
    ),
  })),
  {
    does: "runs a program in its mask",
    text: variant("", '() => new Deno.Command("true").outputSync().success'),
    says: /it must do without permissions: found that it asked for run access to "true"/,
  },
  {
    does: "keeps something in Web Storage, which needs no permission",
    text: variant('localStorage.setItem("a", "b");'),
    says: /Cannot load a plugin from ".*mine.ts": .*: found disk I\/O error/,
  },
  {
    does: "keeps something in a cache, which needs no permission",
    text: variant('await caches.open("a");'),
    says: /Cannot load a plugin from ".*mine.ts": .*: found disk I\/O error/,
  },
  {
    does: "is in a loop",
    text: variant("for (;;);"),
    says:
      /Cannot check ".*": it must finish within 3 s, which --seconds changes: found that it did/,
    flags: ["--seconds", "3"],
  },
  {
    does: "is in a loop in its mask",
    text: variant("", "() => { for (;;); }"),
    says:
      /Cannot check ".*": it must finish within 3 s, which --seconds changes: found that it did/,
    flags: ["--seconds", "3"],
  },
  {
    does: "waits for ever",
    text: variant("setInterval(() => {}, 1000); await new Promise(() => {});"),
    says:
      /Cannot check ".*": it must finish within 3 s, which --seconds changes: found that it did/,
    flags: ["--seconds", "3"],
  },
  {
    does: "makes objects without end",
    text: variant("const all = []; for (;;) all.push(Array.from({ length: 1000 }, () => ({})));"),
    says:
      /Cannot check ".*": it must do with 400 MiB, which --memory changes: found that it needed/,
    flags: ["--memory", "400"],
  },
  {
    does: "makes buffers without end",
    text: variant("const all = []; for (;;) all.push(new Uint8Array(1 << 24).fill(1));"),
    says:
      /Cannot check ".*": it must do with 400 MiB, which --memory changes: found that it needed/,
    flags: ["--memory", "400"],
  },
  {
    does: "ends the process as if all were well",
    text: variant("Deno.exit(0);"),
    says:
      /Cannot check ".*": its checks must come to their end: found that it ended before, with code 0/,
  },
  {
    does: "ends the process in its mask",
    text: variant("", "() => Deno.exit(7)"),
    says: /its checks must come to their end: found that it ended before, with code 7/,
  },
  {
    does: "aborts the process",
    text: variant('import { abort } from "node:process";\nabort();'),
    says: /its checks must come to their end: found that it ended before, with SIGABRT/,
  },
  {
    does: "prints what looks like a verdict",
    text: variant(
      'const verdict = JSON.stringify({ name: "mine", checks: [{ name: "parameters" }] });\n' +
        "console.log(verdict); console.log(crypto.randomUUID() + verdict);\n" +
        'console.log("✓ parameters\\nattention \\"mine\\" keeps its contract"); Deno.exit(0);',
    ),
    says: /its checks must come to their end: found that it ended before, with code 0/,
  },
  {
    does: "changes what is said",
    text: variant('JSON.stringify = () => "{}";'),
    says: /Cannot check ".*": its checks must come to a verdict: found something else/,
  },
];

for (const { does, text, says, flags = [] } of refusals) {
  Deno.test(`plugin check refuses a file that ${does}`, async () => {
    const { code, stdout, stderr } = await check(text, ...flags);
    assert.equal(code, 1, stdout + stderr);
    assert.match(stderr, says);
    assert.equal(stdout, "");
  });
}

Deno.test("plugin check passes on what an honest file prints, and on standard error alone", async () => {
  const { code, stdout, stderr } = await check(
    variant('console.log("here"); Deno.stdout.writeSync(new TextEncoder().encode("no end"));'),
    "--json",
  );
  assert.equal(code, 0, stderr);
  assert.equal(JSON.parse(stdout).ok, true);
  // Once more in the thread of the device.
  assert.match(stderr, /mine\.ts: here\n.*mine\.ts: no endhere\n.*mine\.ts: no end\n$/);
});

Deno.test("plugin check prints little of what is printed without end", async () => {
  const print = 'Deno.stdout.writeSync(new TextEncoder().encode("x".repeat(1e5)';
  for (const loop of [`for (;;) ${print}));`, `for (;;) ${print} + "\\n"));`]) {
    const { code, stderr } = await check(variant(loop), "--seconds", "3");
    assert.equal(code, 1);
    assert.match(stderr, /it must finish within 3 s/);
    assert.ok(stderr.length < 2e5, `${stderr.length} characters`);
  }
});

Deno.test("plugin check ends the threads that a file has started", async () => {
  const spin = 'new Worker("data:application/javascript,for(;;);", { type: "module" });';
  const { code, stderr } = await check(variant(spin));
  assert.equal(code, 0, stderr);
});

Deno.test("plugin check says that it left native code out", async () => {
  await using folder = await scratch();
  const file = `${folder.path}/mine.ts`;
  await Deno.writeTextFile(file, variant(""));
  const { code, stdout, stderr } = await annulus(["plugin", "check", file]);
  assert.equal(code, 0, stdout + stderr);
  assert.match(stdout, /✓ rings on reference: mine\n/);
  assert.doesNotMatch(stdout, /✓ rings on cpu/);
  const left = /– rings on cpu: it would be given native code: --device cpu, for a file that you/;
  assert.equal(left.test(stdout), findLibrary(libraryName) !== undefined);
});

const inLoop = async (use: (check: Annulus) => Promise<void>): Promise<void> => {
  await using folder = await scratch();
  const file = `${folder.path}/mine.ts`;
  await Deno.writeTextFile(file, variant("for (;;);"));
  await using check = new Annulus(["plugin", "check", "--device", "reference", file]);
  await eventually("the process of the check", () => {
    const commands = [...check.descendants().values()];
    return commands.some((command) => /^\S*deno run .*plugin_check_process/.test(command));
  });
  await use(check);
  await eventually("its end", () => check.descendants().size === 0);
};

Deno.test("a file that is in a loop ends with the command that was killed", () =>
  inLoop(async (check) => {
    check.kill("SIGKILL");
    await check.finished();
  }));

Deno.test("Ctrl-C ends a file that is in a loop", () =>
  inLoop(async (check) => {
    check.interrupt();
    assert.equal((await check.finished()).code, 130);
  }));

Deno.test("a heap has its bound where nobody may look at the process", async () => {
  await using folder = await scratch();
  const file = `${folder.path}/mine.ts`;
  await Deno.writeTextFile(
    file,
    variant("const all = []; for (;;) all.push(Array.from({ length: 1000 }, () => ({})));"),
  );
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--no-prompt", "--allow-read", "--allow-env", "--allow-run"],
      ...[`--config=${root}deno.json`, `${root}cli/main.ts`, "plugin", "check"],
      ...["--device", "reference", "--memory", "200", file],
    ],
    stdin: "null",
  }).output();
  assert.equal(code, 1);
  assert.match(new TextDecoder().decode(stderr), /it must do with 200 MiB/);
});

Deno.test("plugin check takes no path for two", async () => {
  const { code, stderr } = await annulus(["plugin", "check", "mine,/etc/passwd"]);
  assert.equal(code, 1);
  assert.match(
    stderr,
    /Cannot check "mine,.*": its path needs to be without commas, at which Deno/,
  );
});

Deno.test("plugin check says what it needs to start a process", async () => {
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--no-prompt", "--allow-read", "--allow-env"],
      ...[`--config=${root}deno.json`, `${root}cli/main.ts`, "plugin", "check", "mine.ts"],
    ],
    stdin: "null",
  }).output();
  assert.equal(code, 1);
  assert.match(
    new TextDecoder().decode(stderr),
    /Cannot check "mine.ts": it needs a process of its own, which `sh` starts: found Requires run access to "sh"/,
  );
});
