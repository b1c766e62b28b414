/**
 * A heat map as PNG, for where SVG is not shown: cells, what is written in them, and the names of rows and columns, in
 * letters of five by seven dots. What the letters do not have is a box.
 *
 * @module
 */
import { cellHeight, cellWidth, colourOf, type HeatMap, left, top } from "./heat_map.ts";
import { pngOf } from "./png.ts";

/** Seven rows of five dots each, the leftmost of which is 16. */
const letters: Readonly<Record<string, ReadonlyArray<number>>> = {
  "0": [14, 17, 19, 21, 25, 17, 14],
  "1": [4, 12, 4, 4, 4, 4, 14],
  "2": [14, 17, 1, 2, 4, 8, 31],
  "3": [31, 2, 4, 2, 1, 17, 14],
  "4": [2, 6, 10, 18, 31, 2, 2],
  "5": [31, 16, 30, 1, 1, 17, 14],
  "6": [6, 8, 16, 30, 17, 17, 14],
  "7": [31, 1, 2, 4, 8, 8, 8],
  "8": [14, 17, 17, 14, 17, 17, 14],
  "9": [14, 17, 17, 15, 1, 2, 12],
  "/": [0, 1, 2, 4, 8, 16, 0],
  "\\": [0, 16, 8, 4, 2, 1, 0],
  "%": [24, 25, 2, 4, 8, 19, 3],
  ".": [0, 0, 0, 0, 0, 12, 12],
  " ": [0, 0, 0, 0, 0, 0, 0],
  "M": [17, 27, 21, 21, 17, 17, 17],
  "d": [1, 1, 13, 19, 17, 17, 15],
  "e": [0, 0, 14, 17, 31, 16, 14],
  "h": [16, 16, 22, 25, 17, 17, 17],
  "k": [16, 16, 18, 20, 24, 20, 18],
  "n": [0, 0, 22, 25, 17, 17, 17],
  "o": [0, 0, 14, 17, 17, 17, 14],
  "p": [0, 0, 30, 17, 30, 16, 16],
  "s": [0, 0, 14, 16, 14, 1, 30],
  "t": [8, 8, 28, 8, 8, 9, 6],
};
const unknown = [31, 17, 17, 17, 17, 17, 31];
/** Dots are squares of two pixels, and a letter has one dot beside it. */
const [dot, letterWidth, letterHeight] = [2, 12, 14];

/** Red, green and blue of hue, saturation and lightness, from 0 to 255. */
const rgbOf = ({ hue, saturation, lightness }: ReturnType<typeof colourOf>) => {
  const amount = saturation * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((offset) => {
    const k = (offset + hue / 30) % 12;
    return Math.round(255 * (lightness - amount * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
};

/** The picture. */
export const heatMapPng = (
  { columns, rows, across, down, cellOf }: HeatMap,
): Uint8Array<ArrayBuffer> => {
  const width = left + columns.length * cellWidth + 16;
  const height = top + rows.length * cellHeight + 16;
  const pixels = new Uint8Array(3 * width * height).fill(255);
  const fill = (x: number, y: number, w: number, h: number, colour: ReadonlyArray<number>) => {
    for (let row = y; row < y + h; row++) {
      for (let at = row * width + x; at < row * width + x + w; at++) pixels.set(colour, 3 * at);
    }
  };
  const write = (x: number, y: number, words: string) =>
    [...words].forEach((letter, i) =>
      (letters[letter] ?? unknown).forEach((dots, row) => {
        for (let column = 0; column < 5; column++) {
          if ((dots >> 4 - column & 1) === 0) continue;
          fill(x + i * letterWidth + column * dot, y + row * dot, dot, dot, [0, 0, 0]);
        }
      })
    );
  const widthOf = (words: string) => words.length * letterWidth - dot;
  const middle = (column: number, words: string) =>
    left + column * cellWidth + Math.floor((cellWidth - 2 - widthOf(words)) / 2);
  write(8, 12, `${down} \\ ${across}`);
  columns.forEach((name, column) => write(middle(column, name), top - letterHeight - 6, name));
  rows.forEach((name, row) => {
    const y = top + row * cellHeight;
    const line = y + (cellHeight - 2 - letterHeight) / 2;
    write(left - 8 - widthOf(name), line, name);
    columns.forEach((_, column) => {
      const { share, words } = cellOf(row, column);
      const colour = rgbOf(colourOf(share));
      fill(left + column * cellWidth, y, cellWidth - 2, cellHeight - 2, colour);
      write(middle(column, words), line, words);
    });
  });
  return pngOf(width, height, pixels);
};
