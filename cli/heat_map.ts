/**
 * A heat map: one cell for each row and column, with its value in words. Here as SVG.
 *
 * @module
 */

/** A cell. */
export interface Cell {
  /** From 0, which is bad, to 1. */
  readonly share: number;
  /** Written in it. */
  readonly words: string;
}

/** What is to be seen. */
export interface HeatMap {
  readonly title: string;
  readonly columns: ReadonlyArray<string>;
  readonly rows: ReadonlyArray<string>;
  /** What columns and rows are. */
  readonly across: string;
  readonly down: string;
  readonly cellOf: (row: number, column: number) => Cell;
}

/** Pixels of a cell, and what is beside and above all of them. */
export const [cellWidth, cellHeight, left, top] = [84, 30, 90, 64] as const;

const escaped = (text: string): string => text.replace(/[&<>"]/g, (c) => `&#${c.codePointAt(0)};`);

/** From red over yellow to green, in steps that differ in lightness as well. */
export const colourOf = (share: number) => ({
  hue: Math.round(120 * share),
  saturation: 0.65,
  lightness: 0.4 + 0.35 * share,
});

/** The picture. */
export const heatMapSvg = ({ title, columns, rows, across, down, cellOf }: HeatMap): string => {
  const width = left + columns.length * cellWidth + 16;
  const height = top + rows.length * cellHeight + 16;
  const text = (x: number, y: number, words: string, rest = "") =>
    `<text x="${x}" y="${y}"${rest}>${escaped(words)}</text>`;
  const middle = ' text-anchor="middle"';
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" ` +
    'font-family="sans-serif" font-size="12">',
    `<rect width="${width}" height="${height}" fill="white"/>`,
    text(8, 18, title, ' font-weight="bold"'),
    text(8, 40, `${down} \\ ${across}`),
    ...columns.map((name, i) => text(left + (i + 0.5) * cellWidth, top - 8, name, middle)),
    ...rows.flatMap((name, row) => [
      text(left - 8, top + (row + 0.65) * cellHeight, name, ' text-anchor="end"'),
      ...columns.flatMap((_, column) => {
        const { share, words } = cellOf(row, column);
        const { hue, saturation, lightness } = colourOf(share);
        const [x, y] = [left + column * cellWidth, top + row * cellHeight];
        return [
          `<rect x="${x}" y="${y}" width="${cellWidth - 2}" height="${cellHeight - 2}" ` +
          `fill="hsl(${hue} ${100 * saturation}% ${100 * lightness}%)"/>`,
          text(x + cellWidth / 2, y + 0.65 * cellHeight, words, middle),
        ];
      }),
    ]),
    "</svg>\n",
  ].join("\n");
};
