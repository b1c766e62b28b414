/**
 * What another process writes, line by line.
 *
 * @module
 */

/** Reads lines until the stream ends; `each` gets every one, of which what is longer than `longest` is cut off. */
export const eachLine = async (
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
  each: (line: string) => void,
  longest = Infinity,
): Promise<void> => {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop()!.slice(0, longest);
    for (const line of lines) each(line.slice(0, longest));
  }
  if (rest !== "") each(rest);
};
