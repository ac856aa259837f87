/** The detail section: the gauges of one VM, and a table for each metric family of this VM. */

import { el, renderList, setAttribute, setText } from "./dom.js";
import { clock, fieldName, fieldRate, fieldValue } from "./format.js";
import { createGauges, stateOf } from "./vms.js";

const TITLES = { block: "Disks", block_backing: "Backing layers", block_layer: "Layers", guest_memory: "Memory reported by the guest", vcpu: "vCPUs", iothread: "I/O threads", process: "QEMU process", cgroup: "cgroup", net: "Network", job: "Jobs" };

const familyTitle = (name) => TITLES[name] ?? fieldName(name)[0].toUpperCase() + fieldName(name).slice(1);

/** Create the table of a metric family: a row for each field, a column for each subject. Rows in which all values are zero can be hidden. */
function createFamilyTable() {
  const [head, body] = [el("tr", { role: "row" }), el("tbody", { role: "rowgroup" })];
  const [heading, help] = [el("h3"), el("p", { class: "more" })];
  const table = el("table", { class: "family", role: "table" }, el("thead", { role: "rowgroup" }, head), body);
  const box = el("div", { class: "wide", tabindex: "0", role: "region" }, table);
  return {
    node: el("section", { class: "card" }, heading, help, box),
    update({ family: current, showZeros }) {
      setText(heading, familyTitle(current.name));
      setAttribute(box, "aria-label", familyTitle(current.name));
      setText(help, `${current.help} (${current.source})`);
      const columns = current.subjects.map((subject) => subject.labels.join(" ")); // no labels for the VM as a whole
      renderList(head, ["", ...columns.map((name, index) => ({ name, index }))], (column) => column.index ?? "", () => {
        const node = el("th", { role: "columnheader", scope: "col" });
        return { node, update: (column) => setText(node, column === "" ? "Field" : column.name || "Value") };
      });
      const isZero = (field) => field.kind === "detail" || current.subjects.every(({ values }) => [0, "", undefined].includes(values[field.name]));
      const fields = current.fields.filter((field) => showZeros || !isZero(field));
      renderList(body, fields, (field) => `${field.name} ${columns.length}`, (field) => createFieldRow(field, columns.length));
      for (const field of fields) updateFieldRow(body, current, field);
    },
  };
}

const cellsOfRow = new WeakMap();

function createFieldRow(field, count) {
  const cells = Array.from({ length: count }, () => {
    const [value, more] = [el("span", { class: "value" }), el("span", { class: "more" })];
    return { value, more, node: el("td", { role: "cell" }, value, more) };
  });
  const node = el("tr", { role: "row", "data-field": field.name }, el("th", { role: "rowheader", scope: "row", title: field.help }, fieldName(field.name)), ...cells.map((cell) => cell.node));
  cellsOfRow.set(node, cells);
  return { node, update() {} };
}

function updateFieldRow(body, family, field) {
  const row = [...body.children].find((node) => node.dataset.field === field.name);
  cellsOfRow.get(row).forEach(({ value, more }, index) => {
    const subject = family.subjects[index];
    const fieldContent = subject.values[field.name];
    setText(value, fieldContent === undefined ? "" : fieldValue(field.name, fieldContent));
    setText(more, subject.rates[field.name] ? fieldRate(field.name, subject.rates[field.name]) : "");
  });
}

/** Return the facts about the inside of a guest, by title. */
function guestFacts(guest) {
  if (!guest) return {};
  const { agent, reason, frozen, hostname, system, kernel, addresses } = guest;
  const state = [agent, reason, frozen && "file systems frozen"].filter(Boolean).join(": ");
  return { "Guest agent": state, Guest: [hostname, system, kernel].filter(Boolean).join(" · "), Addresses: (addresses ?? []).join(", ") };
}

/** Return whether a family has values that other parts of the page do not show. */
const isShown = ({ name, subjects }) => !["runstate", "block_space"].includes(name) && !(name === "migration" && subjects[0].values.status === "none");

export class DetailSection {
  #section = document.getElementById("detail");
  #families = document.getElementById("families");
  #showZeros = document.getElementById("show-zeros");
  #parts = null;
  #host = null;

  constructor() {
    this.#showZeros.addEventListener("change", () => this.update(this.#host));
  }

  /** Show a VM; an empty UUID hides the section. */
  open(uuid) {
    this.uuid = uuid;
    this.#section.replaceChildren();
    setAttribute(this.#section, "hidden", !uuid);
    this.#parts = uuid ? this.#createHeader() : null;
  }

  #createHeader() {
    const name = el("h2", { id: "detail-title", tabindex: "-1" });
    const [state, reason] = [el("span", { class: "state" }), el("span", { class: "more" })];
    const facts = el("dl", { class: "facts" });
    const vmGauges = createGauges();
    const titled = { CPU: vmGauges.cpu, "Disk I/O": vmGauges.io, Memory: vmGauges.memory };
    const cards = Object.entries(titled).map(([label, part]) => el("div", { class: "card gauge" }, el("h3", {}, label), el("div", { class: "figures" }, part.value, part.more), part.line.node));
    const back = el("p", {}, el("a", { href: "#/" }, "← All VMs"));
    this.#section.append(back, el("div", { class: "title" }, name, state, reason), facts, el("div", { class: "cards" }, ...cards));
    return { name, state, reason, facts, vmGauges, cards };
  }

  update(host) {
    this.#host = host;
    const vm = host?.vms.get(this.uuid);
    setAttribute(this.#families, "hidden", !this.#parts || !vm);
    if (!this.#parts) return;
    const { name, state, reason, facts, vmGauges, cards } = this.#parts;
    setText(name, vm?.name ?? (host.agent ? "This VM is gone" : ""));
    const { word, look } = vm ? stateOf(vm) : { word: host.agent ? "gone" : "", look: "idle" };
    setText(state, word);
    setAttribute(state, "data-look", look);
    setText(reason, vm?.reason ?? "");
    for (const part of [facts, ...cards]) setAttribute(part, "hidden", !vm);
    if (!vm) return;
    const identity = { UUID: vm.uuid, Monitor: vm.monitor, QEMU: vm.qemu, "Last response": vm.last_response ? clock(vm.last_response) : "", ...guestFacts(vm.guest), "Collectors off": (vm.degraded ?? []).map(({ collector, cause }) => `${collector}: ${cause}`).join("; ") };
    renderList(facts, Object.entries(identity).filter(([, value]) => value), ([key]) => key, ([key]) => {
      const value = el("dd");
      return { node: el("div", {}, el("dt", {}, key), value), update: ([, current]) => setText(value, current) };
    });
    vmGauges.update(vm, host.history.get(vm.uuid) ?? []);
    const isKnown = [vm.now?.cpu !== undefined, vm.now?.read !== undefined || vm.now?.write !== undefined, vm.memory !== undefined];
    cards.forEach((card, index) => setAttribute(card, "hidden", !isKnown[index]));
    const families = host.detail?.uuid === vm.uuid ? host.detail.families.filter(isShown) : [];
    renderList(this.#families.querySelector(".families"), families.map((known) => ({ family: known, showZeros: this.#showZeros.checked })), (item) => item.family.name, createFamilyTable);
  }
}
