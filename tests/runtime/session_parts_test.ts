/** What is being kept when a session is lost: nobody waits for it any longer. */
import { Deferred, Effect, Exit, Fiber, Layer, Scope } from "effect";
import assert from "node:assert/strict";
import { referenceKernel } from "../../kernels/reference.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { modelsIn, openModel } from "../../plugins/models.ts";
import { Crew } from "../../runtime/crew.ts";
import { Device } from "../../runtime/device.ts";
import { type LinkError, LinkFailed } from "../../runtime/errors.ts";
import { type Ends, Links } from "../../runtime/link.ts";
import { Parts } from "../../runtime/parts.ts";
import { openSession, type Session } from "../../runtime/session.ts";
import type { PartsError } from "../../runtime/session_parts.ts";
import { inFolder } from "../support/in_folder.ts";
import { inProcess } from "../support/in_process.ts";
import { modelCases, tensorsFor, writeModel } from "../support/models.ts";

const model = modelCases[0]!;
const [endless, other] = ["0123456789abcdef-00000000", "0123456789abcdef-00000001"] as const;

type Taking = (frame: Uint8Array) => Effect.Effect<Uint8Array, LinkError>;
/** What a link that fails says. */
const broken = new LinkFailed({ run: "r", self: "a", peer: "b", needed: "it", found: "gone" });

/** Memory links; what the driver takes from a lane of them comes through `taken`, if there is anything. */
const linksWith = (taken: Map<Ends["lane"], Taking>): Layer.Layer<Links> =>
  Layer.effect(
    Links,
    Effect.map(Links, (links) =>
      Links.of({
        ...links,
        open: (ends) =>
          Effect.map(links.open(ends), (link) =>
            ends.self !== "driver" ? link : {
              ...link,
              receive: Effect.flatMap(
                link.receive,
                (frame) => taken.get(ends.lane)?.(frame) ?? Effect.succeed(frame),
              ),
            }),
      })),
  ).pipe(Layer.provide(memoryLinks()));

interface Here {
  readonly session: Session;
  /** What the driver is keeping, which no rank ever finishes. */
  readonly keeping: Fiber.Fiber<unknown, PartsError>;
  readonly taken: Map<Ends["lane"], Taking>;
  readonly close: Effect.Effect<void>;
}

const itKeeps = (
  name: string,
  test: (here: Here) => Effect.Effect<void, unknown, Scope.Scope>,
) =>
  inFolder(name, async (folder) => {
    await writeModel(folder, model, tensorsFor(model, 5));
    await Effect.gen(function* () {
      const found = yield* openModel(folder);
      const reached = yield* Deferred.make<void>();
      const parts = Parts.of({
        there: Effect.succeed([]),
        keep: ({ name }) =>
          name === endless
            ? Effect.andThen(Deferred.succeed(reached, undefined), Effect.never)
            : Effect.succeed({ sum: 0, bytes: 0 }),
        read: () => Effect.void,
        forget: () => Effect.void,
      });
      const taken: Here["taken"] = new Map();
      const services = yield* Layer.build(
        Crew.local().pipe(
          Layer.provideMerge(modelsIn([found])),
          Layer.provideMerge(Layer.mergeAll(
            linksWith(taken),
            Layer.succeed(Device, inProcess(referenceKernel())),
            Layer.succeed(Parts, parts),
          )),
        ),
      );
      const scope = yield* Scope.fork(yield* Effect.scope);
      const session = yield* openSession({
        ...{ model: found.hash, shape: found.model, ring: 2, parts: true },
      }).pipe(Scope.provide(scope), Effect.provideContext(services));
      yield* session.extend([{ sequence: 0, ids: [1, 2, 3, 4, 5] }]);
      // A fiber that outlives the session, as those of an engine do.
      const keeping = yield* Effect.forkScoped(session.parts!.keep(endless, 0));
      yield* Deferred.await(reached);
      yield* test({ session, keeping, taken, close: Scope.close(scope, Exit.void) });
    }).pipe(Effect.scoped, Effect.runPromise);
  });

/** What a fiber fails with, for which nothing else has to happen. */
const failureOf = Effect.fnUntraced(function* <E>(fiber: Fiber.Fiber<unknown, E>) {
  for (let i = 0; i < 1000 && fiber.pollUnsafe() === undefined; i++) yield* Effect.yieldNow;
  assert.ok(fiber.pollUnsafe() !== undefined, "it waits forever");
  return yield* Effect.flip(Fiber.join(fiber));
});

itKeeps(
  "what is being kept when a session ends is given up",
  ({ keeping, close }) =>
    Effect.gen(function* () {
      yield* close;
      const { message } = yield* failureOf(keeping);
      assert.match(message, /it needs an open session: found one that has ended$/);
    }),
);

itKeeps(
  "what is being kept is given up when a turn fails, before anybody closes the session",
  ({ session, keeping, taken }) =>
    Effect.gen(function* () {
      taken.set(undefined, () => Effect.fail(broken));
      const growing = yield* Effect.forkScoped(session.extend([{ sequence: 0, ids: [6] }]));
      assert.equal(yield* failureOf(growing), broken);
      assert.equal(yield* failureOf(keeping), broken);
    }),
);

itKeeps(
  "a rank that tells what nobody can read ends the session",
  ({ session, keeping, taken }) =>
    Effect.gen(function* () {
      taken.set("parts", (frame) => {
        const odd = frame.slice();
        odd[odd.length >> 1]! ^= 1;
        return Effect.succeed(odd);
      });
      // What is wrong is what becomes of this one, and the first one hears of it too.
      yield* Effect.forkScoped(session.parts!.keep(other, 0));
      const error = yield* failureOf(keeping);
      assert.equal(error._tag, "FrameRejected");
      const growing = yield* Effect.forkScoped(session.extend([{ sequence: 0, ids: [6] }]));
      assert.equal(yield* failureOf(growing), error);
    }),
);
