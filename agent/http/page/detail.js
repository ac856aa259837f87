/** One VM in detail: its gauges, and every family of figures that it has, a table each. */

import { el, keyed, set, text } from "./dom.js";
import { clock, figure, rate, words } from "./format.js";
import { gauges, stateOf } from "./vms.js";

const TITLES = { block: "Disks", block_backing: "Backing layers", block_layer: "Layers", guest_memory: "Memory, as the guest says", vcpu: "vCPUs", iothread: "I/O threads", process: "Its process", cgroup: "Its cgroup", net: "Network", job: "Jobs" };

const title = (name) => TITLES[name] ?? words(name)[0].toUpperCase() + words(name).slice(1);

/** A family as a table: a row a field, a column a subject. Fields that are zero for all are left for who asks for them. */
function family() {
  const [head, body] = [el("tr", { role: "row" }), el("tbody", { role: "rowgroup" })];
  const [heading, help] = [el("h3"), el("p", { class: "more" })];
  const table = el("table", { class: "family", role: "table" }, el("thead", { role: "rowgroup" }, head), body);
  const box = el("div", { class: "wide", tabindex: "0", role: "region" }, table);
  return {
    node: el("section", { class: "card" }, heading, help, box),
    update({ family: now, zeros }) {
      text(heading, title(now.name));
      set(box, "aria-label", title(now.name));
      text(help, `${now.help} (${now.source})`);
      const columns = now.subjects.map((subject) => subject.labels.join(" ")); // none for the VM as a whole
      keyed(head, ["", ...columns.map((name, index) => ({ name, index }))], (one) => one.index ?? "", () => {
        const node = el("th", { role: "columnheader", scope: "col" });
        return { node, update: (one) => text(node, one === "" ? "Figure" : one.name || "Value") };
      });
      const nothing = (field) => field.kind === "detail" || now.subjects.every(({ values }) => [0, "", undefined].includes(values[field.name]));
      const fields = now.fields.filter((field) => zeros || !nothing(field));
      keyed(body, fields, (field) => `${field.name} ${columns.length}`, (field) => line(field, columns.length));
      for (const field of fields) fill(body, now, field);
    },
  };
}

const lines = new WeakMap();

function line(field, count) {
  const cells = Array.from({ length: count }, () => {
    const [value, more] = [el("span", { class: "value" }), el("span", { class: "more" })];
    return { value, more, node: el("td", { role: "cell" }, value, more) };
  });
  const node = el("tr", { role: "row", "data-field": field.name }, el("th", { role: "rowheader", scope: "row", title: field.help }, words(field.name)), ...cells.map((one) => one.node));
  lines.set(node, cells);
  return { node, update() {} };
}

function fill(body, now, field) {
  const row = [...body.children].find((node) => node.dataset.field === field.name);
  lines.get(row).forEach(({ value, more }, index) => {
    const subject = now.subjects[index];
    const said = subject.values[field.name];
    text(value, said === undefined ? "" : figure(field.name, said));
    text(more, subject.rates[field.name] ? rate(field.name, subject.rates[field.name]) : "");
  });
}

/** Whether a family says more than the rest of the page does. */
const tells = ({ name, subjects }) => !["runstate", "block_space"].includes(name) && !(name === "migration" && subjects[0].values.status === "none");

export class Detail {
  #section = document.getElementById("detail");
  #families = document.getElementById("families");
  #zeros = document.getElementById("zeros");
  #parts = null;
  #host = null;

  constructor() {
    this.#zeros.addEventListener("change", () => this.update(this.#host));
  }

  /** Show a VM, or with an empty UUID nothing. */
  open(uuid) {
    this.uuid = uuid;
    this.#section.replaceChildren();
    set(this.#section, "hidden", !uuid);
    this.#parts = uuid ? this.#made() : null;
  }

  #made() {
    const name = el("h2", { id: "detail-title", tabindex: "-1" });
    const [state, reason] = [el("span", { class: "state" }), el("span", { class: "more" })];
    const facts = el("dl", { class: "facts" });
    const glance = gauges();
    const named = { CPU: glance.cpu, "Disk I/O": glance.io, Memory: glance.memory };
    const cards = Object.entries(named).map(([label, part]) => el("div", { class: "card gauge" }, el("h3", {}, label), el("div", { class: "figures" }, part.value, part.more), part.line.node));
    const back = el("p", {}, el("a", { href: "#/" }, "← All VMs"));
    this.#section.append(back, el("div", { class: "title" }, name, state, reason), facts, el("div", { class: "cards" }, ...cards));
    return { name, state, reason, facts, glance, cards };
  }

  update(host) {
    this.#host = host;
    const vm = host?.vms.get(this.uuid);
    set(this.#families, "hidden", !this.#parts || !vm);
    if (!this.#parts) return;
    const { name, state, reason, facts, glance, cards } = this.#parts;
    text(name, vm?.name ?? (host.agent ? "This VM is gone" : ""));
    const { word, look } = vm ? stateOf(vm) : { word: host.agent ? "gone" : "", look: "idle" };
    text(state, word);
    set(state, "data-look", look);
    text(reason, vm?.reason ?? "");
    for (const part of [facts, ...cards]) set(part, "hidden", !vm);
    if (!vm) return;
    const said = { UUID: vm.uuid, Monitor: vm.monitor, QEMU: vm.qemu, "Last answer": vm.last_response ? clock(vm.last_response) : "" };
    keyed(facts, Object.entries(said).filter(([, value]) => value), ([key]) => key, ([key]) => {
      const value = el("dd");
      return { node: el("div", {}, el("dt", {}, key), value), update: ([, now]) => text(value, now) };
    });
    glance.update(vm, host.history.get(vm.uuid) ?? []);
    const there = [vm.now?.cpu !== undefined, vm.now?.read !== undefined || vm.now?.write !== undefined, vm.memory !== undefined];
    cards.forEach((card, index) => set(card, "hidden", !there[index]));
    const found = host.detail?.uuid === vm.uuid ? host.detail.families.filter(tells) : [];
    keyed(this.#families.querySelector(".families"), found.map((one) => ({ family: one, zeros: this.#zeros.checked })), (one) => one.family.name, family);
  }
}
