/**
 * A slow and lossy way between two network namespaces: a TUN device in each, and this process between them, which lets
 * every packet wait, and drops some. `deno run -A relay.ts NEAR FAR DELAY JITTER LOSS`: names of namespaces, milliseconds
 * one way, and a share from 0 to 1. Needs root, Linux and `ip`; says `up` when packets may come, and how many came when
 * its standard input ends.
 *
 * @module
 */
import { uniform } from "./random.ts";

const libc = Deno.dlopen("libc.so.6", {
  open: { parameters: ["buffer", "i32"], result: "i32" },
  setns: { parameters: ["i32", "i32"], result: "i32" },
  ioctl: { parameters: ["i32", "u64", "buffer"], result: "i32" },
  read: { parameters: ["i32", "buffer", "usize"], result: "isize", nonblocking: true },
  write: { parameters: ["i32", "buffer", "usize"], result: "isize" },
});
const [readWrite, setInterface, tunWithoutInfo] = [2, 0x400454ca, 0x1001];
const text = (string: string) => new TextEncoder().encode(`${string}\0`);
const checked = (result: number, what: string): number => {
  if (result < 0) throw new Error(`cannot ${what}`);
  return result;
};

/** Opens a device in a namespace; this thread is back in its own when it returns. */
const openTun = (namespace: string, own: string, peer: string): number => {
  const open = (path: string) => checked(libc.symbols.open(text(path), readWrite), `open ${path}`);
  const here = checked(
    libc.symbols.open(text("/proc/thread-self/ns/net"), 0),
    "open our namespace",
  );
  const there = checked(libc.symbols.open(text(`/run/netns/${namespace}`), 0), `open ${namespace}`);
  checked(libc.symbols.setns(there, 0), `enter ${namespace}`);
  const device = open("/dev/net/tun");
  const request = new Uint8Array(40);
  request.set(text("wan0"));
  new DataView(request.buffer).setUint16(16, tunWithoutInfo, true);
  checked(libc.symbols.ioctl(device, BigInt(setInterface), request), "make a TUN device");
  checked(libc.symbols.setns(here, 0), "come back");
  const ip = (...args: ReadonlyArray<string>) => {
    const { success, stderr } = new Deno.Command("ip", { args: ["-n", namespace, ...args] })
      .outputSync();
    if (!success) throw new Error(new TextDecoder().decode(stderr));
  };
  ip("addr", "add", own, "peer", peer, "dev", "wan0");
  ip("link", "set", "wan0", "up", "mtu", "9000");
  return device;
};

const [near = "", far = "", delay = "0", jitter = "0", loss = "0"] = Deno.args;
const next = uniform(1);
const counts = { packets: 0, lost: 0 };

/** Carries packets one way, in their order. */
const carry = async (from: number, to: number): Promise<never> => {
  const waiting: Array<{ readonly at: number; readonly packet: Uint8Array<ArrayBuffer> }> = [];
  let last = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const send = () => {
    timer = undefined;
    const now = performance.now();
    while (waiting.length > 0 && waiting[0]!.at <= now) {
      const { packet } = waiting.shift()!;
      libc.symbols.write(to, packet, BigInt(packet.length));
    }
    if (waiting.length > 0) timer = setTimeout(send, waiting[0]!.at - now);
  };
  const buffer = new Uint8Array(1 << 16);
  for (;;) {
    const length = Number(await libc.symbols.read(from, buffer, BigInt(buffer.length)));
    if (length <= 0) continue;
    counts.packets++;
    if (next() < Number(loss)) {
      counts.lost++;
      continue;
    }
    last = Math.max(last, performance.now() + Number(delay) + Number(jitter) * next());
    waiting.push({ at: last, packet: buffer.slice(0, length) });
    timer ??= setTimeout(send, last - performance.now());
  }
};

const ends = [
  openTun(near, "10.99.0.1", "10.99.0.2"),
  openTun(far, "10.99.0.2", "10.99.0.1"),
] as const;
void carry(ends[0], ends[1]);
void carry(ends[1], ends[0]);
console.log("up");
for await (const _ of Deno.stdin.readable);
console.log(`${counts.packets} packets, ${counts.lost} lost`);
Deno.exit(0);
