/**
 * The header of a safetensors file: the names, types, shapes and places of its tensors. Nothing that it says is
 * believed until it was checked against the size of the file.
 *
 * @module
 */
import { Result } from "effect";
import { FileInvalid } from "../../runtime/errors.ts";

/** One tensor of a file. */
export interface SafetensorsTensor {
  readonly name: string;
  /** `F32`, `BF16`, …; types that this version does not know are listed but cannot be read. */
  readonly dtype: string;
  readonly shape: ReadonlyArray<number>;
  /** The product of the shape. */
  readonly elements: number;
  /** Bytes of one element; undefined for an unknown type. */
  readonly elementBytes: number | undefined;
  /** Where its data begin and end, in bytes from the begin of the file. */
  readonly begin: number;
  readonly end: number;
}

/** What a header says. */
export interface SafetensorsHeader {
  readonly metadata: ReadonlyMap<string, string>;
  /** By name, in the order of their data. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
}

/** Bytes of one element of every type that fills whole bytes. */
const bytesOf = new Map<string, number>([
  ...["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]
    .map((dtype) => [dtype, 1] as const),
  ...["I16", "U16", "F16", "BF16"].map((dtype) => [dtype, 2] as const),
  ...["I32", "U32", "F32"].map((dtype) => [dtype, 4] as const),
  ...["I64", "U64", "F64", "C64"].map((dtype) => [dtype, 8] as const),
]);

/** The types whose elements can be read and written. */
export const knownDtypes: ReadonlyArray<string> = [...bytesOf.keys()];

/** Bytes before the header: its length, little-endian. */
export const prefixBytes = 8;

/** The longest header that the reference implementation reads, too. */
export const longestHeader = 100_000_000;

/** Text of a file as part of a sentence: short, and harmless to a terminal. */
export const quoted = (text: string): string => {
  const cut = text.length > 60 ? `${text.slice(0, 60)}…` : text;
  return `"${cut.replace(/\p{C}/gu, (c) => `\\u{${c.codePointAt(0)!.toString(16)}}`)}"`;
};

/** The names of a file's tensors as part of a sentence. */
export const namesOf = ({ tensors }: SafetensorsHeader): string =>
  tensors.size === 0 ? "no tensor" : [...tensors.keys()].slice(0, 20).map(quoted).join(", ");

/** A JSON value as part of a sentence, however large or deep it is. */
const shown = (value: unknown): string => {
  if (typeof value === "string") return quoted(value);
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === "object" && value !== null) return "an object";
  return value === undefined ? "nothing" : String(value);
};

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const isCount = (value: unknown): value is number =>
  Number.isSafeInteger(value) && value as number >= 0;

/** The product of a shape, or undefined where it is beyond the exact integers. */
const productOf = (factors: ReadonlyArray<number>): number | undefined => {
  let product = 1;
  for (const factor of factors) {
    product *= factor;
    if (!Number.isSafeInteger(product)) return undefined;
  }
  return product;
};

/**
 * The first key that one object of `json` has twice, with the top-level key above it; `JSON.parse` would silently keep
 * the last. `json` must be valid. Escapes are undone before keys are compared.
 */
const repeatedKey = (json: string): { key: string; owner: string | undefined } | undefined => {
  const open: Array<Set<string> | undefined> = []; // the keys of every open object; undefined for a list
  let owner: string | undefined;
  for (let i = 0; i < json.length; i++) {
    const c = json[i];
    if (c === "{") open.push(new Set());
    else if (c === "[") open.push(undefined);
    else if (c === "}" || c === "]") open.pop();
    else if (c === '"') {
      const begin = i++;
      while (json[i] !== '"') i += json[i] === "\\" ? 2 : 1;
      let next = i + 1;
      while (" \t\n\r".includes(json[next] ?? "end")) next++;
      const keys = open.at(-1);
      if (json[next] !== ":" || keys === undefined) continue;
      const key: string = JSON.parse(json.slice(begin, i + 1));
      if (keys.has(key)) return { key, owner: open.length === 1 ? undefined : owner };
      keys.add(key);
      if (open.length === 1) owner = key;
    }
  }
  return undefined;
};

/**
 * Reads and checks the header of a file of `fileBytes` bytes. Every byte of the file belongs to the header or to
 * exactly one tensor.
 *
 * @param attempted What is being done to `file`, for the sentence of an error.
 * @param bytes The header without the 8 bytes that hold its length.
 */
export const parseHeader = (
  attempted: string,
  file: string,
  bytes: Uint8Array,
  fileBytes: number,
): Result.Result<SafetensorsHeader, FileInvalid> => {
  const refuse = (needed: string, found: string) =>
    Result.fail(new FileInvalid({ attempted, file, needed, found }));

  const dataBegin = prefixBytes + bytes.length;
  const dataBytes = fileBytes - dataBegin;

  const decoded = Result.gen(function* () {
    const text = yield* Result.try({
      try: () => new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes),
      catch: () => undefined,
    }).pipe(Result.orElse(() => refuse("its header must be UTF-8", "other bytes")));
    if (text[0] !== "{") {
      return yield* refuse(
        'its header must begin with "{"',
        text === "" ? "nothing" : quoted(text),
      );
    }
    const json: unknown = yield* Result.try({
      try: () => JSON.parse(text),
      catch: (cause) => cause as SyntaxError,
    }).pipe(
      Result.orElse((cause) => refuse("its header must be one JSON object", quoted(cause.message))),
    );
    const twice = repeatedKey(text);
    if (twice !== undefined) {
      const where = twice.owner === undefined
        ? "its header"
        : `${quoted(twice.owner)} of its header`;
      return yield* refuse(`${where} must have every key once`, `${quoted(twice.key)} twice`);
    }
    return json as Record<string, unknown>;
  });

