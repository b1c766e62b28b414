/**
 * The process in which `annulus plugin check` loads a file and looks at it. It says what it found behind the key that it
 * reads from standard input, which is before the file is there that could read it too.
 *
 * @module
 */
import { Effect, Result, Schema } from "effect";
import { DeviceUnavailable, FileInvalid, VariantInvalid } from "../runtime/errors.ts";
import { devices } from "./devices.ts";
import { checkAttention } from "./plugin_check.ts";

/** What was found, or why nobody could look. */
export const Verdict = Schema.fromJsonString(Schema.Union([
  Schema.Struct({
    name: Schema.String,
    checks: Schema.Array(Schema.Struct({
      name: Schema.String,
      complaint: Schema.optionalKey(Schema.String),
      skipped: Schema.optionalKey(Schema.String),
    })),
  }),
  Schema.Struct({ refused: Schema.Union([DeviceUnavailable, FileInvalid, VariantInvalid]) }),
]));

if (import.meta.main) {
  const key = (await new Response(Deno.stdin.readable).text()).trim();
  const [file, ...names] = Deno.args;
  const wanted = devices.filter(({ name }) => names.includes(name));
  const found = await Effect.runPromise(Effect.result(checkAttention(file!, wanted)));
  const verdict = Schema.encodeSync(Verdict)(
    Result.isSuccess(found) ? found.success : { refused: found.failure },
  );
  // The file may have printed a line without its end.
  const line = new TextEncoder().encode(`\n${key}${verdict}\n`);
  await Deno.stdout.writable.getWriter().write(line);
}
