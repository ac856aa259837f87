/** Small SVG drawings: a sparkline of the last minutes, and a bar of a disk's used space with marks at the alert levels. */

import { setAttribute, svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 28;

/**
 * Create a sparkline of one or two lines.
 * @returns {{node, update(points: [time, ...values][], minTop: number, label: string)}} `minTop` is the smallest value that the top edge stands for.
 */
export function createSparkline(...classes) {
  const lines = classes.map((name) => [svg("path", { class: `area ${name}` }), svg("path", { class: `line ${name}` })]);
  const node = svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, ...lines.flat());
  return { node, update: (points, minTop, label) => drawLines(node, lines, points, minTop, label) };
}

function drawLines(node, lines, points, minTop, label) {
  setAttribute(node, "aria-label", label);
  const [from, to] = [points[0]?.[0] ?? 0, points.at(-1)?.[0] ?? 0];
  const top = Math.max(minTop, ...points.flatMap((point) => point.slice(1)).filter((value) => value !== null));
  lines.forEach(([area, line], index) => {
    const known = points.filter((point) => point[index + 1] !== null);
    const coordinates = known.map((point) => [
      (((point[0] - from) / (to - from || 1)) * WIDTH).toFixed(1),
      (HEIGHT - 1.5 - (point[index + 1] / top) * (HEIGHT - 4)).toFixed(1),
    ]);
    const path = coordinates.length > 1 ? `M${coordinates.map((pair) => pair.join(" ")).join("L")}` : "";
    setAttribute(line, "d", path);
    setAttribute(area, "d", path && `${path}L${coordinates.at(-1)[0]} ${HEIGHT}L${coordinates[0][0]} ${HEIGHT}Z`);
  });
}

/**
 * Create a bar of used space, with a mark at each alert level.
 * @returns {{node, update(share: number, marks: number[], label: string, level: string)}} `share` and `marks` are from 0 to 1; `level` is ok, warning or critical.
 */
export function createUsageBar() {
  const fill = svg("rect", { class: "fill", height: 10, width: 0 });
  const marks = svg("g", { class: "marks" });
  const node = svg("svg", { class: "fullness", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img" }, svg("rect", { class: "rest", width: 1000, height: 10 }), fill, marks);
  return {
    node,
    update(share, positions, label, level) {
      setAttribute(node, "aria-label", label);
      setAttribute(node, "data-level", level);
      setAttribute(fill, "width", (Math.min(1, Math.max(share, 0.004)) * 1000).toFixed(1));
      const coordinates = positions.map((mark) => (mark * 1000).toFixed(1));
      if (marks.dataset.positions === coordinates.join()) return;
      marks.dataset.positions = coordinates.join();
      marks.replaceChildren(...coordinates.map((x) => svg("line", { x1: x, x2: x, y1: 0, y2: 10, "vector-effect": "non-scaling-stroke" })));
    },
  };
}
