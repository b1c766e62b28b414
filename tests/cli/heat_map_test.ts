/** Heat maps say in every cell what was counted, as SVG and as PNG. */
import assert from "node:assert/strict";
import { crc32, inflateSync } from "node:zlib";
import { type HeatMap, heatMapSvg } from "../../cli/heat_map.ts";
import { heatMapPng } from "../../cli/heat_map_png.ts";

const counts = [[4, 0, 1], [2, 3, 4]];
const map: HeatMap = {
  title: "Found, 4 < 5",
  columns: ["700", "64k", "1M"],
  rows: ["0 %", "100 %"],
  across: "tokens",
  down: "depth",
  cellOf: (row, column) => ({
    share: counts[row]![column]! / 4,
    words: `${counts[row]![column]}/4`,
  }),
};

Deno.test("an SVG has the count of every cell", () => {
  const svg = heatMapSvg(map);
  for (const count of counts.flat()) assert.ok(svg.includes(`>${count}/4</text>`));
  assert.match(svg, />Found, 4 &#60; 5<\/text>/);
  assert.equal(svg.match(/fill="hsl\(120 65% 75%\)"/g)?.length, 2);
});

/** The pixels of a PNG of eight bits in three colours and one piece, whose checksums are right. */
const pixelsOf = (png: Uint8Array) => {
  const view = new DataView(png.buffer);
  assert.deepEqual([...png.subarray(0, 8)], [137, 80, 78, 71, 13, 10, 26, 10]);
  const chunks = new Map<string, Uint8Array>();
  for (let at = 8; at < png.length;) {
    const length = view.getUint32(at);
    const end = at + 8 + length;
    assert.equal(view.getUint32(end), crc32(png.subarray(at + 4, end)));
    chunks.set(new TextDecoder().decode(png.subarray(at + 4, at + 8)), png.subarray(at + 8, end));
    at = end + 4;
  }
  assert.deepEqual([...chunks.keys()], ["IHDR", "IDAT", "IEND"]);
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  assert.deepEqual([...png.subarray(24, 29)], [8, 2, 0, 0, 0]);
  const rows = inflateSync(chunks.get("IDAT")!);
  assert.equal(rows.length, height * (1 + 3 * width));
  return (x: number, y: number) => {
    const at = y * (1 + 3 * width);
    assert.equal(rows[at], 0);
    return rows.subarray(at + 1 + 3 * x, at + 4 + 3 * x).join();
  };
};

Deno.test("a PNG has the same colours, and the counts in dots", () => {
  const pixel = pixelsOf(heatMapPng(map));
  // hsl(120 65% 75%), hsl(0 65% 40%), and what is between cells.
  assert.equal(pixel(92, 66), "150,233,150");
  assert.equal(pixel(92 + 84, 66), "168,36,36");
  assert.equal(pixel(90 + 83, 66), "255,255,255");
  const dark = (left: number, top: number) => {
    const rows: Array<string> = [];
    for (let y = top; y < top + 14; y += 2) {
      let row = "";
      for (let x = left; x < left + 34; x += 2) row += pixel(x, y) === "0,0,0" ? "#" : ".";
      rows.push(row);
    }
    return rows;
  };
  assert.deepEqual(dark(90 + 24, 64 + 7), [
    "...#...........#.",
    "..##......#...##.",
    ".#.#.....#...#.#.",
    "#..#....#...#..#.",
    "#####..#....#####",
    "...#..#........#.",
    "...#...........#.",
  ]);
});
