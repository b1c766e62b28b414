import { Effect, Layer } from "effect";
import { natsLinks } from "../../plugins/nats_links.ts";
import { reference } from "../../plugins/reference.ts";
import { testRing } from "../contract/ring.ts";
import { testRingGradients } from "../contract/ring_gradients.ts";
import { natsMembers, noNatsServer } from "../support/nats.ts";

const pair = {
  device: reference.layer,
  links: Layer.unwrap(
    Effect.map(
      natsMembers(1),
      ({ members }) => natsLinks(members[0]!, { cluster: "test" }),
    ),
  ),
  ignore: noNatsServer ? "nats-server is not installed" : undefined,
};
testRing("reference and nats", pair);
testRingGradients("reference and nats", pair);
