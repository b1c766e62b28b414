/** Loading weights: a node needs these and little more memory. */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { findAdapter } from "../../plugins/webgpu/adapter.ts";
import { type DType, elementBytes } from "../../runtime/dtype.ts";
import { findLibrary } from "../../runtime/library.ts";
import { Annulus, annulus } from "../support/cli.ts";
import { inFolder } from "../support/in_folder.ts";
import { modelCases, tensorsFor } from "../support/models.ts";
import { missingServer, natsServer } from "../support/nats.ts";

/** Bytes of memory that a process had at most, which Linux keeps. */
const peakOf = (pid: number): number => {
  const [, kibibytes] = /^VmHWM:\s+(\d+) kB$/m.exec(Deno.readTextFileSync(`/proc/${pid}/status`))!;
  return 1024 * Number(kibibytes);
};

const noLibrary = findLibrary(libraryName) === undefined ? `there is no ${libraryName}` : undefined;
const noAdapter = await findAdapter() === undefined ? "there is no WebGPU adapter" : undefined;

const model = modelCases.find(({ tied }) => tied === true)!;

/** A model that is almost all vocabulary, whose zeros are a hole in its file; gives the bytes of its weights. */
const writeLarge = async (folder: string, vocabulary: number, dtype: DType): Promise<number> => {
  const config = { ...model.config, vocab_size: 1, hidden_size: 512, num_hidden_layers: 1 };
  const tensors = tensorsFor({ ...model, config }, 3);
  let at = 0;
  const header = Object.entries(tensors).map(([name, { shape }]) => {
    const whole = name === "model.embed_tokens.weight" ? [vocabulary, 512] : shape;
    const begin = at;
    at += elementBytes(dtype) * whole.reduce((a, b) => a * b, 1);
    return [name, { dtype: dtype.toUpperCase(), shape: whole, data_offsets: [begin, at] }];
  });
  const text = new TextEncoder().encode(JSON.stringify(Object.fromEntries(header)));
  const bytes = new Uint8Array(8 + text.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  await Deno.mkdir(folder);
  await Deno.writeTextFile(
    `${folder}/config.json`,
    JSON.stringify({ ...config, vocab_size: vocabulary }),
  );
  await Deno.writeFile(`${folder}/model.safetensors`, bytes);
  await Deno.truncate(`${folder}/model.safetensors`, bytes.length + at);
  return at;
};

/** Bytes that a node needs at most, and those of its weights. */
const measure = async (
  url: string,
  folder: string,
  vocabulary: number,
  device: string,
  dtype: DType,
) => {
  const name = `${device}-${dtype}-${vocabulary}`;
  const path = `${folder}/${name}`;
  const weights = await writeLarge(path, vocabulary, dtype);
  const member = ["--nats", url, "--cluster", name];
  await using node = new Annulus([
    ...["node", ...member, "--device", device, "--model", path, "--json"],
  ]);
  await node.line(/"event":"waiting"/);
  const { code, stderr } = await annulus([
    ...["logits", path, ...member, "--tokens", `${folder}/ids.json`],
    ...["--out", `${folder}/out`],
  ]);
  assert.equal(code, 0, stderr);
  await Deno.remove(path, { recursive: true });
  return { weights, peak: peakOf(node.pid) };
};

for (
  const [device, dtype, missing] of [
    ["reference", "f32", undefined],
    ["cpu", "bf16", noLibrary],
    ["webgpu", "f16", noAdapter],
  ] as const
) {
  inFolder(
    `a node needs its weights and a tenth more to load them: ${device}, ${dtype}`,
    (folder) =>
      Effect.gen(function* () {
        const { url } = yield* natsServer();
        yield* Effect.promise(async () => {
          await Deno.writeTextFile(`${folder}/ids.json`, "[0, 0, 0]");
          const small = await measure(url, folder, 10, device, dtype);
          const large = await measure(
            url,
            folder,
            250_000 * 4 / elementBytes(dtype),
            device,
            dtype,
          );
          const [weights, peak] = [large.weights - small.weights, large.peak - small.peak];
          assert.ok(weights > 500e6);
          assert.ok(peak <= 1.1 * weights, `${peak} bytes more for ${weights} bytes of weights`);
        });
      }).pipe(Effect.scoped, Effect.runPromise),
    missingServer ?? missing,
  );
}
