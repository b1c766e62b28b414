/** `--caches DIR`: another process goes on from a text that was read, and nothing that is not as it was is used. */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { writeConstructedModel } from "../../examples/08_constructed_model.ts";
import { fromFileUrl } from "../../cli/paths.ts";
import { Annulus, annulus } from "../support/cli.ts";
import { inFolder } from "../support/in_folder.ts";
import { missingServer, natsServer } from "../support/nats.ts";
import { uniform } from "../support/random.ts";

const facts = { ship: "Pequod", captain: "Ahab", whale: "white" } as const;
/** A text in which every fact is once. */
const book = (() => {
  const next = uniform(4);
  let text = "";
  while (text.length < 1500) {
    for (let i = 0; i < 6; i++) text += "etaoinshrdlucmfwygpbv"[Math.floor(21 * next())];
    text += " ";
  }
  return `${text}\n${
    Object.entries(facts).map(([name, value]) => `The ${name}=${value};\n`).join("")
  }`;
})();

const questionIn = (folder: string, fact: keyof typeof facts, ...args: ReadonlyArray<string>) => [
  ...["generate", `${folder}/model`, `The ${fact}=`, "--file", `${folder}/book.txt`],
  ...["--device", "reference", "--stop", ";", "--max-tokens", "9", "--json", ...args],
];
/** A model, a book, and how to ask about it. */
const asking = async (folder: string) => {
  await writeConstructedModel(`${folder}/model`);
  await Deno.writeTextFile(`${folder}/book.txt`, book);
  /** The usage of a question that must be answered rightly, and what else was said. */
  return async (fact: keyof typeof facts, ...args: ReadonlyArray<string>) => {
    const { code, stdout, stderr } = await annulus(questionIn(folder, fact, ...args));
    assert.equal(code, 0, stderr);
    const { text, ...usage } = JSON.parse(stdout);
    assert.equal(text, facts[fact]);
    return { usage, stderr };
  };
};
const prompt = (fact: string) => book.length + `The ${fact}=`.length;

inFolder(
  "another process goes on from what one has read, as long as it is whole",
  async (folder) => {
    const ask = await asking(folder);
    const dir = `${folder}/caches`;
    const flags = ["--ring", "2", "--caches", dir];
    const first = await ask("ship", ...flags);
    assert.equal(first.usage.cached_tokens, 0);
    assert.equal(first.usage.cached_from, null);
    assert.deepEqual(first.usage.read_by, { ring: prompt("ship"), star: 0 });
    const [, name] = /^annulus: cache ([\w-]+) has 1\d\d\d tokens, .*MiB, written in/m
      .exec(first.stderr)!;
    assert.equal(Deno.statSync(dir).mode! & 0o777, 0o700);
    assert.equal(Deno.statSync(`${dir}/${name}/rank-1.cache`).mode! & 0o777, 0o600);

    // Another question, about the same text.
    const { usage, stderr } = await ask("captain", ...flags);
    assert.equal(usage.prompt_tokens, prompt("captain"));
    assert.equal(usage.cached_tokens, book.length + "The ".length);
    assert.equal(usage.cached_from, "disk");
    assert.deepEqual(usage.read_by, { ring: 0, star: "captain=".length });
    assert.doesNotMatch(stderr, /cache/);

    const list = async () => JSON.parse((await annulus(["caches", "list", dir, "--json"])).stdout);
    const [listed, ...more] = await list();
    assert.equal(more.length, 0);
    assert.deepEqual(
      [listed.name, listed.tokens, listed.ring, listed.parts_here, listed.format],
      [name, prompt("ship"), 2, 2, "f32"],
    );
    const verify = () => annulus(["caches", "verify", dir]);
    assert.deepEqual((await verify()).stdout, `✓ ${name}\n`);

    // A bit of its keys.
    const path = `${dir}/${name}/rank-0.cache`;
    const bytes = await Deno.readFile(path);
    bytes[bytes.length >> 1]! ^= 4;
    await Deno.writeFile(path, bytes);
    const wrong = await verify();
    assert.equal(wrong.code, 1);
    assert.equal(wrong.stdout, `✗ ${name}: rank-0.cache: its CRC-32 differs\n`);
    const again = await ask("captain", ...flags);
    assert.equal(again.usage.cached_tokens, 0);
    assert.match(
      again.stderr,
      /^annulus: cannot use cache .*, and the text is read again: .*rank-0\.cache.*its CRC-32 differs$/m,
    );
    const removed = await annulus(["caches", "remove", dir, name!]);
    assert.match(removed.stdout, /^1 removed, [^;]*\n$/);
    assert.deepEqual((await list()).map(({ tokens }: { tokens: number }) => tokens), [
      prompt("captain"),
    ]);
  },
);

inFolder("an answer is printed before what was read is on the disk", async (folder) => {
  await asking(folder);
  const [config, main] = ["deno.json", "cli/main.ts"].map((file) =>
    fromFileUrl(new URL(`../../${file}`, import.meta.url))
  );
  // Both outputs as one, which has them in their order.
  const { code, stdout } = await new Deno.Command("sh", {
    args: [
      ...["-c", 'exec "$@" 2>&1', "sh", Deno.execPath(), "run", "-A", `--config=${config}`, main!],
      ...questionIn(folder, "ship", "--caches", `${folder}/caches`),
    ],
    stdin: "null",
  }).output();
  const said = new TextDecoder().decode(stdout);
  assert.equal(code, 0, said);
  assert.match(said, /"text": "Pequod"[^]*^annulus: cache .* tokens, .* written in/m);
});

