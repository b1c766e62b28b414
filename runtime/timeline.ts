/**
 * The timeline of a run: per rank and step, when compute, send and receive began and ended, how many bytes moved and
 * what was waited for. The figures that users see are computed from it.
 *
 * @module
 */

/**
 * What a rank did in an interval. `wait` is the device standing still for want of a block, `gradient` the gradients of a
 * block on their way to the next rank, `keep` a checkpoint on its way to the driver; `begin` and `finish` are the device's
 * work on a pass before its first block and after its last one.
 */
export const activities = [
  "load",
  "receive",
  "compute",
  "wait",
  "forward",
  "gradient",
  "home",
  "begin",
  "finish",
  "keep",
] as const;
/** One of them. */
export type Activity = typeof activities[number];

/** One interval on one rank. */
export interface Interval {
  readonly rank: number;
  readonly activity: Activity;
  /** Hops from the block's home. */
  readonly step: number;
  /** Block id, or −1 where no block is concerned. */
  readonly block: number;
  /** Milliseconds since the run began, on the clock of the process that collects the timeline. */
  readonly begin: number;
  readonly end: number;
  readonly bytes: number;
}

const overlap = (a: Interval, b: Interval): number =>
  Math.max(0, Math.min(a.end, b.end) - Math.max(a.begin, b.begin));

const total = (values: ReadonlyArray<number>): number => values.reduce((a, b) => a + b, 0);

/**
 * Of the time in which blocks were arriving, the share in which the rank was not standing still for want of one: 1 is
 * communication wholly hidden. A ring without communication hides all of it.
 */
export const hiddenFraction = (timeline: ReadonlyArray<Interval>): number => {
  const receives = timeline.filter(({ activity }) => activity === "receive");
  const waits = Map.groupBy(
    timeline.filter(({ activity }) => activity === "wait"),
    ({ rank }) => rank,
  );
  const moving = total(receives.map(({ begin, end }) => end - begin));
  if (moving === 0) return 1;
  const exposed = total(
    receives.map((receive) =>
      total((waits.get(receive.rank) ?? []).map((wait) => overlap(wait, receive)))
    ),
  );
  return 1 - exposed / moving;
};

/**
 * The timeline in Chrome's trace format, one process per rank and one thread per activity; opens in Perfetto and
 * `chrome://tracing`. Times are microseconds.
 */
export const chromeTrace = (timeline: ReadonlyArray<Interval>): unknown => {
  const ranks = [...new Set(timeline.map(({ rank }) => rank))].sort((a, b) => a - b);
  return {
    displayTimeUnit: "ms",
    traceEvents: [
      ...ranks.flatMap((rank) => [
        { name: "process_name", ph: "M", pid: rank, args: { name: `rank ${rank}` } },
        ...activities.map((name, tid) => ({
          name: "thread_name",
          ph: "M",
          pid: rank,
          tid,
          args: { name },
        })),
      ]),
      ...timeline.map(({ rank, activity, step, block, begin, end, bytes }) => ({
        name: block < 0 ? activity : `${activity} block ${block}`,
        cat: activity,
        ph: "X",
        pid: rank,
        tid: activities.indexOf(activity),
        ts: Math.round(begin * 1000),
        dur: Math.max(1, Math.round((end - begin) * 1000)),
        args: { step, block, bytes },
      })),
    ],
  };
};