  const metadataOf = (value: unknown) =>
    Result.gen(function* () {
      if (!isObject(value)) {
        return yield* refuse('its "__metadata__" must map texts to texts', shown(value));
      }
      const metadata = new Map<string, string>();
      for (const [key, text] of Object.entries(value)) {
        if (typeof text !== "string") {
          const needed = `its "__metadata__" must have a text under ${quoted(key)}`;
          return yield* refuse(needed, shown(text));
        }
        metadata.set(key, text);
      }
      return metadata;
    });

  const tensorOf = (name: string, value: unknown) =>
    Result.gen(function* () {
      const tensor = `tensor ${quoted(name)}`;
      if (!isObject(value)) {
        return yield* refuse(`${tensor} must be described by an object`, shown(value));
      }
      const { dtype, shape, data_offsets: offsets } = value;
      if (typeof dtype !== "string") {
        return yield* refuse(`${tensor} must have a text as dtype`, shown(dtype));
      }
      if (!Array.isArray(shape)) {
        return yield* refuse(`${tensor} must have a list as shape`, shown(shape));
      }
      const odd = shape.findIndex((length) => !isCount(length));
      if (odd >= 0) {
        const needed = `${tensor} must have whole numbers from 0 to 2^53 − 1 as shape`;
        return yield* refuse(needed, `${shown(shape[odd])} as its dimension ${odd}`);
      }
      if (!Array.isArray(offsets) || offsets.length !== 2) {
        return yield* refuse(`${tensor} must have two data_offsets`, shown(offsets));
      }
      const [begin, end]: Array<unknown> = offsets;
      if (!isCount(begin) || !isCount(end)) {
        const needed = `${tensor} must have whole numbers from 0 to 2^53 − 1 as data_offsets`;
        return yield* refuse(needed, `${shown(begin)} and ${shown(end)}`);
      }
      if (begin > end) {
        const needed = `${tensor} must have data_offsets in ascending order`;
        return yield* refuse(needed, `${begin} and ${end}`);
      }
      if (end > dataBytes) {
        const needed = `${tensor} must end within the file, at byte ${end} of its data`;
        return yield* refuse(
          needed,
          `${dataBytes} bytes of data; the file is cut short or damaged`,
        );
      }
      const elementBytes = bytesOf.get(dtype);
      const elements = productOf(shape);
      const size = elements === undefined ? undefined : productOf([elements, elementBytes ?? 1]);
      if (elements === undefined || size === undefined) {
        return yield* refuse(`${tensor} must have fewer than 2^53 bytes`, "a shape of more");
      }
      if (elementBytes !== undefined && size !== end - begin) {
        const needed = `${tensor} must have ${size} bytes, as its dtype ${dtype} and its shape say`;
        return yield* refuse(needed, `${end - begin} bytes between its data_offsets`);
      }
      return {
        name,
        dtype,
        shape: shape as ReadonlyArray<number>,
        elements,
        elementBytes,
        begin: dataBegin + begin,
        end: dataBegin + end,
      };
    });

