/** All values of a VM: a table for each family of metrics. A click on a field's name shows the metric name and PromQL. */

import { el, renderList, setAttribute, setText } from "./dom.js";
import { fieldName, fieldRate, fieldValue, sentenceCase } from "./format.js";
import { showQuery } from "./promql.js";

const TITLES = { block: "Disks", block_backing: "Backing layers", block_layer: "Layers", guest_memory: "Memory reported by the guest", vcpu: "vCPUs", iothread: "I/O threads", process: "QEMU process", cgroup: "cgroup", net: "Network interfaces", job: "Jobs", kvm: "KVM", kvm_vcpu: "KVM by vCPU", identity: "VM", tpm: "TPM", vnc: "VNC", guest_os: "Guest's operating system" };

const familyTitle = (name) => TITLES[name] ?? sentenceCase(fieldName(name));

/** Create a table: a row for each field, a column for each subject. Rows in which all values are zero can be hidden. */
function createFamilyTable({ name: family }) {
  const [head, body] = [el("tr", { role: "row" }), el("tbody", { role: "rowgroup" })];
  const help = el("p", { class: "more" });
  const title = familyTitle(family);
  const table = el("table", { class: "family", role: "table" }, el("thead", { role: "rowgroup" }, head), body);
  const box = el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": title }, table);
  return {
    node: el("section", { class: "card" }, el("h3", {}, title), help, box),
    update({ subjects, known, showZeros, labels }) {
      setText(help, `${known.help} (${known.source})`);
      const columns = subjects.map(([names], index) => ({ name: names.join(" "), index })); // no names for the VM as a whole
      renderList(head, [{ index: "" }, ...columns], (column) => column.index, () => {
        const node = el("th", { role: "columnheader", scope: "col" });
        return { node, update: (column) => setText(node, column.index === "" ? "Field" : column.name || "Value") };
      });
      const present = new Set(subjects.flatMap(([, values]) => Object.keys(values)));
      const isZero = (name) => known.fields[name][0] === "detail" || subjects.every(([, values]) => [0, "", undefined].includes(values[name]));
      const fields = Object.keys(known.fields).filter((name) => present.has(name) && (showZeros || !isZero(name)));
      const items = fields.map((name) => ({ name, subjects, onQuery: () => queryField(family, known, name, subjects, labels) }));
      renderList(body, items, (item) => `${item.name} ${columns.length}`, (item) => createFieldRow(item, known));
    },
  };
}

function createFieldRow(first, known) {
  let onQuery;
  const cells = first.subjects.map(() => {
    const [value, more] = [el("span", { class: "value" }), el("span", { class: "more" })];
    return { value, more, node: el("td", { role: "cell" }, value, more) };
  });
  const button = el("button", { type: "button", class: "field", title: `${known.fields[first.name][1]} Shows the series.`, click: () => onQuery() }, fieldName(first.name));
  const node = el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, button), ...cells.map((cell) => cell.node));
  return {
    node,
    update(item) {
      onQuery = item.onQuery;
      cells.forEach(({ value, more }, index) => {
        const [, values, rates] = item.subjects[index];
        const content = values[item.name];
        setText(value, content === undefined ? "" : fieldValue(item.name, content));
        setText(more, rates[item.name] ? fieldRate(item.name, rates[item.name]) : "");
      });
    },
  };
}

function queryField(family, known, name, subjects, labels) {
  const [kind, help, series] = known.fields[name];
  const entries = subjects.filter(([, values]) => values[name] !== undefined).map(([names]) => {
    const own = Object.fromEntries(known.labels.map((label, index) => [label, names[index]]));
    const of = names.length ? `${names.join(" ")}: ` : "";
    return { series, kind, help: `${of}${help}`, labels: { ...labels, ...own } };
  });
  showQuery(`${familyTitle(family)}: ${fieldName(name)}`, entries.slice(0, 8));
}

/** A section with the tables of some families. `update(families, fields, labels)` hides a section without values. */
export class FamilyTables {
  node;
  #zeros = el("input", { id: "show-zeros", type: "checkbox", change: () => this.#render() });
  #tables = el("div", { class: "families" });
  #arguments = [new Map(), null, {}];

  constructor() {
    const bar = el("div", { class: "bar" }, el("h2", { id: "families-title" }, "All values"), el("label", {}, this.#zeros, " Show zero values"));
    this.node = el("section", { id: "families", "aria-labelledby": "families-title" }, bar, this.#tables);
  }

  /**
   * @param families Map of the families to show, by name, as the stream has them
   * @param fields the table of metrics; null until it is known
   * @param labels the VM's labels in its series
   */
  update(families, fields, labels) {
    this.#arguments = [families, fields, labels];
    this.#render();
  }

  #render() {
    const [families, fields, labels] = this.#arguments;
    const items = [...families].filter(([name]) => fields?.[name]).map(([name, { subjects }]) => ({ name, subjects, known: fields[name], labels, showZeros: this.#zeros.checked }));
    setAttribute(this.node, "hidden", items.length === 0);
    renderList(this.#tables, items, (item) => item.name, createFamilyTable);
  }
}
