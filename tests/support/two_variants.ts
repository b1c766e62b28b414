/**
 * Two variants of one name in one file, of which threads find the second.
 *
 * @module
 */
import { defineAttention } from "../../runtime/variant.ts";

const near = (size: number) =>
  defineAttention({
    name: "near",
    contract: 1,
    module: import.meta.url,
    mask: () => (_b, _h, q, k) => k <= q && q - k < size,
  });

/** Written as the default export is, with another value around it. */
export const wide = near(20);

/** Written otherwise. */
export const all = defineAttention({
  name: "near",
  contract: 1,
  module: import.meta.url,
  mask: () => () => true,
});

export default near(3);
