/** A bar of used space with marks at the alert levels. */

import { setAttribute, svg } from "./dom.js";

/**
 * Create a bar of used space, with a mark at each alert level.
 * @returns {{node, update(share: number, marks: number[], label: string, level: string)}} `share` and `marks` are from 0 to 1; `level` is ok, warning or critical.
 */
export function createUsageBar() {
  const fill = svg("rect", { class: "fill", height: 10, width: 0 });
  const marks = svg("g", { class: "marks" });
  const node = svg("svg", { class: "fullness", viewBox: "0 0 1000 10", preserveAspectRatio: "none" }, svg("rect", { class: "rest", width: 1000, height: 10 }), fill, marks);
  return {
    node,
    update(share, positions, label, level) {
      setAttribute(node, "aria-label", label);
      setAttribute(node, "role", "img"); // not before it has a name
      setAttribute(node, "data-level", level);
      setAttribute(fill, "width", (Math.min(1, Math.max(share, 0.004)) * 1000).toFixed(1));
      const coordinates = positions.map((mark) => (mark * 1000).toFixed(1));
      if (marks.dataset.positions === coordinates.join()) return;
      marks.dataset.positions = coordinates.join();
      marks.replaceChildren(...coordinates.map((x) => svg("line", { x1: x, x2: x, y1: 0, y2: 10, "vector-effect": "non-scaling-stroke" })));
    },
  };
}
