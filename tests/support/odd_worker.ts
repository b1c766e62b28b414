/**
 * A Worker whose device does what the options say: nearly always something odd.
 *
 * @module
 */
import { serveDevice, Unavailable } from "../../runtime/device_worker_guest.ts";
import type { Accumulation, AttentionKernel, Queries } from "../../runtime/kernel.ts";
import { asLse } from "../../runtime/lse.ts";
import type { ProgramKernel } from "../../runtime/program.ts";

const info = {
  name: "odd",
  backend: "odd",
  software: true,
  features: [],
  gradients: false,
  memory: 0,
  largestTensor: 0,
};

const never = new Promise<void>(() => {});

/** Its methods are none of its own properties, and want to know what they are called on. */
class OddKernel implements AttentionKernel {
  readonly info = info;
  readonly begin: AttentionKernel["begin"];
  readonly #answer = 42;
  constructor(begin: AttentionKernel["begin"]) {
    this.begin = begin;
  }
  programs(): ProgramKernel {
    const answer = Float32Array.of(this.#answer);
    return { fill: () => {}, run: () => [answer.slice()], close: () => {} };
  }
}

serveDevice((options) => {
  if (options === "unavailable") {
    throw new Unavailable({ needed: "a green lamp", found: "a red one" });
  }
  if (options === "throws in open") throw new Error("thrown in open");
  let begun = 0, open = 0, absorbed = 0, atOnce = 0, most = 0;

  const begin = ({ tokens, bytes }: Queries): Accumulation => {
    begun++;
    if (options === "throws in the first begin" && begun === 1) throw new Error("thrown in begin");
    if (options === "writes into what it gets") bytes[0] = 77;
    open++;
    let closed = false;
    return {
      absorb: async (block) => {
        absorbed++;
        most = Math.max(most, ++atOnce);
        switch (options) {
          case "throws in the first absorb":
            if (absorbed === 1) throw new Error("thrown in absorb");
            break;
          case "throws later":
            setTimeout(() => {
              throw new Error("thrown later");
            });
            return never;
          case "rejects later":
            setTimeout(() => void Promise.reject(new Error("rejected later")));
            return never;
          case "closes itself":
            setTimeout(() => self.close());
            return never;
          case "exits":
            setTimeout(() => Deno.exit());
            return never;
          case "never answers an absorb":
            return never;
          case "writes into what it gets":
            block.bytes[0] = 77;
        }
        await new Promise((resume) => setTimeout(resume));
        atOnce--;
      },
      finish: () => {
        const o = new Float32Array(Math.max(tokens, 1) * 4);
        if (options === "counts what is open") o[0] = open;
        if (options === "is slow and notes who overlaps") o.set([most, absorbed]);
        const attended = { o, lse: asLse(new Float32Array(tokens)) };
        return options === "finishes with a function" ? { ...attended, odd: () => {} } : attended;
      },
      close: () => {
        if (typeof options === "object" && (options as { readonly throws: boolean }).throws) {
          throw new Error("thrown in close");
        }
        if (!closed) open--;
        closed = true;
      },
    };
  };
  const close = async () => {
    if (options === "never closes") await never;
    if (typeof options !== "object") return;
    await new Promise((resume) => setTimeout(resume));
    const channel = new BroadcastChannel((options as { readonly says: string }).says);
    channel.postMessage(open);
    channel.close();
  };
  if (options === "is a class") return Promise.resolve(new OddKernel(begin));
  return Promise.resolve({ info, begin, close });
});
