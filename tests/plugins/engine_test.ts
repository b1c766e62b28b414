/** The engine: texts that come, go and come again while others grow, and none gets what is another's. */
import { Deferred, Effect, Fiber, type Scope, Stream } from "effect";
import assert from "node:assert/strict";
import { type Said, startEngine } from "../../plugins/models/engine.ts";
import { alike, type SavedTexts } from "../../plugins/models/saved_texts.ts";
import { greedy } from "../../plugins/models/sampler.ts";
import { LinkFailed } from "../../runtime/errors.ts";
import type { Session } from "../../runtime/session.ts";

/** A session whose model says, after any text, the sum of its ids modulo 97, and which waits where it is told to. */
class Told {
  /** All tokens of each sequence. */
  readonly sequences = new Map<number, Array<number>>();
  readonly dropped = new Set<number>();
  /** Turns of one step: before each of them it waits for whoever holds it. */
  before: Effect.Effect<void, LinkFailed> = Effect.void;

  readonly session: Session = {
    tokensAtOnce: 4,
    extend: (extensions) =>
      Effect.gen({ self: this }, function* () {
        for (const { sequence, ids } of extensions) {
          // As several turns: what comes later is entered later.
          yield* this.before;
          const all = this.sequences.get(sequence) ?? [];
          this.sequences.set(sequence, [...all, ...Array.from(ids)]);
        }
        return extensions.map(({ sequence, wanted = 1 }) => {
          const logits = new Float32Array(97 * wanted);
          const sum = this.sequences.get(sequence)!.reduce((a, b) => a + b, 0);
          if (wanted === 1) logits[sum % 97] = 9;
          return logits;
        });
      }),
    share: (sequence, from, tokens) => {
      const all = this.sequences.get(from);
      assert.ok(all !== undefined && all.length >= tokens && !this.sequences.has(sequence));
      this.sequences.set(sequence, all.slice(0, tokens));
    },
    drop: (sequence) => {
      this.sequences.delete(sequence);
      this.dropped.add(sequence);
    },
    waysOf: () => ({ ring: 0, star: 0 }),
    lengthOf: (sequence) => this.sequences.get(sequence)?.length ?? 0,
  };
}

const tokens = { decode: (ids: ReadonlyArray<number>) => ids.map((id) => `${id},`).join("") };
const asked = (prompt: ReadonlyArray<number>, most: number) => ({
  prompt,
  sampling: greedy,
  limits: { most, ends: new Set<number>(), stops: [] },
});
/** What must be said. */
const sayings = (prompt: ReadonlyArray<number>, most: number): ReadonlyArray<number> => {
  const all = [...prompt];
  for (let i = 0; i < most; i++) all.push(all.reduce((a, b) => a + b, 0) % 97);
  return all.slice(prompt.length);
};
const idsOf = (said: ReadonlyArray<Said>) => said.flatMap((one) => "id" in one ? [one.id] : []);
const cachedOf = ([first]: ReadonlyArray<Said>) =>
  first !== undefined && "read" in first && first.read;

const it = (name: string, test: Effect.Effect<void, unknown, Scope.Scope>) =>
  Deno.test(name, () => Effect.runPromise(Effect.scoped(test)));

it(
  "texts of all lengths grow together, each as if it were alone",
  Effect.gen(function* () {
    const { session } = new Told();
    const engine = yield* startEngine({ open: Effect.succeed(session), tokens });
    const prompts = Array.from(
      { length: 6 },
      (_, i) => Array.from({ length: 1 + 3 * i }, (_, j) => i + j),
    );
    const found = yield* Effect.forEach(
      prompts,
      (prompt, i) => Stream.runCollect(engine.say(asked(prompt, 3 + i))),
      { concurrency: "unbounded" },
    );
    assert.deepEqual(found.map(idsOf), prompts.map((prompt, i) => sayings(prompt, 3 + i)));
    assert.equal(engine.active(), 0);
  }),
);

