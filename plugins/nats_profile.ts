/**
 * The configuration of a NATS server for members with certificates: who may speak, listen and answer where.
 *
 * @module
 */
import { driverName } from "./nats_roster.ts";

/** What a member may publish and subscribe to. */
interface Permissions {
  readonly publish: ReadonlyArray<string>;
  readonly subscribe: ReadonlyArray<string>;
}

/** Links of one name: what it says, and what is said to it, on every lane. */
const links = (cluster: string, name: string): Permissions => ({
  publish: [`annulus.${cluster}.*.*.*.${name}.>`],
  subscribe: [`annulus.${cluster}.*.*.*.*.${name}`, `annulus.${cluster}.*.*.*.*.${name}.>`],
});

/** A driver calls nodes, asks them and hears their answers; it speaks and listens on links as the driver alone. */
const driver = (cluster: string): Permissions => {
  const { publish, subscribe } = links(cluster, driverName);
  return {
    publish: [`annulus.${cluster}.ctl.roll`, `annulus.${cluster}.ctl.node.*.*`, ...publish],
    subscribe: [`annulus.${cluster}.ctl.answer.*.*`, ...subscribe],
  };
};

/** A node hears what drivers call and ask, and answers, under its own name; the same for its links. */
const node = (cluster: string, name: string): Permissions => {
  const { publish, subscribe } = links(cluster, name);
  return {
    publish: [`annulus.${cluster}.ctl.answer.*.${name}`, ...publish],
    subscribe: [
      `annulus.${cluster}.ctl.roll`,
      `annulus.${cluster}.ctl.node.${name}.*`,
      ...subscribe,
    ],
  };
};

/** The text of the configuration file; the server's `ca.pem`, `cert.pem` and `key.pem` lie beside it. */
export const natsProfile = (
  cluster: string,
  nodes: ReadonlyArray<string>,
  host: string,
): string => {
  const user = (name: string, { publish, subscribe }: Permissions) =>
    `    { user: "CN=${name}", permissions: {
        publish: ${JSON.stringify(publish)}
        subscribe: ${JSON.stringify(subscribe)} } }`;
  return `# nats-server for cluster "${cluster}". Whoever is not listed, or whose line is taken out, is refused;
# after a change: nats-server --signal reload
listen: "${host}:4222"
tls {
  cert_file: "cert.pem"
  key_file: "key.pem"
  ca_file: "ca.pem"
  verify_and_map: true
  timeout: 3
}
max_payload: 1MB
max_pending: 64MB
write_deadline: "10s"
max_control_line: 1024
max_connections: 1024
authorization {
  users = [
${
    [user(driverName, driver(cluster)), ...nodes.map((name) => user(name, node(cluster, name)))]
      .join("\n")
  }
  ]
}
`;
};
