/** A way carries what passes, and does to it what it is told. */
import assert from "node:assert/strict";
import { Way } from "./way.ts";

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

/** A server that says back what it hears, a way to it, and a connection over that way. */
const connected = async () => {
  const stack = new AsyncDisposableStack();
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const serving = (async () => {
    for await (const socket of listener) {
      // One that is reset ends with an error.
      await socket.readable.pipeTo(socket.writable).catch(() => {});
    }
  })();
  stack.defer(async () => {
    listener.close();
    await serving.catch(() => {});
  });
  const way = stack.use(await Way.open(listener.addr.port, () => 0));
  const port = Number(way.url.split(":").at(-1));
  const socket = stack.use(await Deno.connect({ hostname: "127.0.0.1", port }));
  const said = async (words: string) => {
    await socket.write(new TextEncoder().encode(words));
  };
  const heard = async () => {
    const buffer = new Uint8Array(100);
    return text(buffer.subarray(0, await socket.read(buffer) ?? 0));
  };
  return { stack, way, said, heard };
};

Deno.test("a way carries what is said, both ways", async () => {
  const { stack, way, said, heard } = await connected();
  await using _ = stack;
  await said("hello");
  assert.equal(await heard(), "hello");
  assert.equal(way.ports.length, 1);
});

Deno.test("nothing passes a way that is cut, and all of it does when it is mended", async () => {
  const { stack, way, said, heard } = await connected();
  await using _ = stack;
  await said("before");
  assert.equal(await heard(), "before");
  way.cut();
  await said("meanwhile");
  const hearing = heard();
  // As long as it takes another one to pass there and back.
  await (async () => {
    const other = await connected();
    await using _ = other.stack;
    await other.said("elsewhere");
    await other.heard();
  })();
  assert.equal(await Promise.race([hearing, "nothing"]), "nothing");
  way.mend();
  assert.equal(await hearing, "meanwhile");
});

Deno.test("a bit of a message flips on a way", async () => {
  const { stack, way, said, heard } = await connected();
  await using _ = stack;
  way.flipNext("payload");
  await said("PUB a 5\r\nhello\r\n");
  assert.equal(await heard(), "PUB a 5\r\nhelln\r\n");
  assert.deepEqual(way.flipped, { payload: 1, line: 0 });
});

Deno.test("connections over a way are reset", async () => {
  const { stack, way, said, heard } = await connected();
  await using _ = stack;
  await said("before");
  assert.equal(await heard(), "before");
  way.reset();
  await assert.rejects(heard(), Deno.errors.ConnectionReset);
});
