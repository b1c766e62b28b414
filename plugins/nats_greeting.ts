/**
 * The first words with a NATS server, to find out in one sentence why a connection would fail. The client is not asked,
 * since it lets a listener of another protocol, or a server that refuses and resets, end the process: such sockets'
 * errors have no handler.
 *
 * @module
 */
import { connect, isIP, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import type { Identity } from "./nats_identity.ts";

/** What is needed, and what was found instead. */
export interface Refusal {
  readonly needed: string;
  readonly found: string;
  /** It hung up without a word: what stands before a server does so while that one is started again. */
  readonly mute?: boolean;
}

/** User and password, or a token, of an address. */
export const credentialsIn = (
  { username, password }: URL,
): { readonly user?: string; readonly pass?: string; readonly token?: string } => {
  const [user, pass] = [decodeURIComponent(username), decodeURIComponent(password)];
  if (pass !== "") return { user, pass };
  return user === "" ? {} : { token: user };
};

/** The host of an address as sockets take it. */
export const hostOf = ({ hostname }: URL): string => hostname.replace(/^\[|\]$/g, "");
const portOf = ({ port }: URL) => Number(port || "4222");

/** What asks for an answer, alone: a server that hangs up on more than it has read resets the connection. */
const hello = (parts: URL): string => {
  const { token, ...user } = credentialsIn(parts);
  const options = { verbose: true, lang: "deno", ...user, ...(token && { auth_token: token }) };
  return `CONNECT ${JSON.stringify(options)}\r\n`;
};

const answer = /(^|\n)(\+OK|-ERR .*\n)/;
/** Of a listener: `INFO {…}` and its line's end, or the beginning of something else. */
const greeting = /^(?!INFO ).{5}|\n/s;

const listening = "a NATS server to listen there";

/** What a server refuses of what it was told. */
const refusalIn = (said: string, identity: Identity | undefined): Refusal | undefined => {
  const [, refusal] = /^-ERR '?(.*?)'?\r?$/m.exec(said) ?? [];
  if (refusal === undefined) return undefined;
  return identity === undefined
    ? { needed: "a user it knows, as in nats://user:password@host:port", found: refusal }
    : { needed: `"${identity.name}" to be a member that it knows`, found: refusal };
};

/** Talks to a server without TLS, and learns whether it wants some. */
const inTheOpen = async (parts: URL, identity: Identity | undefined, signal: AbortSignal) => {
  using socket = await Deno.connect({ hostname: hostOf(parts), port: portOf(parts), signal });
  const bytes = new Uint8Array(64 * 1024);
  let said = "";
  const listen = async (until: RegExp) => {
    while (!until.test(said)) {
      const count = await socket.read(bytes);
      if (count === null) return;
      said += new TextDecoder().decode(bytes.subarray(0, count));
    }
  };
  await listen(greeting);
  const wants = (what: string) => RegExp(`"${what}":\\s*true`).test(said);
  const [tls, certificate] = [wants("tls_required"), wants("tls_verify")];
  // Nothing is asked of another protocol, nor of a server that wants TLS first, nor of one that should have it.
  if (said.startsWith("INFO ") && !tls && identity === undefined) {
    await socket.write(new TextEncoder().encode(hello(parts)));
    await listen(answer);
  }
  return { said, tls, certificate };
};

/** What a socket says until it has said this or hangs up. */
const hear = (socket: Socket, until: RegExp): Promise<string> =>
  new Promise((resolve, reject) => {
    let said = "";
    socket.on("data", (bytes) => {
      said += new TextDecoder().decode(bytes);
      if (until.test(said)) resolve(said);
    });
    socket.on("error", reject);
    socket.on("close", () => resolve(said));
  });

/** Talks to a server over TLS, as the client will; throws what either side has against the other's certificate. */
const overTls = async (parts: URL, identity: Identity | undefined, signal: AbortSignal) => {
  const host = hostOf(parts);
  const plain = connect(portOf(parts), host);
  const abort = () => plain.destroy(new Error("interrupted"));
  signal.addEventListener("abort", abort);
  try {
    await hear(plain, greeting);
    plain.removeAllListeners("data");
    const { ca, cert, key } = identity ?? {};
    const socket = connectTls({
      ...{ socket: plain, host, ...(isIP(host) ? {} : { servername: host }) },
      ...(identity === undefined ? {} : { ca: ca!, cert: cert!, key: key! }),
    });
    try {
      socket.write(hello(parts));
      return await hear(socket, answer);
    } finally {
      socket.destroy();
    }
  } finally {
    signal.removeEventListener("abort", abort);
    plain.destroy();
  }
};

/** Whose certificate it is that somebody does not like. */
const blame = (cause: unknown, parts: URL, identity: Identity | undefined): Refusal => {
  const { code = "", message } = cause as { code?: string; message: string };
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID") {
    return { needed: `a server whose certificate is for ${hostOf(parts)}`, found: message };
  }
  if (!code.startsWith("ERR_SSL")) {
    const authority = identity === undefined ? "an authority known here" : "the CA of --tls";
    return { needed: `a server that ${authority} vouches for`, found: message };
  }
  if (identity === undefined) return certificateNeeded;
  const late = identity.expires.getTime() < Date.now();
  return {
    needed: "a certificate that it accepts",
    found: late
      ? `one that has expired on ${identity.expires.toISOString().slice(0, 10)}`
      : `that of "${identity.name}", and ${message}`,
  };
};
const certificateNeeded: Refusal = {
  needed: "a certificate, as in --tls certs/node-0",
  found: "none",
};

/** Why a connection would be refused, if it would. Rejects where nobody listens. */
export const refusalOf = async (
  parts: URL,
  identity: Identity | undefined,
  signal: AbortSignal,
): Promise<Refusal | undefined> => {
  const { said, tls, certificate } = await inTheOpen(parts, identity, signal);
  if (!said.startsWith("INFO ")) {
    const found = said === ""
      ? "somebody who hangs up without a word"
      : `a greeting of another protocol, ${JSON.stringify(said.slice(0, 80))}`;
    return { needed: listening, found, mute: said === "" };
  }
  if (identity !== undefined && !tls) return { needed: "TLS", found: "a server without it" };
  if (!tls) return refusalIn(said, identity);
  if (certificate && identity === undefined) return certificateNeeded;
  try {
    return refusalIn(await overTls(parts, identity, signal), identity);
  } catch (cause) {
    return blame(cause, parts, identity);
  }
};
