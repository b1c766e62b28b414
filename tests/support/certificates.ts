/**
 * Certificates for tests: those of `annulus certs`, and ones that it would never make.
 *
 * @module
 */
import { Effect, type Scope } from "effect";
import assert from "node:assert/strict";
import { makeCertificates } from "../../cli/certs.ts";
import { findNatsServer, findProgram } from "../../cli/system.ts";
import { startNatsServer } from "../../plugins/nats_server.ts";
import type { FileInvalid } from "../../runtime/errors.ts";

/** True where a program is not installed without which there is no TLS to test. */
export const noTls = findNatsServer() === undefined || findProgram("openssl") === undefined;

/** A folder that `annulus certs` filled for a server, a driver and two nodes; gone with the scope. */
export const certificates = (cluster: string): Effect.Effect<string, FileInvalid, Scope.Scope> =>
  Effect.gen(function* () {
    const dir = yield* Effect.acquireRelease(
      Effect.promise(() => Deno.makeTempDir({ prefix: "annulus-test-" })),
      (dir) => Effect.promise(() => Deno.remove(dir, { recursive: true })),
    );
    yield* makeCertificates({ dir, nodes: 2, host: [], cluster });
    return dir;
  });

/** The server of such a folder, with a copy of its configuration. */
export const secureServer = (dir: string) =>
  Effect.gen(function* () {
    const config = `${dir}/server/${crypto.randomUUID()}.conf`;
    yield* Effect.promise(() => Deno.copyFile(`${dir}/server/nats.conf`, config));
    return { ...(yield* startNatsServer({ config })), config };
  });

const openssl = async (args: ReadonlyArray<string>) => {
  const { success, stderr } = await new Deno.Command("openssl", { args: [...args] }).output();
  assert.ok(success, new TextDecoder().decode(stderr));
};

/** A certificate of that authority which replaces the one of a member. */
export const replaceCertificate = (
  dir: string,
  member: string,
  { name = member, days = 1, extensions = "" }: {
    readonly name?: string;
    /** Negative for one that has expired. */
    readonly days?: number;
    readonly extensions?: string;
  },
) =>
  Effect.promise(async () => {
    const folder = `${dir}/${member}`;
    await Deno.writeTextFile(`${folder}/extensions`, extensions);
    await openssl(
      ["req", "-new", "-key", `${folder}/key.pem`, "-subj", `/CN=${name}`, "-out", `${folder}/csr`],
    );
    await openssl([
      ...["x509", "-req", "-in", `${folder}/csr`, "-days", String(days)],
      ...["-CA", `${dir}/ca/cert.pem`, "-CAkey", `${dir}/ca/key.pem`],
      ...["-extfile", `${folder}/extensions`, "-out", `${folder}/cert.pem`],
    ]);
  });
