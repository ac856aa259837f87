/** Axes: round steps for values and times. Pure. */

/** Return round values from 0 to at least the highest value. With `isBinary`, steps are round in KiB, MiB and so on. */
export function valueTicks(highest, isBinary) {
  const unit = isBinary ? 1024 ** Math.max(0, Math.floor(Math.log2(highest || 1) / 10)) : 1;
  const rough = highest / unit / 3;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power * unit;
  const count = Math.max(1, Math.ceil(highest / step - 1e-9));
  return Array.from({ length: count + 1 }, (_, index) => index * step);
}

const TIME_STEPS = [60, 120, 300, 600, 1800, 3600, 7200];

/** Return round times in a range, at most `maximum`. */
export function timeTicks(from, to, maximum) {
  const step = TIME_STEPS.find((seconds) => (to - from) / seconds <= maximum) ?? TIME_STEPS.at(-1);
  const offset = new Date(from * 1000).getTimezoneOffset() * 60;
  const first = Math.ceil((from - offset) / step) * step + offset;
  return Array.from({ length: Math.max(0, Math.floor((to - first) / step) + 1) }, (_, index) => first + index * step);
}

/** Return the runs of points with a known value in a column. A long time without a point ends a run. */
export function runsOf(points, column) {
  const steps = points.slice(1).map((point, index) => point[0] - points[index][0]).sort((a, b) => a - b);
  const gap = 3.5 * (steps[Math.floor(steps.length / 2)] ?? 0);
  const runs = [];
  let run = [];
  points.forEach((point, index) => {
    const isBroken = point[column] === null || (index > 0 && point[0] - points[index - 1][0] > gap);
    if (isBroken && run.length) runs.push(run);
    if (isBroken) run = [];
    if (point[column] !== null) run.push(point);
  });
  if (run.length) runs.push(run);
  return runs;
}

/** Return the index of the point closest to a time; -1 without points. */
export function nearest(points, time) {
  let best = -1;
  points.forEach((point, index) => {
    if (best < 0 || Math.abs(point[0] - time) < Math.abs(points[best][0] - time)) best = index;
  });
  return best;
}