inFolder("a folder that cannot be one, and sizes that are none, are refused", async (folder) => {
  await writeConstructedModel(`${folder}/model`);
  await Deno.writeTextFile(`${folder}/file`, "");
  const refused = async (code: number, sentence: RegExp, ...args: ReadonlyArray<string>) => {
    const found = await annulus(args);
    assert.equal(found.code, code, found.stderr);
    assert.match(found.stderr, sentence);
    assert.equal(found.stdout, "");
  };
  const generate = ["generate", `${folder}/model`, "a", "--device", "reference"];
  await refused(
    1,
    /^annulus: Cannot keep caches in ".*file": it must be a folder that may be written to: found/,
    ...[...generate, "--caches", `${folder}/file`],
  );
  await refused(2, /Expected: a size like 64GiB/, ...generate, "--caches-limit", "5 apples");
  await refused(
    1,
    /it must be a folder of --caches: found nothing/,
    "caches",
    "list",
    `${folder}/x`,
  );
  await Deno.mkdir(`${folder}/caches/0123456789abcdef-01234567`, { recursive: true });
  const unfinished = await annulus(["caches", "verify", `${folder}/caches`]);
  assert.equal(unfinished.code, 1);
  assert.match(unfinished.stdout, /^✗ 0123456789abcdef-01234567: it was never finished$/m);
  await refused(1, /it must have x: found none/, "caches", "remove", folder, "x");
  // What cannot be read, which is no folder here.
  const odd = "0123456789abcdef-89abcdef";
  await Deno.writeTextFile(`${folder}/caches/${odd}`, "");
  const verified = await annulus(["caches", "verify", `${folder}/caches`]);
  assert.equal(verified.code, 1);
  assert.match(verified.stdout, /^✗ 0123456789abcdef-89abcdef: Not a directory/m);
  assert.equal(verified.stderr, "");
  await refused(1, /found Not a directory/, "caches", "verify", `${folder}/caches`, odd);
  const removed = await annulus(["caches", "remove", `${folder}/caches`]);
  assert.equal(removed.code, 0, removed.stderr);
  assert.match(removed.stdout, /^1 removed, /);
  assert.match(removed.stderr, /^annulus: cannot read ".*89abcdef": Not a directory.*\n$/);
});

inFolder("nodes that annulus starts keep their parts in the same folder", async (folder) => {
  const ask = await asking(folder);
  const flags = ["--ring", "1", "--link", "nats", "--caches", `${folder}/caches`];
  assert.match((await ask("whale", ...flags)).stderr, /cache .* has 1\d\d\d tokens/);
  const { usage } = await ask("ship", ...flags);
  assert.deepEqual(
    [usage.cached_from, usage.cached_tokens],
    ["disk", book.length + "The ".length],
  );
}, missingServer);

inFolder(
  "nodes keep parts where their operators say, and whichever rank they are next they are found",
  (folder) =>
    Effect.runPromise(Effect.scoped(Effect.gen(function* () {
      const { url } = yield* natsServer();
      yield* Effect.promise(async () => {
        const ask = await asking(folder);
        const member = ["--nats", url, "--cluster", "caches"];
        const node = (...args: ReadonlyArray<string>) =>
          new Annulus([
            ...["node", ...member, "--device", "reference", "--model", `${folder}/model`],
            ...["--json", ...args],
          ]);
        const flags = [...member, "--ring", "2", "--caches", `${folder}/driver`];
        const places = [0, 1].map((i) => `${folder}/node-${i}`);
        await using nodes = new AsyncDisposableStack();
        const begin = async (...nodes_: ReadonlyArray<Annulus>) => {
          for (const node of nodes_) nodes.use(node);
          await Promise.all(nodes_.map((node) => node.line(/"event":"waiting"/)));
          return nodes_;
        };
        const end = (nodes: ReadonlyArray<Annulus>) =>
          Promise.all(nodes.map((node) => node[Symbol.asyncDispose]()));
        const all = () => places.map((place) => node("--caches", place));
        const before = await begin(...all());
        const first = await ask("ship", ...flags);
        await end(before);
        const [, name] = /cache ([\w-]+) has/.exec(first.stderr)!;
        const partsIn = (place: string) =>
          [...Deno.readDirSync(`${place}/${name}`)].map(({ name }) => name);
        assert.deepEqual(places.flatMap(partsIn).sort(), ["rank-0.cache", "rank-1.cache"]);
        assert.deepEqual(partsIn(`${folder}/driver`), ["text.cache"]);
        const verified = await annulus(["caches", "verify", `${folder}/driver`]);
        assert.equal(verified.code, 0, verified.stdout);

        const after = await begin(...all());
        const { usage } = await ask("captain", ...flags);
        assert.deepEqual(
          [usage.cached_from, usage.cached_tokens],
          ["disk", book.length + "The ".length],
        );
        // One that has no folder in the place of another: the text is read, and nothing is kept.
        await end(after.slice(1));
        await begin(node());
        const { usage: anew, stderr } = await ask("whale", ...flags);
        assert.equal(anew.cached_tokens, 0);
        assert.match(stderr, /its 2 parts must be there, each with another rank/);
        assert.match(stderr, /no text is kept: rank \d has no folder for it \(node --caches DIR\)/);

        // A driver's folder is without what its nodes have.
        const removed = await annulus(["caches", "remove", `${folder}/driver`]);
        assert.match(
          removed.stdout,
          /^1 removed, .*; keys and values of 1 stay with their nodes until those need the room \(/,
        );
        assert.deepEqual(places.flatMap(partsIn).sort(), ["rank-0.cache", "rank-1.cache"]);
        const own = await annulus(["caches", "remove", places[0]!, "--json"]);
        assert.deepEqual(JSON.parse(own.stdout).on_nodes, []);
      });
    }))),
  missingServer,
);
