/**
 * `annulus needle`: is what is hidden in a long text found again, at every length and depth?
 *
 * @module
 */
import { join } from "node:path";
import { Effect } from "effect";
import { Continuation } from "../plugins/models/continuation.ts";
import { mustBeKnown } from "../plugins/models/prompt.ts";
import { greedy } from "../plugins/models/sampler.ts";
import { openTokenizer, type TextTokens } from "../plugins/models/tokenizer.ts";
import { FileInvalid, InvalidProblem } from "../runtime/errors.ts";
import type { Session } from "../runtime/session.ts";
import { version } from "../runtime/version.ts";
import { misuse } from "./command_line.ts";
import { hide, type Needle, needlesFor } from "./haystack.ts";
import { type HeatMap, heatMapSvg } from "./heat_map.ts";
import { heatMapPng } from "./heat_map_png.ts";
import { type ModelFlags, runModel } from "./model_run.ts";
import { draw, note, print, printJson, sizeInWords } from "./output.ts";
import { speeches, textsOf } from "./texts.ts";

/** All that `needle` can be told. */
export interface NeedleFlags extends ModelFlags {
  readonly lengths: string;
  readonly depths: string;
  readonly seeds: number;
  readonly needles: number;
  readonly haystack: ReadonlyArray<string>;
  /** Tokens that every layer sees at most, for comparison. */
  readonly window: number | undefined;
  readonly out: string;
}

/** One text with needles in it. */
export interface NeedleCell {
  readonly length: number;
  /** Per cent. */
  readonly depth: number;
  readonly seed: number;
  readonly found: number;
  readonly needles: number;
  readonly answers: ReadonlyArray<string>;
  readonly seconds: number;
}

/** `4k`, `1m` and plain numbers; 1,024 and its square. */
const lengthOf = (text: string): number => {
  const [, digits, unit] = /^(\d+)([km]?)$/i.exec(text.trim()) ?? [];
  return Number(digits) * { "": 1, k: 2 ** 10, m: 2 ** 20 }[unit?.toLowerCase() ?? ""]!;
};

/** `0..100/10`, or numbers with commas between them. */
const depthsOf = (text: string): ReadonlyArray<number> => {
  const [, first, last, step] = /^(\d+)\.\.(\d+)\/(\d+)$/.exec(text.trim()) ?? [];
  if (step === undefined) return text.split(",").map(Number);
  const count = Math.floor((Number(last) - Number(first)) / Number(step)) + 1;
  return Array.from({ length: Math.max(0, count) }, (_, i) => Number(first) + i * Number(step));
};

const lengthInWords = (length: number): string =>
  length % 2 ** 20 === 0
    ? `${length / 2 ** 20}M`
    : length % 2 ** 10 === 0
    ? `${length / 2 ** 10}k`
    : String(length);

const hayOf = (paths: ReadonlyArray<string>) => paths.length === 0 ? speeches : textsOf(paths);

/** Asks for each needle in turn, in one sequence. */
const ask = Effect.fnUntraced(function* (
  session: Session,
  tokens: TextTokens,
  text: ReadonlyArray<number>,
  needles: ReadonlyArray<Needle>,
) {
  const answers: Array<string> = [];
  let next = text;
  for (const { question, answer } of needles) {
    const prompt = tokens.encode(question, false);
    const most = tokens.encode(answer, false).length;
    const limits = { most, ends: new Set<number>(), stops: [] };
    const continuation = new Continuation({ prompt, sampling: greedy, limits }, tokens);
    let said = "";
    next = [...next, ...prompt];
    for (let i = 0; i < most; i++) {
      const [logits] = yield* session.extend([{ sequence: 0, ids: next }]);
      const piece = continuation.next(logits!);
      said += piece.text;
      // The last token of an answer is chosen and not yet read.
      next = [piece.id];
    }
    answers.push(said);
  }
  session.drop(0);
  return answers;
});

