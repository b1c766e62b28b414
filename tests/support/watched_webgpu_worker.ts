/**
 * The Worker of the `webgpu` device, which says on the channel that its URL names how many of the devices that it had are
 * still there when it has ended.
 *
 * @module
 */
import { collectGarbage } from "../../plugins/webgpu/collect_garbage.ts";
import { openWebgpu } from "../../plugins/webgpu/open.ts";
import { serveDevice } from "../../runtime/device_worker_guest.ts";

const devices: Array<WeakRef<GPUDevice>> = [];
const request = GPUAdapter.prototype.requestDevice;
GPUAdapter.prototype.requestDevice = async function (descriptor) {
  const device = await request.call(this, descriptor);
  devices.push(new WeakRef(device));
  return device;
};

serveDevice(() => openWebgpu(), () => {
  collectGarbage();
  const channel = new BroadcastChannel(new URL(import.meta.url).search);
  channel.postMessage({
    had: devices.length,
    left: devices.filter((device) => device.deref() !== undefined).length,
  });
  channel.close();
});
