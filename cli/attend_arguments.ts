/**
 * What `attend` was told, as it was told.
 *
 * @module
 */
import { resolve } from "node:path";
import { Schema } from "effect";
import { dtypes } from "../runtime/dtype.ts";
import { allLayouts } from "../runtime/layout_choice.ts";

const optional = Schema.optional;

/** The flags, whose meaning `main.ts` says. */
export const AttendArguments = Schema.Struct({
  input: Schema.String,
  out: Schema.String,
  ring: optional(Schema.Number),
  causal: Schema.Boolean,
  window: optional(Schema.Number),
  attention: Schema.Array(Schema.String),
  plugin: Schema.Array(Schema.String),
  layout: Schema.Literals(["auto", ...allLayouts]),
  weights: optional(Schema.String),
  device: Schema.String,
  link: optional(Schema.Literals(["memory", "nats"])),
  nats: optional(Schema.String),
  tls: optional(Schema.String),
  insecure: Schema.Boolean,
  cluster: optional(Schema.String),
  wire: optional(Schema.Literals([...dtypes])),
  trace: optional(Schema.String),
  record: optional(Schema.String),
  verify: Schema.Boolean,
  verifyRows: optional(Schema.Number),
  checkpoint: optional(Schema.String),
  checkpointEvery: optional(Schema.Number),
  json: Schema.Boolean,
});
/** The flags, whose meaning `main.ts` says. */
export type AttendArguments = typeof AttendArguments.Type;

/** The same wherever the command is called. */
export const placed = (args: AttendArguments): AttendArguments => {
  const place = (path: string | undefined) => path === undefined ? undefined : resolve(path);
  return {
    ...args,
    ...{ input: resolve(args.input), out: resolve(args.out) },
    plugin: args.plugin.map((file) => resolve(file)),
    trace: place(args.trace),
    record: place(args.record),
    tls: place(args.tls),
    checkpoint: place(args.checkpoint),
  };
};