it(
  "what begins like a text that has ended is not read again, also where that was given up in the middle of a step",
  Effect.gen(function* () {
    const told = new Told();
    const [reached, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()];
    const engine = yield* startEngine({
      ...{ open: Effect.succeed(told.session), tokens, kept: 1000 },
    });
    const say = (prompt: ReadonlyArray<number>, most: number) =>
      Stream.runCollect(engine.say(asked(prompt, most)));
    const prompt = [5, 6, 7, 8, 9];
    const whole = yield* say(prompt, 6);
    assert.equal(cachedOf(whole), 0);
    const longer = [...prompt, ...idsOf(whole), 3];
    const again = yield* say(longer, 6);
    // The last one was chosen and never read.
    assert.equal(cachedOf(again), prompt.length + 5);
    assert.deepEqual(idsOf(again), sayings(longer, 6));

    // Given up while its piece is on its way.
    let waits = 1;
    told.before = Effect.suspend(() =>
      waits-- === 1
        ? Effect.andThen(Deferred.succeed(reached, undefined), Deferred.await(go))
        : Effect.void
    );
    const lost = yield* Effect.forkChild(say(Array.from({ length: 40 }, (_, i) => i), 5));
    yield* Deferred.await(reached);
    const going = yield* Effect.forkChild(Fiber.interrupt(lost), { startImmediately: true });
    const begin = Array.from({ length: 40 }, (_, i) => i).slice(0, 6);
    const another = yield* Effect.forkChild(say(begin, 4), { startImmediately: true });
    yield* Deferred.succeed(go, undefined);
    yield* Fiber.join(going);
    const said = yield* Fiber.join(another);
    assert.deepEqual(idsOf(said), sayings(begin, 4));
    assert.equal(cachedOf(said), 4, "the piece that was on its way");
  }),
);

it(
  "the begin that a text has in common with another is not read again, and the other is as it was",
  Effect.gen(function* () {
    const told = new Told();
    const engine = yield* startEngine({
      ...{ open: Effect.succeed(told.session), tokens, kept: 1000 },
    });
    const say = (prompt: ReadonlyArray<number>, most = 5) =>
      Effect.map(Stream.runCollect(engine.say(asked(prompt, most))), (said) => {
        assert.deepEqual(idsOf(said), sayings(prompt, most));
        return cachedOf(said);
      });
    const book = Array.from({ length: 30 }, (_, i) => i * i % 53);
    const question = (i: number) => [...book, 60 + i, 61 + i, 62];
    assert.equal(yield* say(question(0)), 0);
    assert.equal(yield* say(question(1)), book.length);
    // Both are there, whole, and so is what of them was asked again.
    assert.equal(yield* say([...question(0), ...sayings(question(0), 5), 9]), 33 + 4);
    assert.equal(yield* say([...question(1), ...sayings(question(1), 5), 9]), 33 + 4);
    // Of the same prompt all but the last token, whose logits are needed.
    assert.equal(yield* say(question(0)), 33 - 1);
    assert.equal(yield* say(book.slice(0, 7)), 7 - 1);
    assert.equal(yield* say([52, 51]), 0);
    // What others begin with is not kept beside them.
    const held = engine.held();
    assert.equal(yield* say(question(0)), 33 - 1);
    assert.equal(engine.held(), held);
  }),
);

it(
  "texts share what one of them has read while it still grows",
  Effect.gen(function* () {
    const told = new Told();
    const [reached, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()];
    const engine = yield* startEngine({
      open: Effect.succeed({ ...told.session, tokensAtOnce: 8 }),
      tokens,
    });
    let steps = 0;
    told.before = Effect.suspend(() =>
      ++steps === 3
        ? Effect.andThen(Deferred.succeed(reached, undefined), Deferred.await(go))
        : Effect.void
    );
    const book = Array.from({ length: 20 }, (_, i) => i + 3);
    const first = yield* Effect.forkChild(
      Stream.runCollect(engine.say(asked([...book, 1], 40))),
      { startImmediately: true },
    );
    yield* Deferred.await(reached);
    const second = yield* Effect.forkChild(
      Stream.runCollect(engine.say(asked([...book, 2], 9))),
      { startImmediately: true },
    );
    yield* Deferred.succeed(go, undefined);
    const [one, other] = [yield* Fiber.join(first), yield* Fiber.join(second)];
    assert.deepEqual(idsOf(one), sayings([...book, 1], 40));
    assert.deepEqual(idsOf(other), sayings([...book, 2], 9));
    assert.equal(cachedOf(other), book.length);
    assert.equal(engine.held(), 0);
  }),
);

