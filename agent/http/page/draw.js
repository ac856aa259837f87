/** Small drawings: a line of the last minutes, a disk's fullness with its ladder. */

import { set, svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 28;

/**
 * A sparkline of one or two lines.
 * @returns {{node, update(points: [time, ...values][], least: number, label: string)}} `least` is what the top is at least.
 */
export function sparkline(...classes) {
  const lines = classes.map((name) => [svg("path", { class: `area ${name}` }), svg("path", { class: `line ${name}` })]);
  const node = svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, ...lines.flat());
  return { node, update: (points, least, label) => trace(node, lines, points, least, label) };
}

function trace(node, lines, points, least, label) {
  set(node, "aria-label", label);
  const [from, to] = [points[0]?.[0] ?? 0, points.at(-1)?.[0] ?? 0];
  const top = Math.max(least, ...points.flatMap((point) => point.slice(1)).filter((value) => value !== null));
  lines.forEach(([area, line], index) => {
    const known = points.filter((point) => point[index + 1] !== null);
    const places = known.map((point) => [
      (((point[0] - from) / (to - from || 1)) * WIDTH).toFixed(1),
      (HEIGHT - 1.5 - (point[index + 1] / top) * (HEIGHT - 4)).toFixed(1),
    ]);
    const path = places.length > 1 ? `M${places.map((place) => place.join(" ")).join("L")}` : "";
    set(line, "d", path);
    set(area, "d", path && `${path}L${places.at(-1)[0]} ${HEIGHT}L${places[0][0]} ${HEIGHT}Z`);
  });
}

/**
 * A bar of how full something is, with marks.
 * @returns {{node, update(share: number, marks: number[], label: string, level: string)}} shares are of one; `level` is ok, warning or critical.
 */
export function fullness() {
  const fill = svg("rect", { class: "fill", height: 10, width: 0 });
  const marks = svg("g", { class: "marks" });
  const node = svg("svg", { class: "fullness", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img" }, svg("rect", { class: "rest", width: 1000, height: 10 }), fill, marks);
  return {
    node,
    update(share, at, label, level) {
      set(node, "aria-label", label);
      set(node, "data-level", level);
      set(fill, "width", (Math.min(1, Math.max(share, 0.004)) * 1000).toFixed(1));
      const wanted = at.map((mark) => (mark * 1000).toFixed(1));
      if (marks.dataset.at === wanted.join()) return;
      marks.dataset.at = wanted.join();
      marks.replaceChildren(...wanted.map((x) => svg("line", { x1: x, x2: x, y1: 0, y2: 10, "vector-effect": "non-scaling-stroke" })));
    },
  };
}
