/** `attend --checkpoint DIR` and `resume DIR`: a run whose driver died goes on and gives the same bytes. */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { Annulus, annulus, eventually } from "../support/cli.ts";
import { inFolder } from "../support/in_folder.ts";
import { missingServer, natsServer } from "../support/nats.ts";
import { noSmallDisk, resize, smallDisk } from "../support/small_disk.ts";
import { normals } from "../support/random.ts";
import { fileOfTensors } from "../support/tensors.ts";

const writeInput = async (folder: string, tokens: number, layers: ReadonlyArray<string> = [""]) => {
  const count = tokens * 2 * 16;
  const tensor = (n: number) =>
    ({ dtype: "f32", shape: [1, tokens, 2, 16], values: normals(n, count) }) as const;
  const tensors = layers.flatMap((layer, i) =>
    ["q", "k", "v"].map((name, j) => [`${layer}${name}`, tensor(3 * i + j)] as const)
  );
  const path = `${folder}/in.safetensors`;
  await Deno.writeFile(path, fileOfTensors(Object.fromEntries(tensors)));
  return path;
};

const namesIn = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
const isThere = (path: string) => {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
};

inFolder(
  "a run of two layers whose driver was killed in the second one goes on there",
  async (folder) => {
    // The second layer is as long as the first; both take some seconds.
    const input = await writeInput(folder, 3500, ["0.", "1."]);
    const [whole, out, kept] = ["whole", "out", "kept"].map((name) => `${folder}/${name}`) as [
      string,
      string,
      string,
    ];
    const common = ["attend", input, "--causal", "--ring", "4", "--device", "reference"]
      .concat("--checkpoint-every", "1");
    const clean = await annulus([...common, "--out", whole, "--checkpoint", `${folder}/other`]);
    assert.equal(clean.code, 0, clean.stderr);
    {
      await using run = new Annulus([...common, "--out", out, "--checkpoint", kept]);
      await eventually("a checkpoint of the second layer", () => {
        return isThere(`${kept}/layer-1/rank-0.former`);
      });
      run.kill("SIGKILL");
      assert.notEqual((await run.finished()).code, 0);
    }
    assert.equal(isThere(out), false);

    const again = await annulus([...common, "--out", out, "--checkpoint", kept]);
    assert.equal(again.code, 1);
    assert.match(
      again.stderr,
      /Cannot keep checkpoints in ".*": .*: found a run; `annulus resume` /,
    );
    assert.equal(namesIn(folder).filter((name) => name.endsWith(".part")).length, 1);

    const resumed = await annulus(["resume", kept, "--json"]);
    assert.equal(resumed.code, 0, resumed.stderr);
    assert.match(resumed.stderr, /^annulus: (\d+) of \1 blocks are merged already$/m);
    assert.match(resumed.stderr, /^annulus: [1-9]\d* of \d+ blocks are merged already$/m);
    assert.equal(JSON.parse(resumed.stdout).layers.length, 2);
    assert.deepEqual(await Deno.readFile(out), await Deno.readFile(whole));
    // Nor is there anything left of the one that was killed.
    assert.deepEqual(namesIn(folder), ["in.safetensors", "out", "whole"]);
  },
);

inFolder("what goes on must be what was begun", async (folder) => {
  const input = await writeInput(folder, 4000);
  const kept = `${folder}/kept`;
  {
    await using run = new Annulus(
      ["attend", input, "--ring", "2", "--device", "reference", "--out", `${folder}/out`]
        .concat("--checkpoint", kept, "--checkpoint-every", "1"),
    );
    await eventually("a checkpoint", () => isThere(`${kept}/layer-0/rank-0.checkpoint`));
    run.interrupt();
    const { code, stderr } = await run.finished();
    assert.equal(code, 130, stderr);
  }
  const text = await Deno.readTextFile(`${kept}/run.json`);
  const refused = async (sentence: RegExp) => {
    const { code, stderr, stdout } = await annulus(["resume", kept]);
    assert.deepEqual([code, stdout], [1, ""]);
    assert.match(stderr, sentence);
  };
  const saved = JSON.parse(text);
  await Deno.writeTextFile(`${kept}/run.json`, text.slice(0, -9));
  await refused(/Cannot go on from ".*run.json": it must be what `attend --checkpoint DIR` writes/);
  await Deno.writeTextFile(`${kept}/run.json`, JSON.stringify({ ...saved, version: "0.0.1" }));
  await refused(/annulus 0\.0\.1 and the attention that the run began with: found/);
  const causal = { ...saved, args: { ...saved.args, causal: true } };
  await Deno.writeTextFile(`${kept}/run.json`, JSON.stringify(causal));
  await refused(/found another problem in layer 0/);
  await Deno.writeTextFile(`${kept}/run.json`, text);

  // One number of it, and as old as it was.
  const { mtime } = await Deno.stat(input);
  using file = await Deno.open(input, { write: true });
  await file.seek(-4, Deno.SeekMode.End);
  await file.write(new Uint8Array(4));
  await Deno.utime(input, mtime!, mtime!);
  await refused(/"\/.*in\.safetensors" must be as it was: found other tensors or values in it/);

  using lock = await Deno.open(`${kept}/lock`, { write: true });
  assert.ok(await lock.tryLock(true));
  await refused(/Cannot go on from ".*kept": .*: found another process at work on it/);
  await Deno.remove(`${kept}/run.json`);
  await refused(/no such file; a run that ended well leaves none/);
});

