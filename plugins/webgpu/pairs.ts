/**
 * What variants say of single pairs, as WGSL: the functions that kernels call, made of the bodies that variants give, and
 * the parameters that these read.
 *
 * @module
 */
import type { Attention } from "../../runtime/attention.ts";
import type { Gpu } from "./gpu.ts";

/** Bindings before these are the kernels' own. */
const firstBinding = 6;

/** A binding of parameters: numbers of all variants in a uniform, or one table. */
interface Binding {
  readonly kind: "uniform" | "read-only-storage";
  readonly content: ArrayBuffer;
}

/** The functions of an attention and what they read. */
export interface PairProgram {
  /** Declarations, `pairSees`, `pairScore` and `pairSlope`, as far as the attention has them. */
  readonly text: string;
  readonly masked: boolean;
  readonly scored: boolean;
  /** Every score has its slope. */
  readonly sloped: boolean;
  /** From `firstBinding` on. */
  readonly bindings: ReadonlyArray<Binding>;
  /** Whose line of `text` that is, from 1, in words; undefined where it is nobody's. */
  readonly ownerOf: (line: number) => string | undefined;
}

const signature = "b: i32, h: i32, q: i32, k: i32";
const results = { mask: "bool", score: "f32", slope: "f32" } as const;
type Form = keyof typeof results;

/** The values of a table, at least one, since a binding must have a size. */
const contentOf = (element: "i32" | "f32", values: ArrayLike<number>): ArrayBuffer => {
  const array = new (element === "i32" ? Int32Array : Float32Array)(Math.max(values.length, 1));
  array.set(values);
  return array.buffer;
};

/** Makes the functions of an attention; throws with the name of a variant that lacks a form. */
export const pairProgramOf = (attention: Attention): PairProgram => {
  const lines: Array<string> = [];
  const owners = new Map<number, string>();
  const tables: Array<Binding> = [];
  const fields: Array<{ readonly name: string; readonly element: string; readonly value: number }> =
    [];
  const declarations: Array<string> = [];
  const functions: Record<Form, Array<string>> = { mask: [], score: [], slope: [] };

  attention.variants.forEach(({ definition, given }, i) => {
    const { name, wgsl = {}, bandSaysAll } = definition;
    const kinds = { ...definition.params, ...definition.precompute?.params };
    const names = { tables: [] as Array<string>, numbers: [] as Array<string> };
    for (const [key, { element, table }] of Object.entries(kinds)) {
      const own = `v${i}_${key}`;
      const value = given[key]!;
      if (table) {
        names.tables.push(key);
        const content = contentOf(element, value as ArrayLike<number>);
        declarations.push(`var<storage, read> ${own}: array<${element}>;`);
        tables.push({ kind: "read-only-storage", content });
      } else {
        names.numbers.push(key);
        fields.push({ name: own, element, value: value as number });
      }
    }
    for (const form of ["mask", "score", "slope"] as const) {
      const body = form === "mask" && bandSaysAll === true ? undefined : wgsl[form];
      if (body === undefined) continue;
      const own = `v${i}_${form}`;
      functions[form].push(own);
      const scored = form === "mask" ? "" : "s: f32, ";
      lines.push(`fn ${own}(${scored}${signature}) -> ${results[form]} {`);
      for (const key of names.numbers) lines.push(`  let ${key} = numbers.v${i}_${key};`);
      const renamed = body.replaceAll(
        /\b[A-Za-z_]\w*\b/g,
        (word) => names.tables.includes(word) ? `v${i}_${word}` : word,
      ).split("\n");
      renamed.forEach((line, at) => {
        lines.push(line);
        const source = body.split("\n")[at]!.trim();
        owners.set(
          lines.length,
          `attention "${name}", line ${at + 1} of its WGSL ${form}: ${source}`,
        );
      });
      lines.push("}");
      owners.set(lines.length, owners.get(lines.length - 1)!); // where a parser misses a semicolon
    }
  });

  const { mask, score, slope } = functions;
  if (mask.length > 0) {
    const all = mask.map((own) => `${own}(b, h, q, k)`).join(" && ");
    lines.push(`fn pairSees(${signature}) -> bool { return ${all}; }`);
  }
  if (score.length > 0) {
    const composed = score.reduce((s, own) => `${own}(${s}, b, h, q, k)`, "s");
    lines.push(`fn pairScore(s: f32, ${signature}) -> f32 { return ${composed}; }`);
  }
  const sloped = slope.length > 0 && slope.length === score.length;
  if (sloped) {
    lines.push(
      `fn pairSlope(first: f32, ${signature}) -> f32 {`,
      "  var s = first;",
      "  var product = 1.0;",
    );
    slope.forEach((own, i) =>
      lines.push(`  product *= ${own}(s, b, h, q, k);`, `  s = ${score[i]}(s, b, h, q, k);`)
    );
    lines.push("  return product;", "}");
  }

  const bindings: Array<Binding> = [];
  const header: Array<string> = [];
  const bind = (declaration: string, binding: Binding): void => {
    header.push(`@group(0) @binding(${firstBinding + bindings.length}) ${declaration}`);
    bindings.push(binding);
  };
  if (fields.length > 0) {
    const content = new ArrayBuffer(Math.ceil(fields.length / 4) * 16);
    const view = new DataView(content);
    fields.forEach(({ element, value }, i) =>
      element === "i32" ? view.setInt32(4 * i, value, true) : view.setFloat32(4 * i, value, true)
    );
    header.push(
      `struct Numbers { ${fields.map(({ name, element }) => `${name}: ${element}`).join(", ")} }`,
    );
    bind("var<uniform> numbers: Numbers;", { kind: "uniform", content });
  }
  declarations.forEach((declaration, i) => bind(declaration, tables[i]!));

  return {
    text: [...header, ...lines].join("\n"),
    masked: mask.length > 0,
    scored: score.length > 0,
    sloped,
    bindings,
    ownerOf: (line) => owners.get(line - header.length),
  };
};

