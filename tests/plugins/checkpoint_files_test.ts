/** Checkpoints as files: the last whole one is found, whatever became of the others. */
import { Effect } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { checkpointFiles } from "../../plugins/checkpoint_files.ts";
import type { Checkpoints, Mark } from "../../runtime/checkpoint.ts";
import { inFolder } from "../support/in_folder.ts";
import { noSmallDisk, smallDisk } from "../support/small_disk.ts";

const bytes = [{ o: 40, lse: 8 }, { o: 0, lse: 0 }];
const opened = async (folder: string, job = "this one") => {
  const told: Array<string> = [];
  const checkpoints = await Effect.runPromise(checkpointFiles({
    ...{ folder, job, bytes, every: 1 },
    tell: (words) => Effect.sync(() => void told.push(words)),
  }));
  return { checkpoints, told };
};

const contentOf = (merged: number) =>
  Uint8Array.from({ length: 48 }, (_, i) => (i * 7 + merged) % 256);

/** Keeps one, in two pieces. */
const keep = (checkpoints: Checkpoints, mark: Mark, content = contentOf(mark.merged)) =>
  Effect.gen(function* () {
    const { write, commit } = yield* checkpoints.keep(mark);
    yield* write(content.subarray(0, 17));
    yield* write(content.subarray(17));
    yield* commit;
  }).pipe(Effect.scoped, Effect.runPromise);

const last = "rank-0.checkpoint", former = "rank-0.former";
const first: Mark = { rank: 0, merged: 1, final: false };
const second: Mark = { rank: 0, merged: 2, final: true };
const namesIn = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

/** What is there of rank 0 is one of these, and whole. */
const foundIn = async (checkpoints: Checkpoints) => {
  const found = checkpoints.of(0);
  if (found === undefined) return undefined;
  const { read, merged, final } = found;
  const content = await Effect.runPromise(Effect.all([read("o", 0, 40), read("lse", 0, 8)]));
  assert.deepEqual(
    [...content[0], ...content[1]],
    [...contentOf(merged)],
    "neither of those that were kept",
  );
  return { rank: 0, merged, final };
};

const it = (name: string, test: (folder: string) => Promise<void>, needed?: string) =>
  inFolder(name, (folder) => test(`${folder}/of a run`), needed);

it("what was kept is found again, and the one before beside it", async (folder) => {
  const before = await opened(folder);
  assert.equal(await foundIn(before.checkpoints), undefined);
  await keep(before.checkpoints, first);
  assert.deepEqual(await foundIn(before.checkpoints), first);
  await keep(before.checkpoints, second);
  await keep(before.checkpoints, { rank: 1, merged: 1, final: true }, new Uint8Array(0));
  assert.deepEqual(namesIn(folder), [last, former, "rank-1.checkpoint"]);

  const { checkpoints, told } = await opened(folder);
  assert.deepEqual(await foundIn(checkpoints), second);
  assert.equal(checkpoints.of(1)!.merged, 1);
  const part = await Effect.runPromise(checkpoints.of(0)!.read("o", 5, 9));
  assert.deepEqual([...part], [...contentOf(2).subarray(5, 9)]);
  await Deno.remove(`${folder}/${last}`);
  assert.deepEqual(await foundIn((await opened(folder)).checkpoints), first);
  assert.deepEqual([...before.told, ...told], []);
});

it("one that is late does not take the place of a later one", async (folder) => {
  await Deno.mkdir(folder);
  // They do not always end in the same order.
  for (let run = 0; run < 20; run++) {
    const layer = `${folder}/layer-${run}`;
    const { checkpoints } = await opened(layer);
    await Promise.all([keep(checkpoints, first), keep(checkpoints, second)]);
    assert.deepEqual(await foundIn(checkpoints), second);
    await keep(checkpoints, first);
    assert.deepEqual(await foundIn(checkpoints), second);
    assert.deepEqual(await foundIn((await opened(layer)).checkpoints), second);
  }
});

it("one that is not whole is none", async (folder) => {
  const { checkpoints, told } = await opened(folder);
  await keep(checkpoints, first);
  await keep(checkpoints, second, contentOf(2).subarray(1));
  assert.deepEqual(await foundIn(checkpoints), first);
  await Effect.runPromise(Effect.scoped(Effect.flatMap(
    checkpoints.keep(second),
    ({ write }) => write(contentOf(2)),
  )));
  assert.deepEqual(await foundIn(checkpoints), first);
  assert.deepEqual(namesIn(folder), [last]);
  assert.equal(told.length, 1);
  assert.match(told[0]!, /^no checkpoint of rank 0, and the run goes on: 47 bytes are not a rank$/);
});

