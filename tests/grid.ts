/**
 * `deno task grid`: `annulus attend --verify` over the whole grid of shapes, rings, masks, layouts, links and devices,
 * on files that another program made (Python, `tests/support/make_safetensors.py`). Takes some twenty minutes, and is
 * therefore no test; the suites cover the same ground with fewer combinations.
 *
 * Prints a table of the errors by shape and ends with exit code 1 if one run fails.
 *
 * @module
 */
import { fileURLToPath } from "node:url";

interface Shape {
  readonly batch?: number;
  readonly tokens: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

const small: ReadonlyArray<Shape> = [
  { tokens: 1, heads: 8, kvHeads: 8, headDim: 8 },
  { tokens: 4, heads: 8, kvHeads: 1, headDim: 64 }, // fewer than ranks
  { tokens: 31, heads: 8, kvHeads: 8, headDim: 8 },
  { tokens: 31, heads: 6, kvHeads: 2, headDim: 80 },
  { tokens: 257, heads: 5, kvHeads: 5, headDim: 128 },
  { tokens: 257, heads: 8, kvHeads: 2, headDim: 256 },
  { batch: 3, tokens: 257, heads: 8, kvHeads: 1, headDim: 64 },
];
const long: Shape = { tokens: 3816, heads: 8, kvHeads: 2, headDim: 64 };
const rings = [1, 2, 3, 5, 8];
const layouts = ["contiguous", "striped", "zigzag"];

interface Run {
  readonly shape: Shape;
  readonly ring: number;
  readonly causal: boolean;
  readonly layout: string;
  readonly link: string;
  readonly device: string;
}

const every = (
  shapes: ReadonlyArray<Shape>,
  link: string,
  device: string,
  causal = [true, false],
): ReadonlyArray<Run> =>
  shapes.flatMap((shape) =>
    rings.flatMap((ring) =>
      causal.flatMap((causal) =>
        layouts.map((layout) => ({ shape, ring, causal, layout, link, device }))
      )
    )
  );

const runs: ReadonlyArray<Run> = [
  ...every(small, "memory", "webgpu"),
  ...every(small, "memory", "reference"),
  ...every(small.slice(3, 4), "nats", "reference"),
  ...every(small.slice(4, 5), "nats", "webgpu"),
  ...every([long], "memory", "webgpu", [true]),
  ...every([long], "nats", "webgpu", [true]).filter(({ layout }) => layout === "zigzag"),
  ...every([long], "memory", "reference", [true]).filter(({ layout }) => layout === "zigzag"),
];

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = Deno.makeTempDirSync({ prefix: "annulus-grid-" });
const name = ({ batch = 1, tokens, heads, kvHeads, headDim }: Shape) =>
  `b${batch} s${tokens} h${heads}/${kvHeads} d${headDim}`;

const output = async (program: string, args: ReadonlyArray<string>) => {
  const { code, stdout, stderr } = await new Deno.Command(program, { args: [...args], cwd: root })
    .output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
  return { code, stdout: text(stdout), stderr: text(stderr) };
};

for (const shape of [...small, long]) {
  const { batch = 1, tokens, heads, kvHeads, headDim } = shape;
  const { code, stderr } = await output("python3", [
    "tests/support/make_safetensors.py",
    `${folder}/${name(shape).replaceAll("/", "-")}`,
    ...["--batch", `${batch}`, "--tokens", `${tokens}`, "--heads", `${heads}`],
    ...["--kv-heads", `${kvHeads}`, "--head-dim", `${headDim}`, "--seed", "5"],
  ]);
  if (code !== 0) throw new Error(stderr);
}

const worst = new Map<
  string,
  { runs: number; o: number; lse: number; byRing: Map<number, number> }
>();
let failures = 0;
const attend = async ({ shape, ring, causal, layout, link, device }: Run): Promise<void> => {
  const id = crypto.randomUUID();
  const args = [
    ...["run", "-A", "cli/main.ts", "attend", `${folder}/${name(shape).replaceAll("/", "-")}`],
    ...["--out", `${folder}/${id}`, "--ring", `${ring}`, "--layout", layout, "--link", link],
    ...["--device", device, ...(causal ? ["--causal"] : []), "--verify", "--json"],
  ];
  const { code, stdout, stderr } = await output(Deno.execPath(), args);
  if (code !== 0) {
    failures++;
    console.log(`FAILED (${code}): ${args.slice(3).join(" ")}\n  ${stderr}`);
    return;
  }
  const { error } = JSON.parse(stdout);
  const key = `${name(shape)}, ${link}, ${device}`;
  const row = worst.get(key) ?? { runs: 0, o: 0, lse: 0, byRing: new Map() };
  row.runs++;
  row.o = Math.max(row.o, error.o);
  row.lse = Math.max(row.lse, error.lse);
  row.byRing.set(ring, Math.max(row.byRing.get(ring) ?? 0, error.o));
  worst.set(key, row);
  await Deno.remove(`${folder}/${id}`);
};

const queue = [...runs];
const worker = async () => {
  for (let run = queue.shift(); run !== undefined; run = queue.shift()) await attend(run);
};
await Promise.all([worker(), worker()]);
await Deno.remove(folder, { recursive: true });

console.log("| shape, link, device | runs | worst o | worst lse | worst o by ring 1, 2, 3, 5, 8 |");
console.log("| --- | --- | --- | --- | --- |");
for (const [key, { runs, o, lse, byRing }] of worst) {
  const each = rings.map((ring) => (byRing.get(ring) ?? NaN).toExponential(1)).join(", ");
  console.log(`| ${key} | ${runs} | ${o.toExponential(2)} | ${lse.toExponential(2)} | ${each} |`);
}
console.log(`${runs.length - failures} of ${runs.length} runs within 2e-6 in o and 1e-5 in lse`);
if (failures > 0) Deno.exit(1);
