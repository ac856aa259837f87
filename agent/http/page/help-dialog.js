/** The help on keys and on the filter, in a dialog. */

import { el } from "./dom.js";
import { FILTER_HELP } from "./filter.js";

const KEYS = [
  ["/", "filter the table of VMs"],
  ["↑ ↓", "move in the table; also Page Up, Page Down, Home, End"],
  ["Enter", "open the VM"],
  ["Esc", "clear the filter, close a dialog, go back to the table"],
  ["← →", "show single values of a graph that has the focus"],
  ["?", "show this help"],
];

export function openHelp() {
  const table = (rows, name) => el("dl", { class: "keys" }, ...rows.map(([key, meaning]) => el("div", {}, el("dt", {}, el(name, {}, key)), el("dd", {}, meaning))));
  const dialog = el("dialog", { "aria-labelledby": "keys-title", close: () => dialog.remove() }, el("form", { method: "dialog", class: "bar" }, el("h2", { id: "keys-title" }, "Keys"), el("button", { autofocus: true }, "Close")), table(KEYS, "kbd"), el("h3", {}, "Filter"), table(FILTER_HELP, "code"), el("p", { class: "more" }, "A VM has to match every word. The address has the filter, the order and the columns, so a link shows the same table."));
  document.body.append(dialog);
  dialog.showModal();
}
