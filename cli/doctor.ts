/**
 * `annulus doctor`: what this machine has, and one fix for each thing that is missing.
 *
 * @module
 */
import { Context, Effect, Layer } from "effect";
import { dialNats } from "../plugins/nats_connection.ts";
import { startNatsServer } from "../plugins/nats_server.ts";
import { libraryName, libraryPackage } from "../plugins/cpu/blas.ts";
import { Device } from "../runtime/device.ts";
import { findLibrary } from "../runtime/library.ts";
import { version } from "../runtime/version.ts";
import { type AccessFlags, accessOf } from "./access.ts";
import { nodePermissions } from "./children.ts";
import { devices } from "./devices.ts";
import { print, printJson, sizeInWords } from "./output.ts";
import { findNatsServer, findProgram, hasVulkanDriver } from "./system.ts";

/** All that `doctor` can be told. */
export interface DoctorFlags extends AccessFlags {
  readonly nats: string | undefined;
  readonly json: boolean;
}

interface Finding {
  readonly check: string;
  readonly ok: boolean;
  readonly found: string;
  readonly fix?: string;
}

const deviceFinding = (plugin: typeof devices[number]): Effect.Effect<Finding> =>
  Effect.scoped(Effect.gen(function* () {
    const { info } = Context.get(yield* Layer.build(plugin.layer), Device);
    const kind = info.software ? "software on the CPU, not a GPU" : "hardware";
    const passes = info.gradients ? "attention and gradients" : "attention, no gradients";
    const features = info.features.length === 0 ? "no optional features" : info.features.join(" ");
    const sizes = `memory ${sizeInWords(info.memory)}, largest tensor ` +
      sizeInWords(info.largestTensor);
    return {
      check: `device ${plugin.name}`,
      ok: true,
      found: [info.backend, kind, passes, features, sizes, ...info.notes ?? []].join("; "),
    };
  })).pipe(
    Effect.catch((error) =>
      Effect.succeed({
        check: `device ${plugin.name}`,
        ok: false,
        found: error.found,
        fix: `provide ${error.needed}`,
      })
    ),
  );

const serverFinding = ({ nats: url, ...access }: DoctorFlags): Effect.Effect<Finding> =>
  Effect.scoped(Effect.gen(function* () {
    const given = yield* accessOf(access);
    const connection = yield* dialNats(url ?? (yield* startNatsServer()).url, given);
    const info = connection.info!;
    return {
      check: url === undefined ? "NATS server" : `NATS server ${url}`,
      ok: true,
      found: `nats-server ${info.version}, max_payload ${sizeInWords(info.max_payload)}` +
        (url === undefined ? `, started from ${findNatsServer()} and stopped again` : "") +
        (given.identity === undefined
          ? ""
          : `; it knows "${given.identity.name}", whose certificate lasts until ` +
            given.identity.expires.toISOString().slice(0, 10)),
    };
  })).pipe(
    Effect.catch((error) =>
      Effect.succeed({
        check: url === undefined ? "NATS server" : `NATS server ${url}`,
        ok: false,
        found: error.message,
        fix: url === undefined
          ? "run `deno task setup`, or use --link memory"
          : "start it, or leave --nats out to have one started for the run",
      })
    ),
  );

const libraryFindings = (): ReadonlyArray<Finding> => {
  if (Deno.build.os !== "linux") return [];
  const library = (check: string, name: string, packages: string): Finding => {
    const found = findLibrary(name);
    return {
      check,
      ok: found !== undefined,
      found: found ?? `no ${name}`,
      ...(found === undefined ? { fix: `sudo apt-get install -y ${packages}` } : {}),
    };
  };
  const program = (name: string, packages: string): Finding => {
    const found = findProgram(name);
    return {
      check: name,
      ok: found !== undefined,
      found: found ?? "no program, so that `annulus certs` makes no certificates",
      ...(found === undefined ? { fix: `sudo apt-get install -y ${packages}` } : {}),
    };
  };
  return [
    library("Vulkan loader", "libvulkan.so.1", "libvulkan1"),
    hasVulkanDriver() ? { check: "Vulkan driver", ok: true, found: "a driver manifest" } : {
      check: "Vulkan driver",
      ok: false,
      found: "no driver manifest",
      fix:
        "install your GPU's driver, or for software: sudo apt-get install -y mesa-vulkan-drivers",
    },
    library("OpenBLAS", libraryName, libraryPackage),
    program("openssl", "openssl"),
  ];
};

/** Looks at everything and says what it found; true where nothing is missing. */
export const runDoctor = Effect.fn("runDoctor")(function* (flags: DoctorFlags) {
  const found: ReadonlyArray<Finding> = [
    {
      check: "annulus",
      ok: true,
      found: `${version} on Deno ${Deno.version.deno}, ${Deno.build.target}`,
    },
    ...libraryFindings(),
    ...(yield* Effect.forEach(devices, deviceFinding)),
    yield* serverFinding(flags),
  ];
  const permissions = nodePermissions(
    "SERVER:PORT",
    "auto",
    flags.tls === undefined ? [] : [flags.tls],
  )
    .join(" ");
  if (flags.json) {
    yield* printJson({ version, findings: found, node_permissions: permissions });
  } else {
    for (const { check, ok, found: text, fix } of found) {
      yield* print(
        `${ok ? "✓" : "✗"} ${check}: ${text}${fix === undefined ? "" : `\n    fix: ${fix}`}`,
      );
    }
    yield* print(`  a node needs no more than: ${permissions}`);
  }
  return found.every(({ ok }) => ok);
});
