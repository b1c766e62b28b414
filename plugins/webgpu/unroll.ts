/**
 * Completes WGSL that is written for any sizes. WGSL keeps arrays in registers only where every index is a constant,
 * so that a kernel names each element, and its text repeats with them.
 *
 * | in the text                                  | becomes                                                      |
 * | `//@ for $x < N` … `//@ end`                 | the lines between, for x = 0 … N − 1, with `$x` the number   |
 * | `//@ if N` … `//@ else` … `//@ end`          | the first lines where N is not 0, else those after `else`    |
 * | `$[a / N]`, `$[a % N]`                       | the quotient, rounded down, or the rest                      |
 *
 * @module
 */

/** What the names in a text stand for. */
export type Numbers = Readonly<Record<string, number>>;

/** Where the block that begins at line `begin` has its `else`, if it has one, and its end. */
const extent = (lines: ReadonlyArray<string>, begin: number): readonly [number, number] => {
  let otherwise = -1;
  for (let i = begin + 1, depth = 1; i < lines.length; i++) {
    const line = lines[i]!.trim();
    if (/^\/\/@ (for|if) /.test(line)) depth++;
    if (line === "//@ else" && depth === 1) otherwise = i;
    if (line === "//@ end" && --depth === 0) return [otherwise, i];
  }
  throw new Error(`line ${begin + 1} opens a block that nothing ends: ${lines[begin]}`);
};

const expand = (lines: ReadonlyArray<string>, valueOf: (name: string) => number): Array<string> => {
  const expanded: Array<string> = [];
  for (let i = 0; i < lines.length; i++) {
    const [, loop, variable, name] = /^\s*\/\/@ (?:(for) (\$\w) < |if )(\w+)$/.exec(lines[i]!) ??
      [];
    if (name === undefined) {
      expanded.push(lines[i]!);
      continue;
    }
    const [otherwise, end] = extent(lines, i);
    const value = valueOf(name);
    if (loop === undefined) {
      const [from, to] = value !== 0
        ? [i + 1, otherwise < 0 ? end : otherwise]
        : [otherwise < 0 ? end : otherwise + 1, end];
      expanded.push(...expand(lines.slice(from, to), valueOf));
    } else {
      const body = lines.slice(i + 1, end);
      for (let x = 0; x < value; x++) {
        expanded.push(...expand(body.map((line) => line.replaceAll(variable!, `${x}`)), valueOf));
      }
    }
    i = end;
  }
  return expanded;
};

/** The text with its blocks repeated or chosen and its numbers computed. Throws where a name is not known. */
export const unroll = (text: string, numbers: Numbers): string => {
  const valueOf = (name: string): number => {
    const value = numbers[name];
    if (value === undefined) throw new Error(`nothing says how much ${name} is`);
    return value;
  };
  return expand(text.split("\n"), valueOf).join("\n").replace(
    /\$\[(\d+) ([/%]) (\w+)\]/g,
    (_, a, operator, name) =>
      `${operator === "/" ? Math.floor(Number(a) / valueOf(name)) : Number(a) % valueOf(name)}`,
  );
};
