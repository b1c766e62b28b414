/**
 * The versions of the attention kernel, by number, and which of them suits what adapter. Each is explained at the top
 * of its WGSL.
 *
 * @module
 */

/**
 * What holds K and V on the device. A GPU reads buffers best; a program that imitates one reads a storage texture
 * several times faster than a buffer, since it loads from a buffer for one invocation after the other.
 */
export type KeysIn = "texture" | "buffer";

/** How much work an invocation and a workgroup take at once. */
export interface Blocking {
  /** Query rows of an invocation. */
  readonly rows: number;
  /** Keys whose scores an invocation holds at once; divides 256. */
  readonly keys: number;
  /** Invocations of a workgroup. */
  readonly lanes: number;
}

/** A version of the kernel and the sizes to run it with. */
export interface Choice {
  readonly version: Version;
  readonly blocking: Blocking;
}

/** What a version's blocking depends on. */
export interface Setting {
  /** A multiple of 4. */
  readonly headDim: number;
  /** Invocations that the adapter runs as one; a workgroup's worth where that is not known. */
  readonly vector: number;
  /** Bytes of workgroup memory that it has. */
  readonly workgroupBytes: number;
}

/** One version of the kernel. */
export interface Version {
  readonly number: number;
  readonly name: string;
  /** Which file in `kernels/` it is. */
  readonly file: "attend" | "attend_tiles" | "attend_wide";
  readonly keysIn: KeysIn;
  /** It needs the feature `subgroups`, and workgroups that are one subgroup each. */
  readonly subgroups: boolean;
  /** Sizes that are good without having been measured on the very adapter. */
  readonly blocking: (setting: Setting) => Blocking;
}

/** The largest power of two that is at most `x`, but at least 1 and at most `most`. */
const power = (x: number, most: number): number =>
  Math.max(1, Math.min(2 ** Math.floor(Math.log2(x)), most));

/** All versions, slowest first on a software adapter; then that of GPUs, and that of the widest heads. */
export const ladder: ReadonlyArray<Version> = [
  {
    number: 1,
    name: "rows",
    file: "attend",
    keysIn: "buffer",
    subgroups: false,
    blocking: ({ vector }) => ({ rows: 1, keys: 1, lanes: vector }),
  },
  {
    number: 2,
    name: "registers",
    file: "attend",
    keysIn: "buffer",
    subgroups: false,
    blocking: ({ headDim, vector }) => ({ rows: power(256 / headDim, 4), keys: 4, lanes: vector }),
  },
  {
    number: 3,
    name: "textures",
    file: "attend",
    keysIn: "texture",
    subgroups: false,
    blocking: ({ headDim, vector }) => ({ rows: power(256 / headDim, 8), keys: 4, lanes: vector }),
  },
  {
    number: 4,
    name: "broadcast",
    file: "attend",
    keysIn: "texture",
    subgroups: true,
    blocking: ({ headDim, vector }) => ({
      rows: headDim <= 128 ? 4 : 2,
      keys: headDim <= 64 ? 8 : 4,
      lanes: vector,
    }),
  },
  {
    number: 5,
    name: "tiles",
    file: "attend_tiles",
    keysIn: "buffer",
    subgroups: false,
    blocking: ({ headDim, workgroupBytes }) => ({
      ...{ rows: 4, keys: 4 },
      lanes: headDim > 64 && workgroupBytes >= 32768 ? 256 : 128,
    }),
  },
  {
    number: 6,
    name: "wide",
    file: "attend_wide",
    keysIn: "buffer",
    subgroups: false,
    blocking: () => ({ rows: 1, keys: 1, lanes: 64 }),
  },
];

/** The largest head dimension of which an invocation holds a row. */
export const largestHeld = 256;
/** The largest head dimension that there is a version for. */
export const largestHeadDim = 1024;

/** The version of that name or number. */
export const versionNamed = (wanted: string | number): Version | undefined =>
  ladder.find(({ name, number }) => name === wanted || `${number}` === `${wanted}`);

const named = (names: ReadonlyArray<string>): ReadonlyArray<Version> =>
  names.map((name) => versionNamed(name)!);

/** Those that `auto` tries, best first. */
export const bestFirst = (software: boolean): ReadonlyArray<Version> =>
  named(software ? ["broadcast", "textures", "registers"] : ["tiles", "registers"]);

/** Rows times keys whose scores are worth holding at once: with more a program compiles for a minute. */
const mostScores = 64;

/** Components of its rows that an invocation holds: with more a program compiles for minutes. */
const mostComponents = 1024;

/** Rows that an invocation may have at a head dimension. */
export const mostRows = (headDim: number): number => Math.floor(mostComponents / headDim);

/** What a blocking must be, in words. */
export const blockingNeeded =
  `rows from 1 to 16, keys 1, 2, 4, 8 or 16, at most ${mostScores} of rows times keys, and lanes from 1 to 256`;

/** Whether a program can have these sizes, wherever they come from. */
export const isBlocking = (blocking: object): blocking is Blocking => {
  const { rows, keys, lanes } = blocking as Readonly<Record<string, unknown>>;
  const within = (x: unknown, most: number): x is number =>
    Number.isInteger(x) && (x as number) >= 1 && (x as number) <= most;
  return within(rows, 16) && within(keys, 16) && within(lanes, 256) && 16 % keys === 0 &&
    rows * keys <= mostScores;
};

/** What a person may measure to find the best: all that `auto` tries, the best of it in sizes around its own. */
export const candidates = (software: boolean, setting: Setting): ReadonlyArray<Choice> => {
  const [best, ...others] = bestFirst(software);
  const own = best!.blocking(setting);
  const around = (x: number, most: number) => [x / 2, x, 2 * x].filter((y) => y >= 1 && y <= most);
  const most = Math.min(8, mostRows(setting.headDim));
  const sizes = around(own.rows, most).flatMap((rows) =>
    around(own.keys, 16).flatMap((keys) =>
      // A subgroup has the size that it has.
      (best!.subgroups ? [own.lanes] : around(own.lanes, 256)).map((lanes) => ({
        rows,
        keys,
        lanes,
      }))
    )
  );
  return [
    ...sizes.filter(({ rows, keys }) => rows * keys <= mostScores)
      .map((blocking) => ({ version: best!, blocking })),
    ...others.map((version) => ({ version, blocking: version.blocking(setting) })),
  ];
};
