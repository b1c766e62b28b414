/**
 * `annulus demo`: a ring of four nodes attends over 8,192 tokens of noise, and is checked.
 *
 * @module
 */
import { Effect } from "effect";
import { causal } from "../plugins/attention.ts";
import { createSafetensors } from "../plugins/safetensors.ts";
import { FileInvalid } from "../runtime/errors.ts";
import { attendFiles } from "./attend.ts";
import { devices } from "./devices.ts";
import { normals } from "./random.ts";
import { note, print } from "./output.ts";
import { reportInWords } from "./report.ts";
import { findNatsServer } from "./system.ts";

const shape = { tokens: 8192, heads: 8, kvHeads: 2, headDim: 64 };

const temporaryFolder = Effect.tryPromise({
  try: () => Deno.makeTempDir({ prefix: "annulus-demo-" }),
  catch: (cause) =>
    new FileInvalid({
      attempted: "create",
      file: "a temporary folder",
      needed: "the system's folder for temporary files must be writable",
      found: String(cause),
    }),
});

/** Writes random `q`, `k` and `v`. */
const writeInput = Effect.fnUntraced(function* (path: string) {
  const { tokens, heads, kvHeads, headDim } = shape;
  const random = normals(1);
  const tensors = [["q", heads], ["k", kvHeads], ["v", kvHeads]] as const;
  const writer = yield* createSafetensors(
    path,
    tensors.map(([name, heads]) => ({ name, dtype: "F32", shape: [1, tokens, heads, headDim] })),
  );
  for (const [name, heads] of tensors) {
    const length = tokens * heads * headDim;
    yield* writer.write(name, [{ offset: 0, length }], new Uint8Array(random(length).buffer));
  }
  yield* writer.commit;
}, Effect.scoped);

/** Runs the demonstration; only its trace stays on the disk. */
export const runDemo = Effect.gen(function* () {
  const folder = yield* temporaryFolder;
  const [input, out] = [`${folder}/input.safetensors`, `${folder}/output.safetensors`];
  yield* Effect.addFinalizer(() =>
    Effect.promise(async () => {
      await Promise.all([input, out].map((path) => Deno.remove(path).catch(() => {})));
      await Deno.remove(folder).catch(() => {}); // not where the trace is in it
    })
  );
  const trace = `${folder}/trace.json`;
  const link = findNatsServer() === undefined ? "memory" : "nats";
  const { tokens, heads, kvHeads, headDim } = shape;
  yield* note(
    `annulus demo: causal attention over ${tokens} tokens, ${heads} query heads, ${kvHeads} KV heads, head dim ${headDim},\n` +
      (link === "nats"
        ? "by a ring of four node processes whose links are NATS subjects"
        : "by a ring of four ranks in this process, since there is no nats-server here"),
  );
  yield* writeInput(input);
  const report = yield* attendFiles({
    input,
    out,
    ring: 4,
    attentions: [[causal()]],
    plugin: [],
    tls: undefined,
    insecure: false,
    devices,
    layout: undefined,
    weights: undefined,
    device: "auto",
    link,
    nats: undefined,
    cluster: undefined,
    wire: undefined,
    trace,
    record: undefined,
    verifyRows: 256,
    keep: undefined,
    progress: true,
  });
  for (const line of reportInWords(report)) yield* print(line);
  yield* print(`trace      ${trace} (open it at https://ui.perfetto.dev)`);
}).pipe(Effect.scoped);
