/** Graphs over time: axes with units, values at the pointer, and marks of events and alerts. Graphs of one view share the pointer's time. */

import { el, setAttribute, setText, svg } from "./dom.js";
import { clock } from "./format.js";
import { nearest, runsOf, timeTicks, valueTicks } from "./axis-ticks.js";

const HEIGHT = 150;
const MARGIN = { left: 64, right: 10, top: 8, bottom: 20 };
const MARK_PIXELS = 6;

/** Creates graphs that share a pointer. */
export class GraphGroup {
  #graphs = [];

  /**
   * Create a graph.
   * @param spec {{title, series: {column, label, style}[], format: value => string, isBinary, top, onQuery}}
   *   `column` is the name of a column of the history, `top` the lowest upper end of the axis, `onQuery` shows the series' names
   */
  add(spec) {
    const graph = new Graph(spec, (time) => this.#graphs.forEach((other) => other.point(time)));
    this.#graphs.push(graph);
    return graph;
  }

  /** Render all graphs. `history` is {columns, points, from, to}; `marks` are {time, text, look}[]. */
  update(history, marks) {
    for (const graph of this.#graphs) graph.update(history, marks);
  }
}

class Graph {
  node;
  #spec;
  #onPoint;
  #svg;
  #values;
  #time = el("span", { class: "more" });
  #spoken = el("span", { class: "hidden", "aria-live": "polite" });
  #content = svg("g", {});
  #cursor = svg("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
  #data = { columns: [], points: [], from: 0, to: 1 };
  #marks = [];
  #pointed = null;

  constructor(spec, onPoint) {
    [this.#spec, this.#onPoint] = [spec, onPoint];
    this.#values = spec.series.map(() => el("b", {}));
    const legend = spec.series.map(({ label, style }, index) => el("span", { class: `key ${style}` }, `${label} `, this.#values[index]));
    this.#svg = svg("svg", { class: "graph", height: HEIGHT, role: "img", tabindex: "0", "aria-label": this.#describe([]) }, this.#content, this.#cursor);
    const query = el("button", { type: "button", class: "query", "aria-label": `PromQL of ${spec.title}`, click: () => spec.onQuery() }, "PromQL");
    this.node = el("figure", { class: "card" }, el("figcaption", {}, el("h3", {}, spec.title), this.#time, query, el("span", { class: "legend" }, ...legend)), this.#svg, this.#spoken);
    this.#svg.addEventListener("pointermove", (event) => this.#onPoint(this.#timeAt(event.offsetX)));
    this.#svg.addEventListener("pointerleave", () => this.#onPoint(null));
    this.#svg.addEventListener("blur", () => this.#onPoint(null));
    this.#svg.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.#draw()).observe(this.#svg);
  }

  get #width() {
    return this.#svg.clientWidth || 300;
  }

  #x(time) {
    const { from, to } = this.#data;
    return MARGIN.left + ((time - from) / (to - from)) * (this.#width - MARGIN.left - MARGIN.right);
  }

  #timeAt(x) {
    const { from, to } = this.#data;
    return from + ((x - MARGIN.left) / (this.#width - MARGIN.left - MARGIN.right)) * (to - from);
  }

  #onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const { points } = this.#data;
    if (step === undefined || !points.length) return;
    event.preventDefault();
    const at = nearest(points, this.#pointed ?? points.at(-1)[0]) + (this.#pointed === null ? 0 : step);
    this.#onPoint(points[Math.min(Math.max(at, 0), points.length - 1)][0]);
    setText(this.#spoken, `${this.#time.textContent}: ${this.#spec.series.map(({ label }, index) => `${label} ${this.#values[index].textContent}`).join(", ")}`);
  }

  /** Show the values at a time. If the time is null, show the values of the last point. */
  point(time) {
    this.#pointed = time;
    const { points, columns } = this.#data;
    const at = time === null ? points.length - 1 : nearest(points, time);
    const point = points[at];
    this.#spec.series.forEach(({ column }, index) => {
      const value = point?.[columns.indexOf(column) + 1];
      setText(this.#values[index], value === null || value === undefined ? "–" : this.#spec.format(value));
    });
    const mark = time === null ? undefined : this.#marks.find((known) => Math.abs(this.#x(known.time) - this.#x(time)) < MARK_PIXELS);
    setText(this.#time, time === null || !point ? "" : [clock(point[0]), mark?.text].filter(Boolean).join(" · "));
    setAttribute(this.#cursor, "visibility", time === null || !point ? "hidden" : undefined);
    if (time !== null && point) for (const name of ["x1", "x2"]) setAttribute(this.#cursor, name, this.#x(point[0]).toFixed(1));
  }

  update(history, marks) {
    [this.#data, this.#marks] = [history, marks.filter(({ time }) => time >= history.from && time <= history.to)];
    this.#draw();
  }

  #draw() {
    const { columns, points, from, to } = this.#data;
    const lines = this.#spec.series.map(({ column, style }) => ({ style, index: columns.indexOf(column) + 1 })).filter(({ index }) => index > 0);
    const known = lines.flatMap(({ index }) => points.map((point) => point[index])).filter((value) => value !== null && value !== undefined);
    setAttribute(this.node, "hidden", points.length > 0 && known.length === 0);
    const ticks = valueTicks(Math.max(this.#spec.top ?? 0, ...known) || 1, this.#spec.isBinary);
    const y = (value) => HEIGHT - MARGIN.bottom - (value / ticks.at(-1)) * (HEIGHT - MARGIN.bottom - MARGIN.top);
    setAttribute(this.#svg, "aria-label", this.#describe(known));
    this.#content.replaceChildren(
      ...ticks.map((value) => svg("g", {}, svg("line", { class: "rule", x1: MARGIN.left, x2: this.#width - MARGIN.right, y1: y(value), y2: y(value) }), svg("text", { class: "tick end", x: MARGIN.left - 6, y: y(value) + 4 }, this.#spec.format(value)))),
      ...timeTicks(from, to, Math.max(2, Math.floor(this.#width / 110))).filter((time) => this.#x(time) < this.#width - 20).map((time) => svg("text", { class: "tick middle", x: this.#x(time), y: HEIGHT - 5 }, clock(time).slice(-8, -3))),
      ...lines.flatMap(({ index, style }) => this.#line(runsOf(points, index), index, style, y)),
      ...this.#marks.map((mark) => this.#mark(mark)),
    );
    this.point(this.#pointed);
  }

  #line(runs, index, style, y) {
    return runs.flatMap((run) => {
      const path = run.map((point) => `${this.#x(point[0]).toFixed(1)} ${y(point[index]).toFixed(1)}`);
      const [first, last] = [run[0], run.at(-1)].map((point) => this.#x(point[0]).toFixed(1));
      if (run.length === 1) return [svg("circle", { class: `dot ${style}`, cx: first, cy: y(run[0][index]).toFixed(1), r: 2 })];
      const base = HEIGHT - MARGIN.bottom;
      return [svg("path", { class: `area ${style}`, d: `M${path.join("L")}L${last} ${base}L${first} ${base}Z` }), svg("path", { class: `line ${style}`, d: `M${path.join("L")}` })];
    });
  }

  #mark({ time, text, look }) {
    const x = this.#x(time).toFixed(1);
    return svg("g", { class: "mark", "data-look": look }, svg("title", {}, `${clock(time)} ${text}`), svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }), svg("path", { d: `M${x} ${MARGIN.top + 5}l-4 -7h8z` }));
  }

  #describe(known) {
    if (!known.length) return `${this.#spec.title}: no values yet`;
    const { format } = this.#spec;
    const minutes = Math.round((this.#data.to - this.#data.from) / 60);
    return `${this.#spec.title} in the last ${minutes} minutes: lowest ${format(Math.min(...known))}, highest ${format(Math.max(...known))}. Arrow keys show single values.`;
  }
}