  return Result.gen(function* () {
    const { __metadata__ = {}, ...entries } = yield* decoded;
    const metadata = yield* metadataOf(__metadata__);
    const tensors: Array<SafetensorsTensor> = [];
    for (const [name, value] of Object.entries(entries)) tensors.push(yield* tensorOf(name, value));
    tensors.sort((a, b) => a.begin - b.begin || a.end - b.end);
    // A gap or an overlap would let one file mean different things to different readers.
    let at = dataBegin;
    for (const { name, begin, end } of tensors) {
      if (begin !== at) {
        const needed = `tensor ${quoted(name)} must begin where the one before it ends, ` +
          `at byte ${at - dataBegin} of the data`;
        return yield* refuse(needed, `byte ${begin - dataBegin}`);
      }
      at = end;
    }
    if (at !== fileBytes) {
      const needed = `its tensors must fill its ${dataBytes} bytes of data`;
      return yield* refuse(needed, `${fileBytes - at} bytes after the last of them`);
    }
    return { metadata, tensors: new Map(tensors.map((tensor) => [tensor.name, tensor])) };
  });
};

/** A tensor that is to be written. */
export interface SafetensorsDeclaration {
  readonly name: string;
  /** One of `knownDtypes`. */
  readonly dtype: string;
  readonly shape: ReadonlyArray<number>;
}

/** The head of a file that is to be written. */
export interface SafetensorsHead extends SafetensorsHeader {
  /** The 8 bytes of length and the padded header. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly fileBytes: number;
}

/**
 * Lays tensors out in a file: wide elements first, so that each tensor is aligned to its own elements, and the data
 * at a multiple of 8 bytes. What is written is checked by the rules of what is read.
 */
export const buildHeader = (
  attempted: string,
  file: string,
  tensors: ReadonlyArray<SafetensorsDeclaration>,
  metadata: Readonly<Record<string, string>> | undefined,
): Result.Result<SafetensorsHead, FileInvalid> =>
  Result.gen(function* () {
    const refuse = (needed: string, found: string) =>
      Result.fail(new FileInvalid({ attempted, file, needed, found }));

    const widthOf = ({ dtype }: SafetensorsDeclaration) => bytesOf.get(dtype) ?? NaN;
    const strange = tensors.find(({ dtype }) => !bytesOf.has(dtype));
    if (strange !== undefined) {
      const needed = `tensor ${quoted(strange.name)} must have one of ${
        knownDtypes.join(", ")
      } as dtype`;
      return yield* refuse(needed, quoted(strange.dtype));
    }
    let end = 0;
    // Text, not an object: a name that comes twice must not vanish before it is checked.
    const entries = tensors.toSorted((a, b) => widthOf(b) - widthOf(a)).map((tensor) => {
      const { name, dtype, shape } = tensor;
      const begin = end;
      end += productOf([...shape, widthOf(tensor)]) ?? NaN;
      const value = { dtype, shape, data_offsets: [begin, end] };
      return `${JSON.stringify(name)}:${JSON.stringify(value)}`;
    });
    if (metadata !== undefined) entries.unshift(`"__metadata__":${JSON.stringify(metadata)}`);
    const header = new TextEncoder().encode(`{${entries.join(",")}}`);
    const padded = Math.ceil(header.length / 8) * 8;
    if (padded > longestHeader) {
      return yield* refuse(
        `its header must have at most ${longestHeader} bytes`,
        `${padded} bytes`,
      );
    }
    const bytes = new Uint8Array(prefixBytes + padded).fill(0x20);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true);
    bytes.set(header, prefixBytes);
    const fileBytes = bytes.length + end;
    const checked = yield* parseHeader(attempted, file, bytes.subarray(prefixBytes), fileBytes);
    return { ...checked, bytes, fileBytes };
  });
