/**
 * `annulus attend` from its flags to its report.
 *
 * @module
 */
import { resolve } from "node:path";
import { Effect, Result } from "effect";
import { causal, window } from "../plugins/attention.ts";
import { attendFiles } from "./attend.ts";
import { type AttendArguments, placed } from "./attend_arguments.ts";
import { parseAttention } from "./attention.ts";
import { misuse } from "./command_line.ts";
import { linkOf } from "./link_choice.ts";
import { print, printJson } from "./output.ts";
import { knownPlugins } from "./plugins.ts";
import { reportInWords } from "./report.ts";
import type { SavedRun } from "./saved_run.ts";

/**
 * Runs `attend`, and prints its report.
 *
 * @param went How far an earlier run with these arguments went.
 */
export const runAttend = Effect.fn("runAttend")(
  function* (flags: AttendArguments, went?: SavedRun) {
    const link = yield* linkOf(flags);
    const files = [flags.input, flags.out, flags.trace, flags.checkpoint]
      .filter((file) => file !== undefined);
    if (files.includes("")) return yield* misuse("a file needs a name: found an empty one");
    const twice = files.find((file, i) =>
      files.slice(0, i).map((f) => resolve(f)).includes(resolve(file))
    );
    if (twice !== undefined) {
      return yield* misuse(
        `IN, --out, --trace and --checkpoint must be different files: found "${twice}" twice`,
      );
    }
    if (flags.checkpointEvery !== undefined && flags.checkpoint === undefined) {
      return yield* misuse("--checkpoint-every needs --checkpoint, a folder to keep them in");
    }
    const weights = flags.weights?.split(",").map((text) =>
      text.trim() === "" ? NaN : Number(text)
    );
    if (weights?.some((weight) => !(weight >= 0 && weight < Infinity)) === true) {
      return yield* misuse(
        `--weights needs numbers with commas between them: found "${flags.weights}"`,
      );
    }
    const known = yield* knownPlugins(flags.plugin, flags.device);
    const named = flags.attention.map((text) => parseAttention(text, known.attentions));
    const odd = named.find(Result.isFailure);
    if (odd !== undefined) return yield* misuse(odd.failure);
    const always = [
      ...(flags.causal ? [causal()] : []),
      ...(flags.window === undefined ? [] : [window({ size: flags.window })]),
    ];
    const attentions = named.filter(Result.isSuccess).map(({ success }) => [...always, ...success]);
    const report = yield* attendFiles({
      ...flags,
      // What was not given is not there at all where it was read from a file.
      ...{ nats: flags.nats, tls: flags.tls, cluster: flags.cluster },
      ...{ wire: flags.wire, trace: flags.trace, record: flags.record },
      devices: known.devices,
      attentions: attentions.length === 0 ? [always] : attentions,
      layout: flags.layout === "auto" ? undefined : flags.layout,
      weights,
      ring: flags.ring ?? weights?.length,
      verifyRows: flags.verifyRows ?? (flags.verify ? 256 : 0),
      link,
      progress: !flags.json,
      keep: flags.checkpoint === undefined
        ? undefined
        : { folder: flags.checkpoint, every: flags.checkpointEvery, args: placed(flags), went },
    });
    if (flags.json) return yield* printJson(report);
    for (const line of reportInWords(report)) yield* print(line);
  },
);
