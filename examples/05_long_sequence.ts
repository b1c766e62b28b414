/**
 * A long sequence over many processes: causal attention over 1 head of 64, every rank a node of its own with NATS
 * between them, and 8 random rows of every rank compared with float64.
 *
 * ```sh
 * deno run -A examples/05_long_sequence.ts                # 4,096 tokens over 4 nodes, seconds
 * deno run -A examples/05_long_sequence.ts 65536 8        # tens of seconds
 * deno run -A examples/05_long_sequence.ts 1048576 8      # a million: 768 MiB of input, many minutes on few cores
 * ```
 *
 * It needs `nats-server` (`deno task setup`), and room for the input and output in the folder for temporary files.
 *
 * @module
 */
import { fileURLToPath } from "node:url";

const [tokens, ring] = [Number(Deno.args[0] ?? 4096), Number(Deno.args[1] ?? 4)];
const headDim = 64;
const folder = await Deno.makeTempDir({ prefix: "annulus-long-" });

/** A file of random numbers, written chunk by chunk: a header of JSON behind its length, then the tensors. */
const writeInput = async (path: string) => {
  const bytes = tokens * headDim * 4;
  const entry = (i: number) => ({
    dtype: "F32",
    shape: [1, tokens, 1, headDim],
    data_offsets: [i * bytes, (i + 1) * bytes],
  });
  const text = JSON.stringify({ q: entry(0), k: entry(1), v: entry(2) });
  const header = new TextEncoder().encode(text.padEnd(Math.ceil(text.length / 8) * 8));
  using file = await Deno.open(path, { write: true, create: true });
  const writer = file.writable.getWriter();
  await writer.write(new Uint8Array(new BigUint64Array([BigInt(header.length)]).buffer));
  await writer.write(header);
  // Sums of two uniform numbers: near enough to normal ones, and fast to make.
  for (let token = 0; token < 3 * tokens; token += 1024) {
    const count = Math.min(1024, 3 * tokens - token) * headDim;
    const chunk = Float32Array.from(
      { length: count },
      () => 2.4 * (Math.random() + Math.random() - 1),
    );
    await writer.write(new Uint8Array(chunk.buffer));
  }
  await writer.close();
};

try {
  const [input, output] = [`${folder}/in.safetensors`, `${folder}/out.safetensors`];
  await writeInput(input);
  const { code, stdout } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", fileURLToPath(new URL("../cli/main.ts", import.meta.url))],
      ...["attend", input, "--out", output, "--causal", "--ring", String(ring)],
      ...["--link", "nats", "--verify-rows", "8", "--json"],
    ],
    stderr: "inherit",
  }).output();
  if (code !== 0) throw new Error("annulus attend gave no answer");
  const report = JSON.parse(new TextDecoder().decode(stdout));
  const mebibytes = (bytes: ReadonlyArray<number>) => Math.round(Math.max(...bytes) / 2 ** 20);
  console.log(`${tokens} tokens over ${ring} nodes, each with ${report.device.backend}`);
  console.log(
    `${report.seconds.toFixed(1)} s: ${Math.round(report.tokens_per_second)} tokens/s, ` +
      `${(report.flops / report.seconds / 1e9).toFixed(1)} GFLOP/s`,
  );
  console.log(
    `the fullest node held ${mebibytes(report.kv_peak_bytes)} MiB of the ` +
      `${mebibytes([2 * tokens * headDim * 4])} MiB of K and V, and ${
        mebibytes(report.rss_bytes)
      } MiB in all`,
  );
  console.log(
    `${report.error.rows} random rows: o is ${report.error.o.toExponential(1)} from float64 ` +
      `(relative L2), lse ${report.error.lse.toExponential(1)}`,
  );
} finally {
  await Deno.remove(folder, { recursive: true });
}
