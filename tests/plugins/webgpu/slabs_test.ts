import fc from "fast-check";
import assert from "node:assert/strict";
import { turnsOf } from "../../../plugins/webgpu/slabs.ts";
import { unbounded } from "../../../runtime/mask.ts";
import { contiguous } from "../../../runtime/span.ts";

const size = fc.integer({ min: 1, max: 5000 });

Deno.test("every row meets every workgroup of keys once, and in a dispatch no two workgroups", () =>
  fc.assert(
    fc.property(
      fc.record({
        rows: size,
        keys: size,
        pairs: fc.integer({ min: 1, max: 9 }),
        sharing: fc.constantFrom(1, 2, 8),
        group: fc.constantFrom(16, 64, 100),
        mostPairs: fc.integer({ min: 1, max: 10 }),
        workgroups: fc.integer({ min: 1, max: 20 }),
      }),
      ({ rows, keys, ...setting }) => {
        const part = {
          rows: { from: 0, count: rows },
          ...{ row: 0, querySpan: contiguous(0, rows) },
          ...{ column: 0, keySpan: contiguous(0, keys) },
          ...{ band: { back: unbounded, ahead: unbounded }, pairwise: false },
        };
        const groups = Math.ceil(keys / setting.group);
        // By pair of batch entry and key head, workgroup of keys, and row.
        const met = new Uint8Array(setting.pairs * groups * rows);
        for (const { part: cut, first, count, rowQuads, width, turn } of turnsOf(part, setting)) {
          assert.ok(count <= setting.mostPairs);
          assert.equal(cut.column % setting.group, 0);
          const here = width / setting.group;
          const busy = new Uint8Array(rows);
          for (let taken = 0; taken < here; taken++) {
            // As `attend_backward_keys.wgsl` has it.
            const begin = (taken + turn) % here * rowQuads * 4;
            const end = Math.min(begin + rowQuads * 4, cut.querySpan.count);
            for (let i = cut.row + begin; i < cut.row + end; i++) {
              busy[i]!++;
              for (let pair = first; pair < first + count; pair++) {
                met[(pair * groups + cut.column / setting.group + taken) * rows + i]!++;
              }
            }
          }
          assert.ok(busy.every((workgroups) => workgroups <= 1), "two workgroups at one row");
        }
        assert.ok(met.every((times) => times === 1), "not once");
      },
    ),
    { numRuns: 50 },
  ));
