/**
 * Installs PyTorch from Debian's archive where it is missing and that may be done, for `deno task bench:torch`.
 *
 * @module
 */
import { setup } from "../cli/setup.ts";
import { isFile } from "../runtime/library.ts";

await setup(() => [{
  what: "PyTorch",
  present: isFile("/usr/lib/python3/dist-packages/torch/__init__.py"),
  packages: ["python3-torch"],
  without: "the bench has one peer less",
}]);
