/**
 * What a member proves to a NATS server who it is with: a folder with its certificate, its key and the certificate of the
 * authority (CA) that vouches for all.
 *
 * @module
 */
import { X509Certificate } from "node:crypto";
import { join } from "node:path";
import { Effect } from "effect";
import { FileInvalid } from "../runtime/errors.ts";
import { driverName } from "./nats_roster.ts";

/** The files of such a folder. */
export const identityFiles = { ca: "ca.pem", cert: "cert.pem", key: "key.pem" } as const;

/** Who a member is. */
export interface Identity {
  readonly folder: string;
  /** The common name of its certificate: `driver`, or that of a node. */
  readonly name: string;
  readonly expires: Date;
  /** All three as PEM. */
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

/** Reads the folder of one member, once: what a connection needs later is kept in memory. */
export const readIdentity = Effect.fn("readIdentity")(
  function* (folder: string): Effect.fn.Return<Identity, FileInvalid> {
    const invalid = (file: string, found: string) =>
      new FileInvalid({
        attempted: "use the certificate in",
        file,
        needed: "`annulus certs` makes folders with ca.pem, cert.pem and key.pem",
        found,
      });
    const read = (name: string) =>
      Effect.try({
        try: () => Deno.readTextFileSync(join(folder, name)),
        catch: (cause) => invalid(join(folder, name), (cause as Error).message),
      });
    const { ca, cert, key } = identityFiles;
    const pem = { ca: yield* read(ca), cert: yield* read(cert), key: yield* read(key) };
    const { subject, validTo } = yield* Effect.try({
      try: () => new X509Certificate(pem.cert),
      catch: () => invalid(join(folder, cert), "no certificate"),
    });
    const [, name] = /^CN=([\w-]+)$/.exec(subject) ?? [];
    if (name === undefined) {
      return yield* invalid(join(folder, cert), `one for ${JSON.stringify(subject)}`);
    }
    return { folder, name, expires: new Date(validTo), ...pem };
  },
);

/** Fails where a node has the driver's certificate, or the other way round: the server would refuse it bit by bit. */
export const mustBe = (
  role: "driver" | "node",
  identity: Identity | undefined,
): Effect.Effect<void, FileInvalid> => {
  if (identity === undefined) return Effect.void;
  if ((identity.name === driverName) === (role === "driver")) return Effect.void;
  return Effect.fail(
    new FileInvalid({
      attempted: "use the certificate in",
      file: identity.folder,
      needed: `a ${role} needs one of a ${role}`,
      found: `one of "${identity.name}"`,
    }),
  );
};