it("another job's are not taken, and said so", async (folder) => {
  const { checkpoints } = await opened(folder);
  await keep(checkpoints, first);
  const other = await opened(folder, "another one");
  assert.equal(await foundIn(other.checkpoints), undefined);
  assert.match(other.told.join(), /cannot go on from ".*": it is of another rank or another run/);
  await Deno.rename(`${folder}/${last}`, `${folder}/rank-1.checkpoint`);
  const moved = await opened(folder);
  assert.equal(moved.checkpoints.of(1), undefined);
  assert.match(moved.told.join(), /it is of another rank/);
});

it("what took a checkpoint's name does not stop the next one, nor take the place of the one before", async (folder) => {
  const before = await opened(folder);
  await keep(before.checkpoints, first);
  await keep(before.checkpoints, second);
  await Deno.writeTextFile(`${folder}/${last}`, "damaged");
  const { checkpoints } = await opened(folder);
  assert.deepEqual(await foundIn(checkpoints), first);
  await keep(checkpoints, second);
  assert.deepEqual(await foundIn(checkpoints), second);
  // The damaged one has not become the one before.
  await Deno.remove(`${folder}/${last}`);
  assert.deepEqual(await foundIn((await opened(folder)).checkpoints), first);
  await Deno.remove(`${folder}/${former}`);
  const args = [`${folder}/${last}`];
  assert.ok((await new Deno.Command("mkfifo", { args }).output()).success);
  assert.match((await opened(folder)).told.join(), /it is not a regular file/);
});

it("where the folder that holds it is gone, nothing is kept", async (folder) => {
  const { checkpoints, told } = await opened(`${folder}/layer-0`);
  await keep(checkpoints, first);
  assert.equal(await foundIn(checkpoints), undefined);
  assert.match(told.join(), /^no checkpoint of rank 0, and the run goes on: No such file/);
});

it("what a driver that was killed had begun to write is removed", async (folder) => {
  await Deno.mkdir(folder);
  await Deno.writeTextFile(`${folder}/.rank-0.0123abcd.part`, "half");
  await Deno.writeTextFile(`${folder}/.rank-0.0123abcd.part.former`, "half");
  await Deno.writeTextFile(`${folder}/notes.txt`, "mine");
  await opened(folder);
  assert.deepEqual(namesIn(folder), ["notes.txt"]);
});

it("whatever becomes of the last file, what is found is the last one or the one before", async (folder) => {
  const { checkpoints } = await opened(folder);
  await keep(checkpoints, first);
  await keep(checkpoints, second);
  const whole = await Deno.readFile(`${folder}/${last}`);
  const odd = fc.oneof(
    // Some bytes changed, and an end cut off or added.
    fc.tuple(
      fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 3 }),
      fc.integer({ min: -20, max: 20 }),
    ).map(([changes, more]) => {
      const bytes = new Uint8Array(whole.length + more);
      bytes.set(whole.subarray(0, bytes.length));
      for (const [at, value] of changes) bytes[at % bytes.length] = value;
      return bytes;
    }),
    // Another first line, with the right sum behind or none.
    fc.tuple(fc.json(), fc.uint8Array({ maxLength: 100 })).map(([head, rest]) =>
      new Uint8Array([...new TextEncoder().encode(`${head}\n`), ...rest])
    ),
    fc.uint8Array({ maxLength: 5000 }),
  );
  await fc.assert(
    fc.asyncProperty(odd, async (bytes) => {
      await Deno.writeFile(`${folder}/${last}`, bytes);
      const { checkpoints, told } = await opened(folder);
      const same = bytes.length === whole.length && bytes.every((byte, i) => byte === whole[i]);
      assert.deepEqual(await foundIn(checkpoints), same ? second : first);
      assert.equal(told.length, same ? 0 : 1);
    }),
    {
      numRuns: 500,
      // What fell once, or came near.
      examples: [
        [new Uint8Array(0)],
        [new TextEncoder().encode("\n")],
        [new TextEncoder().encode("{}\n")],
        [whole.subarray(0, whole.length - 4)],
        [new Uint8Array([...whole, 0])],
        [new Uint8Array(5000).fill(10)],
      ],
    },
  );
});

it("a disk that is full costs checkpoints, not the run", async (folder) => {
  await using _ = await smallDisk(folder, 64);
  const { checkpoints, told } = await opened(folder);
  await keep(checkpoints, first);
  await Deno.writeFile(`${folder}/something else`, new Uint8Array(1024 * 1024))
    .catch(() => {}); // it is full now
  await keep(checkpoints, second);
  assert.deepEqual(await foundIn(checkpoints), first);
  assert.match(told.join(), /^no checkpoint of rank 0, and the run goes on: No space left/);
  await Deno.remove(`${folder}/something else`);
  await keep(checkpoints, second);
  assert.deepEqual(await foundIn(checkpoints), second);
  assert.equal(told.length, 1);
}, noSmallDisk);
