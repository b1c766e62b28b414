/**
 * What a module's text imports. Comments and strings that speak of imports are none.
 *
 * @module
 */

const strings = String.raw`"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'`;
const templates = "`(?:\\\\.|[^`\\\\])*`";
const commentsAndStrings = new RegExp(
  String.raw`(${strings}|${templates})|/\*.*?\*/|//[^\n]*`,
  "gs",
);
const importsAndStrings = new RegExp(
  String.raw`(?<![\w$.])(?:(import)\s*\(|(?:from|import)\s*(${strings}))|${strings}|${templates}`,
  "gs",
);

/** Specifiers, and `import()` for whatever is imported while the module runs. */
export const importsOf = (text: string): ReadonlyArray<string> => {
  const code = text.replaceAll(commentsAndStrings, (_, string: string = " ") => string);
  return [...code.matchAll(importsAndStrings)].flatMap(([, dynamic, specifier]) =>
    dynamic !== undefined ? ["import()"] : specifier !== undefined ? [specifier.slice(1, -1)] : []
  );
};
