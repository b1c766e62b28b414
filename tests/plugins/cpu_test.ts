import { Effect } from "effect";
import assert from "node:assert/strict";
import { cpu, cpuWith } from "../../plugins/cpu.ts";
import { libraryName } from "../../plugins/cpu/blas.ts";
import { Device } from "../../runtime/device.ts";
import { findLibrary } from "../../runtime/library.ts";
import { testDevice } from "../contract/device.ts";

const library = findLibrary(libraryName);
const missing = `there is no ${libraryName}`;
const bound = { o: 2e-6, lse: 1e-5 };
const ignored = library === undefined ? { ignore: missing } : {};

testDevice(cpu, { bound, ...ignored });

/** A test that needs the library. */
const withLibrary = (name: string, test: Effect.Effect<void, unknown>): void =>
  Deno.test({
    name: library === undefined ? `${name} (not here: ${missing})` : name,
    ignore: library === undefined,
    fn: () => Effect.runPromise(test),
  });

const infoOf = (plugin: typeof cpu) =>
  Device.use(({ info }) => Effect.succeed(info)).pipe(Effect.provide(plugin.layer));

withLibrary(
  "the device says which library computes, for which processor, on how many threads",
  Effect.gen(function* () {
    const info = yield* infoOf(cpuWith({ threads: 3 }));
    assert.equal(info.name, "cpu");
    assert.match(info.backend, /^OpenBLAS \d+\.\d+\.\d+ for \w+, 3 threads$/);
    assert.equal(info.software, true);
    assert.equal(yield* cpu.score, 50);
  }),
);

Deno.test("without the library the device says what to install", () =>
  Effect.gen(function* () {
    const elsewhere = cpuWith({ library: "/nonexistent/libopenblas.so.0" });
    assert.equal(yield* elsewhere.score, 0);
    const error = yield* Effect.flip(infoOf(elsewhere));
    assert.equal(error._tag, "DeviceUnavailable");
    assert.match(
      error.message,
      /^Cannot use device "cpu": it needs libopenblas.so.0 \(Debian: libopenblas0-pthread\): found .*nonexistent/,
    );
  }).pipe(Effect.runPromise));
