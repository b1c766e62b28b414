import assert from "node:assert/strict";
import { isDeepStrictEqual } from "node:util";
import { type AdapterInfo, findAdapter, isSoftware } from "../../../plugins/webgpu/adapter.ts";
import { bestFirst, candidates, mostRows, versionNamed } from "../../../plugins/webgpu/ladder.ts";
import { openWebgpu } from "../../../plugins/webgpu/open.ts";
import { keepTuning, keptIn, readTuning } from "../../../plugins/webgpu/tuning.ts";
import { version } from "../../../runtime/version.ts";

const here: AdapterInfo = { vendor: "a", architecture: "b", device: "c", description: "driver 1" };
const task = { dtype: "f32", headDim: 64 } as const;
const choice = { version: versionNamed("textures")!, blocking: { rows: 2, keys: 4, lanes: 16 } };

/** A path for a tuning, in a folder that is gone afterwards. */
const withPath = async (use: (path: string) => void | Promise<void>): Promise<void> => {
  const folder = await Deno.makeTempDir({ prefix: "annulus-tuning-" });
  try {
    await use(`${folder}/of/its/own/tuning.json`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
};

Deno.test("what was measured is kept and found again, task by task", () =>
  withPath((path) => {
    assert.deepEqual(Object.keys(readTuning(path, here)), ["choice"]); // no file, no note
    keepTuning(path, here, task, choice);
    keepTuning(path, here, { ...task, headDim: 128 }, {
      ...choice,
      version: versionNamed("broadcast")!,
    });
    const { choice: found, note } = readTuning(path, here);
    assert.equal(note, undefined);
    assert.deepEqual(found(task), choice);
    assert.equal(found({ ...task, headDim: 128 })!.version.name, "broadcast");
    assert.equal(found({ ...task, dtype: "f16" }), undefined);
  }));

Deno.test("a tuning of another adapter, driver or version is ignored with a note", () =>
  withPath((path) => {
    keepTuning(path, here, task, choice);
    for (const other of [{ description: "driver 2" }, { device: "d" }]) {
      const { choice: found, note } = readTuning(path, { ...here, ...other });
      assert.equal(found(task), undefined);
      assert.match(note!, /is not used: it is of a \/ b \/ c \/ driver 1, and this is a \/ b \//);
    }
    Deno.writeTextFileSync(path, Deno.readTextFileSync(path).replace(version, "0.0.1"));
    const { choice: found, note } = readTuning(path, here);
    assert.equal(found(task), undefined);
    assert.match(note!, RegExp(`it is of annulus 0.0.1, and this is annulus ${version};`));
    // What another version measured goes as soon as this one does.
    keepTuning(path, here, { ...task, headDim: 8 }, choice);
    assert.equal(readTuning(path, here).choice(task), undefined);
    assert.deepEqual(readTuning(path, here).choice({ ...task, headDim: 8 }), choice);
  }));

Deno.test("adapters do not disturb each other, and all of them are shown", () =>
  withPath((path) => {
    const other = { ...here, device: "another" };
    keepTuning(path, here, task, choice);
    keepTuning(path, other, { dtype: "f16", headDim: 128 }, choice);
    assert.deepEqual(readTuning(path, here).choice(task), choice);
    assert.equal(readTuning(path, other).choice(task), undefined);
    const kept = { kernel: "textures", ...choice.blocking, annulus: version };
    assert.deepEqual(keptIn(path), [
      { ...kept, adapter: "a / b / c / driver 1", task: "f32 64" },
      { ...kept, adapter: "a / b / another / driver 1", task: "f16 128" },
    ]);
  }));

Deno.test("a tuning that cannot be kept leaves nothing behind", () =>
  withPath(async (path) => {
    await Deno.mkdir(path, { recursive: true });
    assert.throws(() => keepTuning(path, here, task, choice));
    const folder = path.replace(/\/[^/]*$/, "");
    assert.deepEqual(Array.from(Deno.readDirSync(folder), ({ name }) => name), ["tuning.json"]);
  }));

Deno.test("a tuning that is no tuning is ignored with a note", () =>
  withPath((path) => {
    keepTuning(path, here, task, choice);
    const good = Deno.readTextFileSync(path);
    for (
      const bad of [
        "",
        "{",
        "[]",
        "null",
        good.slice(0, -10),
        good.replace('"textures"', '"fastest"'),
        good.replace('"rows": 2', '"rows": 2.5'),
        good.replace('"rows": 2', '"rows": 1000'),
        good.replace('"keys": 4', '"keys": 3'),
        good.replace('"lanes": 16', '"lanes": "16"'),
        good.replace('"rows": 2', '"rows": 16').replace('"keys": 4', '"keys": 8'),
        good.replace('"f32 64"', '"f32 1024"'),
        good.replace('"f32 64"', '"f64 64"'),
        good.replace('"adapters"', '"adepts"'),
      ]
    ) {
      Deno.writeTextFileSync(path, bad);
      const { choice: found, note } = readTuning(path, here);
      assert.equal(found(task), undefined, bad);
      assert.match(note!, /^the tuning in .* is not used: /, bad);
    }
    keepTuning(path, here, task, choice);
    assert.deepEqual(readTuning(path, here).choice(task), choice);
  }));

Deno.test("the sizes to measure are those that programs can have", () => {
  for (const software of [true, false]) {
    for (const headDim of [4, 64, 80, 128, 256]) {
      const setting = { headDim, vector: 16, workgroupBytes: headDim < 128 ? 16384 : 32768 };
      const all = candidates(software, setting);
      assert.ok(all.length > 5 && all.length < 40);
      const usual = bestFirst(software)[0]!.blocking(setting);
      assert.ok(
        all.some(({ blocking }) => isDeepStrictEqual(blocking, usual)),
        "not its own sizes",
      );
      assert.equal(new Set(all.map((each) => JSON.stringify(each))).size, all.length);
      for (const { version, blocking } of all) {
        assert.ok([1, 2, 4, 8, 16].includes(blocking.keys));
        assert.ok(blocking.rows <= mostRows(headDim));
        if (version.subgroups) assert.equal(blocking.lanes, 16);
      }
    }
  }
});

const adapter = await findAdapter();

Deno.test({
  name: `a device uses what was measured${adapter === undefined ? " (not here: no adapter)" : ""}`,
  ignore: adapter === undefined,
  fn: () =>
    withPath(async (path) => {
      const labels: Array<string> = [];
      const { createComputePipeline } = GPUDevice.prototype;
      GPUDevice.prototype.createComputePipeline = function (descriptor) {
        labels.push(descriptor.label ?? "");
        return createComputePipeline.call(this, descriptor);
      };
      const opened = async (options: Parameters<typeof openWebgpu>[0]) => {
        labels.length = 0;
        const { info, close } = await openWebgpu(options);
        await close!();
        return { notes: info.notes!, kernels: labels.filter((label) => label !== "") };
      };
      const usual = isSoftware(adapter!.info) ? /attend broadcast/ : /attend tiles/;
      try {
        const tiny = { dtype: "f32", headDim: 4 } as const; // which every device checks as it opens
        const lanes = 16;
        keepTuning(path, adapter!.info, tiny, {
          version: versionNamed("registers")!,
          blocking: { rows: 2, keys: 2, lanes },
        });
        assert.match((await opened({ tuning: path })).kernels[0]!, /attend registers, f32/);
        assert.match((await opened({ tuning: false })).kernels[0]!, usual);
        // A named kernel is that kernel.
        assert.match((await opened({ tuning: path, kernel: "rows" })).kernels[0]!, /attend rows/);

        const foreign = `${path}.foreign`;
        keepTuning(foreign, here, tiny, choice);
        const { kernels, notes } = await opened({ tuning: foreign });
        assert.match(kernels[0]!, usual);
        assert.match(notes[0]!, /is not used: it is of a \/ b \/ c/);
      } finally {
        GPUDevice.prototype.createComputePipeline = createComputePipeline;
      }
    }),
});

const software = adapter !== undefined && isSoftware(adapter.info);

Deno.test({
  name: "a tuning with other lanes than a subgroup has is ignored with a note" +
    (software ? "" : " (not here: there is no software adapter)"),
  ignore: !software,
  fn: () =>
    withPath(async (path) => {
      const lanes = 2 * adapter!.info.subgroupMaxSize;
      keepTuning(path, adapter!.info, { dtype: "f32", headDim: 4 }, {
        version: versionNamed("broadcast")!,
        blocking: { rows: 2, keys: 4, lanes },
      });
      const { warn } = console;
      console.warn = () => {};
      try {
        const { info, close } = await openWebgpu({ tuning: path });
        await close!();
        assert.match(
          info.notes!.join(),
          RegExp(`it has ${lanes} lanes for kernel "broadcast", and a subgroup here ${lanes / 2}`),
        );
      } finally {
        console.warn = warn;
      }
    }),
});
