/** The link bench in small: its rows, that all of them are exact, and that one which is not is found out. */
import assert from "node:assert/strict";
import { Effect } from "effect";
import { linkFaults, linkMarkdown, measureLink } from "../../bench/link.ts";
import { noNatsServer } from "../support/nats.ts";

Deno.test({
  name: "a table has bare messages, and links in fair weather, in bad, and over servers that fail" +
    (noNatsServer ? " (not here: nats-server is not installed)" : ""),
  ignore: noNatsServer,
  fn: async () => {
    const table = await Effect.runPromise(measureLink({
      ...{ mebibytes: 8, rounds: 1, away: 0.05, frozen: 0.05 },
      progress: () => Effect.void,
      exclusively: (work) => work,
    }));
    assert.deepEqual(table.rows.map(({ name }) => name), [
      "bare publish and subscribe",
      "clean",
      "1 % lost, 5 % doubled, 5 % overtaken, 1 % damaged",
      "10 % lost, 10 % doubled, 20 % overtaken, 5 % damaged",
      "server killed three times, away for 0.05 s",
      "server frozen for 0.05 s",
    ]);
    assert.deepEqual(linkFaults(table), []);
    for (const { name, samples: [sample] } of table.rows) {
      assert.ok(sample!.seconds > 0 && sample!.ofBare > 0, name);
      assert.ok(linkMarkdown(table).includes(name), name);
    }
    const [bare, clean, ...others] = table.rows;
    const wrong = { ...table, rows: [bare!, { ...clean!, exact: false }, ...others] };
    assert.deepEqual(linkFaults(wrong), ['"clean" was not exact']);
  },
});
