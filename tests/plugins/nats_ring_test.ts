import { Effect, Layer } from "effect";
import { natsLinks } from "../../plugins/nats_links.ts";
import { reference } from "../../plugins/reference.ts";
import { testRing } from "../contract/ring.ts";
import { natsConnections, noNatsServer } from "../support/nats.ts";

testRing("reference and nats", {
  device: reference.layer,
  links: Layer.unwrap(
    Effect.map(
      natsConnections(1),
      ({ connections }) => natsLinks(connections[0]!, { cluster: "test" }),
    ),
  ),
  ignore: noNatsServer ? "nats-server is not installed" : undefined,
});