/** Runs all cells and writes `needle.json`, and the heat map as `needle.svg` and `needle.png`. */
export const runNeedle = Effect.fn("runNeedle")(function* (flags: NeedleFlags) {
  const lengths = flags.lengths.split(",").map(lengthOf);
  const depths = depthsOf(flags.depths);
  if (lengths.some((length) => !(length > 0))) {
    return yield* misuse(`--lengths needs numbers like 4k,64k,1m: found "${flags.lengths}"`);
  }
  if (depths.length === 0 || depths.some((depth) => !(depth >= 0 && depth <= 100))) {
    return yield* misuse(`--depths needs per cents like 0..100/10: found "${flags.depths}"`);
  }
  const { folder, open } = yield* runModel(flags);
  const tokens = yield* openTokenizer(folder.folder);
  const longest = Math.max(...lengths);
  if (longest > folder.model.longest) {
    return yield* new InvalidProblem({
      what: "the longest text",
      needed: `at most the ${folder.model.longest} tokens that the model was made for`,
      found: String(longest),
    });
  }
  const hay: Array<number> = [];
  for (const { text } of yield* hayOf(flags.haystack)) {
    if (hay.length >= longest) break;
    for (const id of tokens.encode(text, false)) hay.push(id);
  }
  yield* mustBeKnown(hay, folder.model.vocabulary);
  const [needle] = needlesFor(0, 1);
  const least = 2 * flags.needles * tokens.encode(needle!.text, false).length;
  if (Math.min(...lengths) < 2 * least) {
    return yield* new InvalidProblem({
      what: "the shortest text",
      needed: `at least ${2 * least} tokens, or its needles are all there is`,
      found: String(Math.min(...lengths)),
    });
  }
  if (hay.length < longest) {
    return yield* new InvalidProblem({
      what: "the haystack",
      needed: `at least ${longest} tokens`,
      found: String(hay.length),
    });
  }
  yield* Effect.tryPromise({
    try: () => Deno.mkdir(flags.out, { recursive: true }),
    catch: (cause) =>
      new FileInvalid({
        ...{ attempted: "make", file: flags.out, needed: "a folder for the results" },
        found: String(cause),
      }),
  });
  const { crew, session } = yield* open(longest);
  const breaks = new Set([".", "\n"].flatMap((end) => tokens.encode(end, false).slice(-1)));
  const terminal = Deno.stderr.isTerminal() && !flags.json;
  const cells: Array<NeedleCell> = [];
  const all = lengths.length * depths.length * flags.seeds;
  for (const length of lengths) {
    for (const depth of depths) {
      for (let seed = 0; seed < flags.seeds; seed++) {
        const began = performance.now();
        const needles = needlesFor(seed * 1000 + depth, flags.needles);
        const question = Math.max(
          ...needles.map(({ question, answer }) =>
            tokens.encode(question, false).length + tokens.encode(answer, false).length
          ),
        );
        // Questions and answers are part of the length.
        const text = hide(
          hay,
          length - flags.needles * (question + 1),
          needles.map(({ text }, i) => ({
            ids: tokens.encode(text, false),
            depth: (depth / 100 + i / flags.needles) % (1 + 1e-9),
          })),
          (id) => breaks.has(id),
        );
        const answers = yield* ask(session, tokens, text, needles);
        const found = answers.filter((answer, i) => answer.trim() === needles[i]!.answer).length;
        const seconds = (performance.now() - began) / 1000;
        cells.push({ length, depth, seed, found, needles: flags.needles, answers, seconds });
        const said = `${cells.length} of ${all}: ${lengthInWords(length)} at ${depth} %: ` +
          `${found} of ${flags.needles} found, ${seconds.toFixed(1)} s`;
        yield* terminal ? draw(`\x1b[2K\r${said}`) : flags.json ? Effect.void : note(said);
      }
    }
  }
  if (terminal) yield* draw("\x1b[2K\r");
  const of = (length: number, depth: number) => {
    const here = cells.filter((cell) => cell.length === length && cell.depth === depth);
    const sum = (key: "found" | "needles") => here.reduce((sum, cell) => sum + cell[key], 0);
    return { found: sum("found"), needles: sum("needles") };
  };
  const total = cells.reduce((sum, { found }) => sum + found, 0);
  const report = {
    annulus: version,
    model: { folder: folder.folder, hash: folder.hash },
    devices: crew.equipment.devices.map(({ name, backend }) => `${name} (${backend})`),
    ...(flags.window === undefined ? {} : { window: flags.window }),
    ...{ ring: crew.ring, lengths, depths, seeds: flags.seeds, needles: flags.needles },
    share: total / (all * flags.needles),
    cells,
  };
  const map: HeatMap = {
    title: `Needles found, ${flags.seeds} seeds × ${flags.needles} a cell${
      flags.window === undefined ? "" : `, with a window of ${flags.window} in every layer`
    }`,
    columns: lengths.map(lengthInWords),
    rows: depths.map((depth) => `${depth} %`),
    across: "tokens",
    down: "depth",
    cellOf: (row, column) => {
      const { found, needles } = of(lengths[column]!, depths[row]!);
      return { share: found / needles, words: `${found}/${needles}` };
    },
  };
  yield* Effect.promise(async () => {
    await Deno.writeTextFile(
      join(flags.out, "needle.json"),
      `${JSON.stringify(report, null, 2)}\n`,
    );
    await Deno.writeTextFile(join(flags.out, "needle.svg"), heatMapSvg(map));
    await Deno.writeFile(join(flags.out, "needle.png"), heatMapPng(map));
  });
  if (flags.json) return yield* printJson(report);
  yield* print(
    `${total} of ${all * flags.needles} needles found (${
      (100 * report.share).toFixed(1)
    } %), ${crew.ring} ranks, process of ${
      sizeInWords(Deno.memoryUsage().rss)
    }; see ${flags.out}/needle.svg and needle.png`,
  );
}, Effect.scoped);
