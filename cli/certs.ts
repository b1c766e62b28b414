/**
 * `annulus certs`: certificates for a server, a driver and nodes, each in a folder that is all that its machine needs,
 * and the server's configuration.
 *
 * @module
 */
import { isIP } from "node:net";
import { join } from "node:path";
import { Effect } from "effect";
import { identityFiles } from "../plugins/nats_identity.ts";
import { natsProfile } from "../plugins/nats_profile.ts";
import { driverName } from "../plugins/nats_roster.ts";
import { FileInvalid } from "../runtime/errors.ts";
import { print } from "./output.ts";

/** All that `certs` can be told. */
export interface CertsFlags {
  readonly dir: string;
  readonly nodes: number;
  /** Names and addresses at which members reach the server. */
  readonly host: ReadonlyArray<string>;
  readonly cluster: string;
}

const days = "365";

const invalid = (file: string, needed: string, found: string) =>
  new FileInvalid({ attempted: "make certificates in", file, needed, found });

/** The whole of openssl's configuration, so that none of the system's extends a certificate. */
const config = "[req]\ndistinguished_name = dn\n[dn]\n";

/** Makes a key, which only its owner may read, and its certificate. */
const certificate = (
  folder: string,
  name: string,
  extensions: ReadonlyArray<string>,
  authority?: string,
): Effect.Effect<void, FileInvalid> =>
  Effect.tryPromise({
    try: async () => {
      await Deno.mkdir(folder, { recursive: true, mode: 0o700 });
      const child = new Deno.Command("openssl", {
        args: [
          ...["req", "-config", "/dev/stdin", "-new", "-x509", "-days", days, "-batch", "-noenc"],
          ...["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", `/CN=${name}`],
          ...["-keyout", join(folder, identityFiles.key)],
          ...["-out", join(folder, identityFiles.cert)],
          ...extensions.flatMap((extension) => ["-addext", extension]),
          ...(authority === undefined ? [] : [
            ...["-CA", join(authority, identityFiles.cert)],
            ...["-CAkey", join(authority, identityFiles.key)],
          ]),
        ],
        stdin: "piped",
        stdout: "null",
        stderr: "piped",
      }).spawn();
      const writer = child.stdin.getWriter();
      await writer.write(new TextEncoder().encode(config));
      await writer.close();
      const { success, stderr } = await child.output();
      if (!success) throw new Error(new TextDecoder().decode(stderr).trim());
      if (authority === undefined) return;
      await Deno.copyFile(join(authority, identityFiles.cert), join(folder, identityFiles.ca));
    },
    catch: (cause) =>
      invalid(
        folder,
        "it needs openssl 3 (`deno task setup` installs it)",
        (cause as Error).message,
      ),
  });

const leaf = (use: "serverAuth" | "clientAuth") => [
  "basicConstraints=critical,CA:FALSE",
  "keyUsage=critical,digitalSignature",
  `extendedKeyUsage=${use}`,
];

/** The names of a cluster's nodes. */
const nodeNames = (count: number) => Array.from({ length: count }, (_, i) => `node-${i}`);

/** Makes them all; touches nothing that is there. */
export const makeCertificates = Effect.fn("makeCertificates")(
  function* ({ dir, nodes, host, cluster }: CertsFlags): Effect.fn.Return<void, FileInvalid> {
    const odd = host.find((name) => isIP(name) === 0 && !/^[\w-]+(\.[\w-]+)*$/.test(name));
    if (odd !== undefined) {
      return yield* invalid(dir, "--host needs names and addresses", JSON.stringify(odd));
    }
    const names = nodeNames(nodes);
    const folders = ["ca", "server", driverName, ...names].map((name) => join(dir, name));
    const there = folders.find((folder) => {
      try {
        Deno.lstatSync(folder);
        return true;
      } catch {
        return false;
      }
    });
    if (there !== undefined) {
      return yield* invalid(dir, "nothing is overwritten", `"${there}" there`);
    }

    const hosts = new Set(["localhost", "127.0.0.1", "::1", ...host]);
    const reachable = [...hosts].map((name) => `${isIP(name) ? "IP" : "DNS"}:${name}`);
    yield* Effect.gen(function* () {
      const [ca, server] = folders as [string, string];
      yield* certificate(ca, "annulus", [
        "basicConstraints=critical,CA:TRUE,pathlen:0",
        "keyUsage=critical,keyCertSign,cRLSign",
      ]);
      const alternatives = `subjectAltName=${reachable.join(",")}`;
      yield* certificate(server, "server", [...leaf("serverAuth"), alternatives], ca);
      for (const name of [driverName, ...names]) {
        yield* certificate(join(dir, name), name, leaf("clientAuth"), ca);
      }
      const profile = natsProfile(cluster, names, host.length === 0 ? "127.0.0.1" : "0.0.0.0");
      yield* Effect.tryPromise({
        try: () => Deno.writeTextFile(join(server, "nats.conf"), profile),
        catch: (cause) => invalid(server, "it could not be written", (cause as Error).message),
      });
    }).pipe(
      // All or nothing: what is left would have to be removed by hand before the next try.
      Effect.onError(() =>
        Effect.promise(async () => {
          for (const folder of folders) {
            await Deno.remove(folder, { recursive: true }).catch(() => {});
          }
        })
      ),
    );
  },
);

/** Makes them and says which commands use them. */
export const runCerts = Effect.fn("runCerts")(function* (flags: CertsFlags) {
  yield* makeCertificates(flags);
  const { dir, cluster, host } = flags;
  const [first = "127.0.0.1"] = host;
  const url = `nats://${isIP(first) === 6 ? `[${first}]` : first}:4222`;
  yield* print(
    `Each machine gets its own folder of ${dir} and no other; ${
      join(dir, "ca")
    } makes members, and stays here.

on the server:
  cd ${join(dir, "server")} && nats-server -c nats.conf
on each machine of a node, with a folder of its own:
  annulus node --nats ${url} --cluster ${cluster} --tls ${join(dir, "node-0")}
on the driver's:
  annulus attend IN.safetensors --out OUT.safetensors --nats ${url} --cluster ${cluster} --tls ${
      join(dir, driverName)
    }`,
  );
});