/** Texts in no files: what is offered is kept if it is as long as that, and used unless it is told to fail. */
class Shelf implements SavedTexts {
  readonly kept: Array<ReadonlyArray<number>> = [];
  readonly told: Told;
  readonly #least: number;
  fails = 0;
  /** Before anything is kept. */
  before: Effect.Effect<void> = Effect.void;

  constructor(told: Told, least: number) {
    this.told = told;
    this.#least = least;
  }

  readonly find: SavedTexts["find"] = (_, ids, known) =>
    Effect.sync(() => {
      const text = this.kept.find((kept) => alike(ids.slice(0, -1), kept) >= known + this.#least);
      if (text === undefined) return undefined;
      const found = { ids: Uint32Array.from(text), head: undefined as never };
      return { text: found, tokens: alike(ids.slice(0, -1), text), parts: [] };
    });
  readonly use: SavedTexts["use"] = (_, sequence, { text, tokens }) =>
    Effect.sync(() => {
      if (this.fails-- > 0) {
        this.kept.splice(0, 1);
        return false;
      }
      assert.ok(!this.told.sequences.has(sequence));
      this.told.sequences.set(sequence, [...text.ids.slice(0, tokens)]);
      return true;
    });
  readonly offer: SavedTexts["offer"] = (_, ids) =>
    ids.length < this.#least ? undefined : (sequence) =>
      Effect.andThen(
        this.before,
        Effect.sync(() => void this.kept.push([...this.told.sequences.get(sequence)!])),
      );
}

it(
  "texts go on from what was kept beyond the process, and where that fails from what is there",
  Effect.gen(function* () {
    const told = new Told();
    const shelf = new Shelf(told, 10);
    const book = Array.from({ length: 30 }, (_, i) => i * i % 53);
    const begin = (kept: number) =>
      startEngine({ open: Effect.succeed(told.session), tokens, kept, saved: shelf });
    const [reached, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()];
    shelf.before = Effect.andThen(Deferred.succeed(reached, undefined), Deferred.await(go));
    const engine = yield* begin(0);
    const said = yield* Stream.runCollect(engine.say(asked([...book, 1], 12)));
    assert.deepEqual(idsOf(said), sayings([...book, 1], 12));
    // The text has ended and nothing of it is held, but for what is being kept.
    yield* Deferred.await(reached);
    assert.equal(engine.held(), 0);
    assert.equal(shelf.kept.length, 0);
    shelf.before = Effect.void;
    yield* Deferred.succeed(go, undefined);
    yield* engine.settled;
    // Its prompt, and what was said.
    assert.deepEqual(shelf.kept, [
      [...book, 1],
      [...book, 1, ...sayings([...book, 1], 12).slice(0, -1)],
    ]);
    assert.equal(told.sequences.size, 0);

    const later = yield* begin(1000);
    const ask = (prompt: ReadonlyArray<number>) =>
      Effect.map(Stream.runCollect(later.say(asked(prompt, 5))), (said) => {
        assert.deepEqual(idsOf(said), sayings(prompt, 5));
        const [first, ...more] = said;
        const of = prompt.length;
        const last = more.findLast((one) => "read" in one);
        assert.deepEqual(last, { read: of, of, ways: { ring: 0, star: 0 } });
        return first;
      });
    assert.deepEqual(yield* ask([...book, 2]), { read: 30, of: 31, from: "disk" });
    // Now in memory, which is nearer.
    assert.deepEqual(yield* ask([...book, 3]), { read: 30, of: 31, from: "memory" });
    // One that is longer, and not as it was.
    const longer = [...book, 3, ...Array.from({ length: 12 }, () => 1)];
    shelf.kept.splice(0, Infinity, longer);
    shelf.fails = 1;
    assert.deepEqual(yield* ask(longer), { read: 31, of: 43, from: "memory" });
    assert.equal(shelf.fails, 0);
  }),
);

it(
  "what is being saved has its memory until it is, and texts wait for that",
  Effect.gen(function* () {
    const told = new Told();
    const shelf = new Shelf(told, 10);
    const [reached, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()];
    const order: Array<string> = [];
    shelf.before = Deferred.succeed(reached, undefined).pipe(
      Effect.andThen(Deferred.await(go)),
      Effect.tap(Effect.sync(() => void order.push("saved"))),
    );
    const engine = yield* startEngine({
      ...{
        open: Effect.succeed({ ...told.session, tokensAtOnce: 40 }),
        tokens,
        room: () => 80,
        saved: shelf,
      },
    });
    const [one, other] = [3, 5].map((step) => Array.from({ length: 30 }, (_, i) => i * step));
    // Its prompt is kept, and the text: 60 tokens.
    yield* Stream.runCollect(engine.say(asked(one!, 1)));
    yield* Deferred.await(reached);
    told.before = Effect.sync(() => void order.push("read"));
    // This one has room beside it, and the next one has not.
    const small = yield* Stream.runCollect(engine.say(asked([1, 2], 1)));
    assert.deepEqual(idsOf(small), sayings([1, 2], 1));
    const waiting = yield* Effect.forkChild(
      Stream.runCollect(engine.say(asked(other!, 1))),
      { startImmediately: true },
    );
    for (let i = 0; i < 50; i++) yield* Effect.yieldNow;
    assert.deepEqual(order, ["read"]);
    yield* Deferred.succeed(go, undefined);
    assert.deepEqual(idsOf(yield* Fiber.join(waiting)), sayings(other!, 1));
    assert.deepEqual(order.slice(0, 4), ["read", "saved", "saved", "read"]);
  }),
);

it(
  "what is being saved keeps its memory when its text goes, and others that have ended make room",
  Effect.gen(function* () {
    const told = new Told();
    const shelf = new Shelf(told, 50);
    const [reached, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()];
    shelf.before = Effect.andThen(Deferred.succeed(reached, undefined), Deferred.await(go));
    let offers = 0;
    const saved: SavedTexts = {
      ...{ find: shelf.find, use: shelf.use },
      // Of the long one its prompt, once.
      offer: (session, ids) =>
        ids.length >= 50 && offers++ === 0 ? shelf.offer(session, ids) : undefined,
    };
    const engine = yield* startEngine({
      ...{
        open: Effect.succeed({ ...told.session, tokensAtOnce: 60 }),
        tokens,
        room: () => 100,
        saved,
      },
      kept: 1000,
    });
    const say = (begin: number, length: number) =>
      Stream.runDrain(
        engine.say(asked(Array.from({ length }, (_, i) => (begin + i * i) % 97), 1)),
      );
    yield* say(0, 59);
    yield* Deferred.await(reached);
    for (const begin of [1, 2, 3]) yield* say(begin, 13);
    assert.equal(engine.held(), 59 + 3 * 13);
    let most = 0;
    told.before = Effect.sync(() => {
      for (const { length } of told.sequences.values()) most += length;
    });
    // Their 40 have room beside the 59 that are being saved, and beside nothing else.
    for (const begin of [4, 5]) {
      most = 0;
      yield* say(begin, 39);
      assert.equal(most, 59);
    }
    yield* Deferred.succeed(go, undefined);
    yield* engine.settled;
    assert.equal(engine.held(), 39);
  }),
);

it(
  "where there is no room texts wait, and what has ended goes first",
  Effect.gen(function* () {
    const told = new Told();
    const engine = yield* startEngine({
      ...{ open: Effect.succeed(told.session), tokens, kept: 1000, room: () => 20 },
    });
    let most = 0;
    told.before = Effect.sync(() => {
      const sum = [...told.sequences.values()].reduce((sum, { length }) => sum + length, 0);
      most = Math.max(most, sum);
    });
    const prompts = Array.from({ length: 7 }, (_, i) => [i, i + 1, i + 2, 40 + i, 7, 7]);
    const found = yield* Effect.forEach(
      prompts,
      (prompt) => Stream.runCollect(engine.say(asked(prompt, 4))),
      { concurrency: "unbounded" },
    );
    assert.deepEqual(found.map(idsOf), prompts.map((prompt) => sayings(prompt, 4)));
    assert.ok(most <= 20, `${most} tokens were held`);
    assert.ok(told.dropped.size >= 5, `${told.dropped.size} were let go`);
  }),
);

it(
  "a session that is lost begins anew, and every text goes on where it was",
  Effect.gen(function* () {
    const failure = new LinkFailed({ run: "r", self: "a", peer: "b", needed: "it", found: "gone" });
    let opened = 0;
    const lost: Array<string> = [];
    const open = Effect.sync(() => {
      const told = new Told();
      let turns = 0;
      // The first three of them are lost after some turns.
      if (opened++ < 3) {
        told.before = Effect.suspend(() => ++turns > 7 ? Effect.fail(failure) : Effect.void);
      }
      return told.session;
    });
    const engine = yield* startEngine({
      ...{ open, tokens, kept: 1000 },
      lost: ({ message }) => Effect.sync(() => void lost.push(message)),
    });
    const prompts = [[1, 2, 3], [4, 5], [6]];
    const found = yield* Effect.forEach(
      prompts,
      (prompt) => Stream.runCollect(engine.say(asked(prompt, 9))),
      { concurrency: "unbounded" },
    );
    assert.deepEqual(found.map(idsOf), prompts.map((prompt) => sayings(prompt, 9)));
    assert.equal(lost.length, 3);
  }),
);

it(
  "a text at which sessions are lost again and again ends alone",
  Effect.gen(function* () {
    const failure = new LinkFailed({ run: "r", self: "a", peer: "b", needed: "it", found: "gone" });
    let opened = 0;
    const broken = Array.from({ length: 100 }, (_, i) => i);
    const open = Effect.sync(() => {
      opened++;
      const told = new Told();
      // A session is lost when it has 28 tokens of that text.
      told.before = Effect.suspend(() =>
        [...told.sequences.values()].some((ids) => ids.length > 27 && ids[27] === 27)
          ? Effect.fail(failure)
          : Effect.void
      );
      return told.session;
    });
    const engine = yield* startEngine({ open, tokens });
    const told = yield* Effect.forkChild(
      Effect.flip(Stream.runCollect(engine.say(asked(broken, 1)))),
    );
    // Those that come and go beside it have something new in every session.
    const others = Array.from({ length: 12 }, (_, i) => [50 + i, i]);
    const said = yield* Effect.forEach(
      others,
      (prompt) => Stream.runCollect(engine.say(asked(prompt, 3))),
    );
    assert.deepEqual(said.map(idsOf), others.map((prompt) => sayings(prompt, 3)));
    assert.equal(yield* Fiber.join(told), failure);
    // The first session read what none had read before, three did not, and one is there for others.
    assert.equal(opened, 5);
  }),
);

it(
  "a text whose tokens cannot be read ends alone",
  Effect.gen(function* () {
    const { session } = new Told();
    const odd = {
      decode: (ids: ReadonlyArray<number>) => {
        if (ids.includes(13)) throw new Error("13 is no token");
        return tokens.decode(ids);
      },
    };
    const engine = yield* startEngine({ open: Effect.succeed(session), tokens: odd });
    const [bad, good] = yield* Effect.all([
      Effect.exit(Stream.runCollect(engine.say(asked([13], 3)))),
      Stream.runCollect(engine.say(asked([1, 2], 5))),
    ], { concurrency: "unbounded" });
    assert.equal(bad._tag, "Failure");
    assert.deepEqual(idsOf(good), sayings([1, 2], 5));
    const later = yield* Stream.runCollect(engine.say(asked([3], 2)));
    assert.deepEqual(idsOf(later), sayings([3], 2));
  }),
);
