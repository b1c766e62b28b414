/** `annulus pull` from a server of the test's own, with the API of the hub. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { annulus } from "../support/cli.ts";
import { inFolder } from "../support/in_folder.ts";
import { modelCases, tensorsFor, writeModel } from "../support/models.ts";

/** What a hub does to those who ask. */
interface Faults {
  /** Cuts the connection after so many bytes of a large file, once for each number. */
  readonly cuts?: Array<number>;
  /** Sends another byte somewhere in it. */
  readonly flip?: boolean;
  /** Says nothing more after so many bytes of it. */
  readonly stall?: number;
}

/** A hub with one model. */
class Hub implements AsyncDisposable {
  /** Every request, with its range. */
  readonly asked: Array<string> = [];
  faults: Faults = {};
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  constructor(files: ReadonlyMap<string, Uint8Array<ArrayBuffer>>) {
    const tree = [...files].map(([path, bytes]) => {
      const large = path.endsWith(".safetensors");
      const git = createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
      const oid = createHash("sha256").update(bytes).digest("hex");
      return {
        ...{ type: "file", path, size: bytes.length, oid: git },
        ...(large ? { lfs: { oid, size: bytes.length, pointerSize: 130 } } : {}),
      };
    });
    this.#server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, (request) => {
      const { pathname } = new URL(request.url);
      const range = request.headers.get("range");
      this.asked.push(`${pathname}${range === null ? "" : ` ${range}`}`);
      if (pathname === "/api/models/org/tiny/tree/main") return Response.json(tree);
      const bytes = files.get(pathname.replace("/org/tiny/resolve/main/", ""));
      if (bytes === undefined) return new Response("", { status: 404 });
      const from = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
      const part = bytes.slice(from);
      const large = pathname.endsWith(".safetensors");
      if (large && this.faults.flip === true) part[part.length - 1]! ^= 1;
      const cut = large ? this.faults.cuts?.shift() : undefined;
      const body = cut === undefined ? part : new ReadableStream({
        start: (controller) => controller.enqueue(part.subarray(0, cut)),
        pull: (controller) => controller.close(),
      });
      const { stall } = this.faults;
      const stalled = new ReadableStream({
        start: (controller) => controller.enqueue(part.subarray(0, stall)),
        pull: () => new Promise(() => {}),
      });
      return new Response(large && stall !== undefined ? stalled : body, {
        status: range === null ? 200 : 206,
      });
    });
  }

  get url(): string {
    return `http://127.0.0.1:${this.#server.addr.port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }
}

const model = modelCases[3]!;

inFolder("a model is fetched, goes on after a cut, and is checked", async (folder) => {
  await writeModel(`${folder}/origin`, model, tensorsFor(model, 3));
  const files = new Map<string, Uint8Array<ArrayBuffer>>();
  const names = [...Deno.readDirSync(`${folder}/origin`)].map(({ name }) => name).sort();
  for (const name of names) {
    files.set(name, await Deno.readFile(`${folder}/origin/${name}`));
  }
  files.set("README.md", new TextEncoder().encode("not for us"));
  await using hub = new Hub(files);
  const env = { HF_ENDPOINT: hub.url, HF_TOKEN: "secret" };
  const out = `${folder}/tiny`;
  const pull = (...args: ReadonlyArray<string>) =>
    annulus(["pull", "org/tiny", "--out", out, "--json", ...args], { env });
  const size = files.get("model.safetensors")!.length;

  assert.match(
    (await pull("--offline")).stderr,
    /offline, the folder must have been pulled before/,
  );

  hub.faults = { flip: true };
  const odd = await pull();
  assert.equal(odd.code, 1);
  assert.match(
    odd.stderr,
    /^annulus: Cannot fetch "model\.safetensors" of model "org\/tiny": its hash must be/,
  );
  assert.deepEqual([...Deno.readDirSync(out)].map(({ name }) => name), ["config.json"]);

  hub.faults = { stall: 0 };
  const silent = await pull("--silence", "0.2");
  assert.equal(silent.code, 1);
  assert.match(silent.stderr, /bytes must come of it: found nothing came for 0\.2 seconds/);

  // Cut more often than a run tries again; the next run goes on.
  hub.faults = { cuts: [1000, 500, 0, 250, 1] };
  const cut = await pull();
  assert.equal(cut.code, 1, cut.stderr);
  assert.match(cut.stderr, new RegExp(`${size} bytes must come of it`));
  const there = (await Deno.stat(`${out}/model.safetensors.part`)).size;
  assert.equal(there, 1751);
  hub.asked.length = 0;
  const whole = await pull();
  assert.equal(whole.code, 0, whole.stderr);
  assert.deepEqual(JSON.parse(whole.stdout), {
    ...{ folder: out, files: 2, fetched: 1, bytes: size },
  });
  assert.deepEqual(hub.asked, [
    "/api/models/org/tiny/tree/main",
    "/org/tiny/resolve/main/model.safetensors bytes=1751-",
  ]);
  assert.deepEqual(await Deno.readFile(`${out}/model.safetensors`), files.get("model.safetensors"));

  hub.asked.length = 0;
  assert.equal(JSON.parse((await pull()).stdout).fetched, 0);
  assert.equal((await pull("--offline")).code, 0);
  assert.equal(hub.asked.length, 1);
  await Deno.writeTextFile(`${out}/config.json`, "{}");
  assert.match((await pull("--offline")).stderr, /"config\.json".*it must be there as it was/);
});

inFolder("what the hub does not have is said so", async (folder) => {
  await using hub = new Hub(new Map([["weights.bin", new Uint8Array(3)]]));
  const env = { HF_ENDPOINT: hub.url };
  const pull = (name: string) => annulus(["pull", name, "--out", `${folder}/x`], { env });
  assert.match((await pull("org/other")).stderr, /http:\/\/127.* must have it: found 404/);
  assert.match(
    (await pull("org/tiny")).stderr,
    /"config\.json".* a model must have it: found none/,
  );
  const odd = await pull("tiny");
  assert.equal(odd.code, 2);
  assert.match(odd.stderr, /pull needs ORG\/NAME/);
});
