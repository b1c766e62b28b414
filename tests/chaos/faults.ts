/**
 * What is done to a cluster at random moments.
 *
 * @module
 */
import type { Node, Server } from "./cluster.ts";
import type { Way } from "./way.ts";

/** One kind of fault. */
export interface Kind {
  readonly name: string;
  /** A run may lose a rank or a link by it, and go on in another epoch. */
  readonly breaks: boolean;
  /** Does it, and returns when it is over. */
  readonly happen: () => Promise<void>;
}

/** Waits. */
export const sleep = (seconds: number): Promise<void> =>
  new Promise((resume) => setTimeout(resume, 1000 * seconds));

/**
 * All kinds of faults. Those of nodes and of ways hit one that is drawn at random: of nodes any of them, be it at work or
 * to spare, and of ways also that of the driver.
 */
export const kindsOf = (
  server: Server,
  nodes: ReadonlyArray<Node>,
  driver: Way,
  random: () => number,
): ReadonlyArray<Kind> => {
  const pick = <A>(items: ReadonlyArray<A>): A => items[Math.floor(random() * items.length)]!;
  const anyWay = () => pick([driver, ...nodes.map(({ way }) => way)]);
  return [
    {
      name: "a node is killed",
      breaks: true,
      happen: async () => {
        const node = pick(nodes);
        node.life.process.kill("SIGKILL");
        await node.end();
        await sleep(2);
        await node.start();
      },
    },
    {
      name: "a node is frozen for 6 s",
      breaks: true,
      happen: async () => {
        const { life: { process } } = pick(nodes);
        process.kill("SIGSTOP");
        await sleep(6);
        process.kill("SIGCONT");
      },
    },
    {
      name: "a node is cut off for 8 s",
      breaks: true,
      happen: async () => {
        const { way } = pick(nodes);
        way.cut();
        await sleep(8);
        way.mend();
      },
    },
    {
      name: "a member's connections are reset",
      breaks: false,
      happen: () => Promise.resolve(anyWay().reset()),
    },
    {
      name: "a member's messages take 20 ms longer each way, for 10 s",
      breaks: false,
      happen: async () => {
        const way = anyWay();
        way.delay = 20;
        await sleep(10);
        way.delay = 0;
      },
    },
    {
      name: "bits flip in a tenth of a member's messages, for 8 s",
      breaks: false,
      happen: async () => {
        const way = anyWay();
        way.damage = 0.1;
        await sleep(8);
        way.damage = 0;
      },
    },
    {
      name: "a bit flips between two of a member's messages",
      // The server may answer with an error, which ends links.
      breaks: true,
      happen: () => Promise.resolve(anyWay().flipNext("line")),
    },
    {
      name: "the server is killed, and away for 1 s",
      breaks: false,
      happen: async () => {
        Deno.kill(server.pid, "SIGKILL");
        await server.stop();
        await sleep(1);
        await server.start();
      },
    },
    {
      name: "the server is frozen for 3 s",
      breaks: false,
      happen: async () => {
        Deno.kill(server.pid, "SIGSTOP");
        await sleep(3);
        Deno.kill(server.pid, "SIGCONT");
      },
    },
  ];
};

/** Draws kinds at random, each as often as any other. */
export const drawn = function* (
  kinds: ReadonlyArray<Kind>,
  random: () => number,
): Generator<Kind, never> {
  for (;;) {
    const left = [...kinds];
    while (left.length > 0) yield left.splice(Math.floor(random() * left.length), 1)[0]!;
  }
};