/** The layout of a program's bindings from `firstBinding` on. */
export const pairLayout = ({ bindings }: PairProgram): ReadonlyArray<GPUBindGroupLayoutEntry> =>
  bindings.map(({ kind }, i) => ({
    binding: firstBinding + i,
    visibility: GPUShaderStage.COMPUTE,
    buffer: { type: kind },
  }));

/** The parameters of an attention on a device. */
export class PairMemory {
  readonly program: PairProgram;
  readonly #buffers: ReadonlyArray<GPUBuffer>;

  private constructor(program: PairProgram, buffers: ReadonlyArray<GPUBuffer>) {
    this.program = program;
    this.#buffers = buffers;
  }

  /** Compiles the functions alone, so that a variant hears what is wrong with its own lines, and uploads the parameters. */
  static async place(gpu: Gpu, attention: Attention): Promise<PairMemory> {
    const program = pairProgramOf(attention);
    const { device } = gpu;
    const tables = program.bindings.filter(({ kind }) => kind !== "uniform").length;
    const most = device.limits.maxStorageBuffersPerShaderStage - ownStorageBuffers;
    if (tables > most) {
      const names = attention.specs.map(({ name }) => name).join(" & ");
      throw new Error(`attention ${names} has ${tables} tables, and its adapter room for ${most}`);
    }
    const largest = device.limits.maxStorageBufferBindingSize;
    const large = program.bindings.find(({ content }) => content.byteLength > largest);
    if (large !== undefined) {
      throw new Error(
        `a table of the attention has ${large.content.byteLength} bytes, and a buffer at most ${largest}`,
      );
    }
    const code = `${program.text}\n@compute @workgroup_size(1) fn nothing() {}`;
    try {
      await gpu.run(
        () => device.createShaderModule({ label: "attention", code }),
        () => Promise.resolve(),
      );
    } catch (cause) {
      throw new Error(faultOf(program, cause instanceof Error ? cause.message : String(cause)));
    }
    const buffers: Array<GPUBuffer> = [];
    try {
      await gpu.run(() => {
        for (const { kind, content } of program.bindings) {
          const { UNIFORM, STORAGE, COPY_DST } = GPUBufferUsage;
          const usage = (kind === "uniform" ? UNIFORM : STORAGE) | COPY_DST;
          const buffer = device.createBuffer({
            label: "attention",
            size: content.byteLength,
            usage,
          });
          buffers.push(buffer);
          device.queue.writeBuffer(buffer, 0, content);
        }
      }, () => Promise.resolve());
    } catch (cause) {
      for (const buffer of buffers) buffer.destroy();
      throw cause;
    }
    return new PairMemory(program, buffers);
  }

  get entries(): ReadonlyArray<GPUBindGroupEntry> {
    return this.#buffers.map((buffer, i) => ({
      binding: firstBinding + i,
      resource: { buffer },
    }));
  }

  destroy(): void {
    for (const buffer of this.#buffers) buffer.destroy();
  }
}

/** Storage buffers that a kernel needs itself. */
const ownStorageBuffers = 5;

/** A compiler's complaint, with the variant's own line where it names one. */
const faultOf = ({ ownerOf }: PairProgram, message: string): string => {
  const places = message.matchAll(/(?::(\d+):\d+)|^\s*(\d+) │/gm);
  const owner = [...places].map(([, at, shown]) => ownerOf(Number(at ?? shown)))
    .find((owner) => owner !== undefined);
  // A parser complains in the first line, a validator in the last.
  const [, parsing] = /parsing error: (.*)/.exec(message) ?? [];
  const complaint = parsing ?? message.trim().split("\n").at(-1)!.replace(/^[:\s]*/, "");
  return owner === undefined ? message : `${owner}: ${complaint}`;
};
