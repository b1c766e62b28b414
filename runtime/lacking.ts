/**
 * What a device lacks for a rank of a job: whoever is to give it one may ask before, and it asks itself again.
 *
 * @module
 */
import type { Attention } from "./attention.ts";
import { DeviceFailed, type PlanRefused, VariantInvalid } from "./errors.ts";
import type { Job } from "./job.ts";
import type { DeviceInfo } from "./kernel.ts";
import { type Plan, refusalFor } from "./plan.ts";

/** What a device lacks for an attention, if anything: none may ignore a mask that it does not know. */
const missingFor = (
  attention: Attention,
  { name, forms }: DeviceInfo,
  gradients: boolean,
): VariantInvalid | undefined => {
  const wanted = gradients ? ["mask", "score", "slope"] as const : ["mask", "score"] as const;
  for (const form of wanted) {
    const variant = attention.lacking(form, forms);
    if (variant === undefined) continue;
    return new VariantInvalid({
      variant,
      needed: forms === undefined
        ? `a device that asks for the ${form} of pairs`
        : `its ${form} in ${forms} on device "${name}"${form === "slope" ? " for gradients" : ""}`,
      found: forms === undefined ? `"${name}"` : "none",
    });
  }
};

/**
 * Why a device cannot take part in a job, if it cannot.
 *
 * @param ranks How many ranks of it share the device.
 */
export const lackingFor = (
  { gradients }: Job,
  plan: Plan,
  device: DeviceInfo,
  ranks: number,
): DeviceFailed | PlanRefused | VariantInvalid | undefined => {
  const refusal = refusalFor(plan, device.memory / ranks);
  if (refusal !== undefined) return refusal;
  if (gradients && !device.gradients) {
    return new DeviceFailed({
      device: device.name,
      attempted: "compute gradients",
      found: "it has no backward pass; use another --device",
    });
  }
  return missingFor(plan.attention, device, gradients);
};
