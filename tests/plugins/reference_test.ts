import { reference } from "../../plugins/reference.ts";
import { testDevice } from "../contract/device.ts";
import { testGradients } from "../contract/gradients.ts";

// Its state is float64, so that nothing but the last rounding to float32 is lost.
testDevice(reference, { bound: { o: 1e-7, lse: 1e-6 } });
testGradients(reference);
