import { Context, Effect, Layer } from "effect";
import { natsLinks } from "./plugins/nats_links.ts";
import { Links } from "./runtime/link.ts";
import { natsMembers } from "./tests/support/nats.ts";
import { testLinks } from "./tests/contract/link.ts";
import { headerBytes } from "./plugins/nats_links/message.ts";
testLinks("nats", ({ window, deadline }) =>
  Effect.gen(function* () {
    const { members } = yield* natsMembers(2);
    const windowBytes = window.frames * Math.max(1024, window.frameBytes + headerBytes);
    const [even, odd] = yield* Effect.forEach(members, (m) =>
      Effect.map(Layer.build(natsLinks(m, { cluster: "test", deadline, windowBytes })), (c) => Context.get(c, Links)));
    return (self) => typeof self === "number" && self % 2 === 1 ? odd! : even!;
  }));
