/**
 * How commands speak to a server elsewhere: with a member's certificate, or against better advice without.
 *
 * @module
 */
import { Effect } from "effect";
import { mustBe, readIdentity } from "../plugins/nats_identity.ts";
import type { NatsAccess } from "../plugins/nats_connection.ts";
import type { FileInvalid } from "../runtime/errors.ts";

/** What a command can be told of it. */
export interface AccessFlags {
  /** The folder of a member, as `annulus certs` makes it. */
  readonly tls: string | undefined;
  readonly insecure: boolean;
}

/** What it means for a connection of a driver or of a node; for either, where that does not matter. */
export const accessOf = Effect.fn("accessOf")(
  function* (
    { tls, insecure }: AccessFlags,
    role?: "driver" | "node",
  ): Effect.fn.Return<NatsAccess, FileInvalid> {
    if (tls === undefined) return { insecure };
    const identity = yield* readIdentity(tls);
    if (role !== undefined) yield* mustBe(role, identity);
    return { identity, insecure };
  },
);

/** The same as arguments of another command. */
export const accessArguments = ({ tls, insecure }: AccessFlags): ReadonlyArray<string> => [
  ...(tls === undefined ? [] : ["--tls", tls]),
  ...(insecure ? ["--insecure"] : []),
];
