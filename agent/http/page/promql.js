/** A dialog with metric names, and PromQL to copy. */

import { el } from "./dom.js";

let fields = null;

/** Request the table of metrics once. */
export function loadFields() {
  fields ??= fetch("fields").then((answer) => {
    if (!answer.ok) throw new Error(`/fields: HTTP ${answer.status}`);
    return answer.json();
  });
  fields.catch(() => (fields = null)); // try again at the next view
  return fields;
}

const escapeLabel = (value) => String(value).replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");

/** Return a selector: `name{label="value",…}`. */
export function selector(series, labels) {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escapeLabel(value)}"`);
  return pairs.length ? `${series}{${pairs.join(",")}}` : series;
}

/** Return a PromQL query for a field: the rate of a counter, or the 99th percentile of a histogram. */
export function promql(series, kind, labels) {
  if (kind === "counter") return `rate(${selector(series, labels)}[5m])`;
  if (kind === "histogram") return `histogram_quantile(0.99, sum by (le) (rate(${selector(`${series}_bucket`, labels)}[5m])))`;
  return selector(series, labels);
}

/** Copy a text. Without https, a browser has no clipboard for pages, so the text is selected instead. */
async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "Selected: press Ctrl+C";
  }
}

function copyRow(title, text) {
  const code = el("code", {}, text);
  const button = el("button", { type: "button", "aria-label": `Copy ${title}`, click: () => copy(code, button) }, "Copy");
  return el("div", { class: "copy" }, el("h4", {}, title), code, button);
}

function queryOf({ series, kind, labels, promql: special, isSum }) {
  const query = special ?? promql(series, kind, labels);
  return isSum ? `sum(${query})` : query;
}

/**
 * Show series in a dialog.
 * @param title title of the figure
 * @param entries {{series, kind, help, labels, promql, isSum}[]}; an empty `series` is a value that is in records only, `promql` replaces
 *   the query, and `isSum` sums over all VMs
 */
export function showQuery(title, entries) {
  const rows = entries.map((entry) => el("section", {}, el("p", { class: "more" }, entry.help), ...(entry.series ? [copyRow("Series", entry.series), copyRow("PromQL", queryOf(entry))] : [el("p", {}, "This value is in records only; it has no series.")])));
  const dialog = el("dialog", { "aria-labelledby": "query-title", class: "query", close: () => dialog.remove() }, el("form", { method: "dialog", class: "bar" }, el("h2", { id: "query-title" }, title), el("button", { autofocus: true }, "Close")), ...rows);
  document.body.append(dialog);
  dialog.showModal();
}