inFolder("a folder of checkpoints is nobody else's, and is removed alone", async (folder) => {
  const input = await writeInput(folder, 100);
  const attend = (kept: string) =>
    annulus(
      ["attend", input, "--out", `${folder}/out`, "--device", "reference", "--checkpoint", kept],
    );
  await Deno.mkdir(`${folder}/mine/layer-0`, { recursive: true });
  await Deno.writeTextFile(`${folder}/mine/layer-0/weights`, "precious");
  const { code, stderr } = await attend(`${folder}/mine`);
  assert.equal(code, 1);
  assert.match(stderr, /Cannot keep checkpoints in ".*": .* of its own, .*: found "layer-0" in it/);
  assert.equal(await Deno.readTextFile(`${folder}/mine/layer-0/weights`), "precious");

  await Deno.mkdir(`${folder}/empty`);
  assert.equal((await attend(`${folder}/empty`)).code, 0);
  assert.deepEqual(namesIn(folder), ["in.safetensors", "mine", "out"]);
});

inFolder("a run that cannot go on says so, and keeps no password", async (folder) => {
  const input = await writeInput(folder, 100);
  // Not a number, which only a rank will see.
  using file = await Deno.open(input, { write: true });
  await file.seek(-4, Deno.SeekMode.End);
  await file.write(new Uint8Array([0, 0, 0xc0, 0x7f]));
  const kept = `${folder}/kept`;
  const { code, stderr } = await Effect.runPromise(Effect.scoped(Effect.gen(function* () {
    const { url } = yield* natsServer('authorization: { user: ann, password: "s3cret" }');
    const nats = url.replace("//", "//ann:s3cret@");
    return yield* Effect.promise(() =>
      annulus(
        ["attend", input, "--out", `${folder}/out`, "--device", "reference", "--checkpoint", kept]
          .concat("--nats", nats),
      )
    );
  })));
  assert.doesNotMatch(await Deno.readTextFile(`${kept}/run.json`), /s3cret/);
  assert.equal(code, 1);
  assert.match(stderr, /annulus: what was kept is of no use with that: remove ".*kept"/);
  assert.equal((await Deno.stat(`${kept}/run.json`)).mode! & 0o777, 0o600);
  assert.equal((await Deno.stat(kept)).mode! & 0o777, 0o700);
}, missingServer);

inFolder("a run whose results had no room goes on when there is some", async (folder) => {
  const input = await writeInput(folder, 1000);
  await using _ = await smallDisk(`${folder}/small`, 64);
  const [out, kept] = [`${folder}/small/out`, `${folder}/kept`];
  const { code, stderr } = await annulus(
    ["attend", input, "--out", out, "--ring", "2", "--device", "reference", "--checkpoint", kept],
  );
  assert.equal(code, 1);
  assert.match(stderr, /: its disk must take \d+ bytes: found No space left/);
  assert.match(stderr, /annulus: `annulus resume \/.*kept` goes on from here/);
  await resize(`${folder}/small`, 1024);
  const resumed = await annulus(["resume", kept]);
  assert.equal(resumed.code, 0, resumed.stderr);
  assert.ok(isThere(out));
}, noSmallDisk);

inFolder("checkpoints need a folder", async (folder) => {
  const input = await writeInput(folder, 10);
  const attend = (...flags: ReadonlyArray<string>) =>
    annulus(["attend", input, "--out", `${folder}/out`, "--device", "reference", ...flags]);
  const without = await attend("--checkpoint-every", "2");
  assert.equal(without.code, 2);
  assert.match(without.stderr, /--checkpoint-every needs --checkpoint, a folder/);
  const file = await attend("--checkpoint", input);
  assert.equal(file.code, 2);
  await Deno.writeTextFile(`${folder}/file`, "");
  const taken = await attend("--checkpoint", `${folder}/file`);
  assert.equal(taken.code, 1);
  assert.match(taken.stderr, /Cannot keep checkpoints in ".*file": it must be a folder of its own/);
});
