/** The table of VMs with state, CPU, disk I/O and memory. The user can sort and filter the table. */

import { cell, el, renderList, setAttribute, setText } from "./dom.js";
import { createSparkline } from "./draw.js";
import { bytes, compareNames, number } from "./format.js";

/** Return the state of a VM as a word, and the look of this word: good, idle, warning or bad. */
export function stateOf(vm) {
  if (vm.state !== "up") return { word: vm.state, look: "bad" };
  const word = vm.status ?? "up";
  if (vm.running ?? true) return { word, look: "good" };
  const bad = ["io-error", "internal-error", "guest-panicked", "watchdog", "shutdown"].includes(word);
  return { word, look: bad ? "bad" : "idle" };
}

const currentValue = (vm, name) => vm.now?.[name];
const sumOfKnown = (...values) => (values.every((value) => value === undefined) ? undefined : values.reduce((a, b) => (a ?? 0) + (b ?? 0), 0));

const COLUMNS = [
  { name: "VM", sort: () => 0, isKnown: () => true },
  { name: "State", sort: (vm) => `${stateOf(vm).look} ${stateOf(vm).word}`, isKnown: () => true },
  { name: "CPU", sort: (vm) => -(currentValue(vm, "cpu") ?? -1), isKnown: (vm) => currentValue(vm, "cpu") !== undefined },
  { name: "Disk I/O", sort: (vm) => -(sumOfKnown(currentValue(vm, "read"), currentValue(vm, "write")) ?? -1), isKnown: (vm) => currentValue(vm, "write") !== undefined || currentValue(vm, "read") !== undefined },
  { name: "Memory", sort: (vm) => -(vm.memory?.used_bytes ?? vm.memory?.resident_bytes ?? vm.memory?.total_bytes ?? -1), isKnown: (vm) => vm.memory !== undefined },
];

const pickColumns = (points, ...columns) => points.map((point) => [point[0], ...columns.map((column) => point[column])]);

/** Create the elements for CPU, disk I/O and memory of a VM, each with a sparkline. The table and the detail section use them. */
export function createGauges() {
  const cpu = { value: el("span", { class: "value" }), more: el("span", { class: "more" }), line: createSparkline("cpu") };
  const [read, write] = [el("span"), el("span")];
  const both = [el("abbr", { class: "read", title: "read" }, "R"), " ", read, "  ", el("abbr", { class: "write", title: "written" }, "W"), " ", write];
  const io = { read, write, value: el("span", { class: "value" }, ...both), more: el("span", { class: "more" }), line: createSparkline("read", "write") };
  const memory = { value: el("span", { class: "value" }), more: el("span", { class: "more" }), line: createSparkline("memory") };
  const update = (vm, points) => {
    const used = currentValue(vm, "cpu");
    setText(cpu.value, used === undefined ? "" : `${number(used * 100)} %`);
    setText(cpu.more, used === undefined || !vm.vcpus ? "" : `of ${vm.vcpus} vCPU${vm.vcpus > 1 ? "s" : ""}`);
    cpu.line.update(pickColumns(points, 1), vm.vcpus || 1, "CPU in the last minutes");
    const [read, write] = [currentValue(vm, "read"), currentValue(vm, "write")];
    const unknown = sumOfKnown(read, write) === undefined;
    setText(io.read, unknown ? "" : `${bytes(read ?? 0)}/s`);
    setText(io.write, unknown ? "" : `${bytes(write ?? 0)}/s`);
    setAttribute(io.value, "hidden", unknown);
    setText(io.more, unknown ? "" : `${number(sumOfKnown(currentValue(vm, "reads"), currentValue(vm, "writes")))} IOPS`);
    io.line.update(pickColumns(points, 2, 3), 1024, "Bytes read and written in the last minutes");
    const { used_bytes: guestUsed, total_bytes: total, resident_bytes: resident } = vm.memory ?? {};
    const shown = [guestUsed, resident, total].find((size) => size !== undefined);
    setText(memory.value, shown === undefined ? "" : bytes(shown));
    setText(memory.more, guestUsed !== undefined ? `of ${bytes(total)}` : resident !== undefined ? "resident" : "");
    memory.line.update(pickColumns(points, 6), total ?? 1, "Memory in use in the last minutes");
  };
  return { cpu, io, memory, update };
}

const gaugeElement = (part) => el("div", { class: "gauge" }, el("div", { class: "figures" }, part.value, part.more), part.line.node);

function createVmRow(vm) {
  const link = el("a", { href: `#/vm/${vm.uuid}` });
  const state = el("span", { class: "state" });
  const reason = el("span", { class: "more" });
  const parts = createGauges();
  const cells = [
    el("th", { role: "rowheader", scope: "row" }, link),
    cell("State", state, reason),
    cell("CPU", gaugeElement(parts.cpu)),
    cell("Disk I/O", gaugeElement(parts.io)),
    cell("Memory", gaugeElement(parts.memory)),
  ];
  return {
    node: el("tr", { role: "row" }, ...cells),
    update({ vm, points, alerts, visible }) {
      const { word, look } = stateOf(vm);
      setText(link, vm.name);
      setText(state, word);
      setAttribute(state, "data-look", look);
      const off = vm.degraded?.length ? `collectors off: ${vm.degraded.map(({ collector }) => collector).join(", ")}` : "";
      const count = alerts ? `${alerts} alert${alerts > 1 ? "s" : ""}` : "";
      setText(reason, vm.reason || [count, off].filter(Boolean).join(" · "));
      setAttribute(reason, "data-look", vm.reason ? undefined : alerts ? "bad" : off ? "warning" : undefined);
      parts.update(vm, points);
      COLUMNS.forEach((column, index) => {
        setAttribute(cells[index], "hidden", !visible[index]);
        cells[index].classList.toggle("empty", !column.isKnown(vm));
      });
    },
  };
}

/** The section with the table of VMs. `update(host)` renders the present state. */
export class VmsSection {
  #section = document.getElementById("vms");
  #filter = document.getElementById("vms-filter");
  #sort = { index: 0, descending: false };
  #host = null;

  constructor() {
    this.#filter.addEventListener("input", () => this.#host && this.update(this.#host));
    const head = this.#section.querySelector("thead tr");
    this.heads = COLUMNS.map((column, index) => {
      const button = el("button", { type: "button", click: () => this.#sortBy(index) }, column.name);
      const head = el("th", { role: "columnheader", scope: "col" }, button);
      return head;
    });
    head.append(...this.heads);
  }

  #sortBy(index) {
    this.#sort = { index, descending: this.#sort.index === index && !this.#sort.descending };
    this.update(this.#host);
  }

  update(host) {
    this.#host = host;
    const all = [...host.vms.values()];
    const visible = COLUMNS.map((column) => all.some(column.isKnown));
    const words = this.#filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (vm) => words.every((word) => `${vm.name} ${vm.uuid} ${stateOf(vm).word}`.toLowerCase().includes(word));
    const sortKey = COLUMNS[this.#sort.index].sort;
    const shown = all.filter(matches).sort((a, b) => compare(sortKey(a), sortKey(b)) || compareNames(a.name, b.name) || compare(a.uuid, b.uuid));
    if (this.#sort.descending) shown.reverse();
    this.heads.forEach((head, index) => {
      setAttribute(head, "hidden", !visible[index]);
      setAttribute(head, "aria-sort", index !== this.#sort.index ? undefined : this.#sort.descending ? "descending" : "ascending");
    });
    const alerts = Map.groupBy(host.alerts, (alert) => alert.uuid);
    renderList(
      this.#section.querySelector("tbody"),
      shown.map((vm) => ({ vm, points: host.history.get(vm.uuid) ?? [], alerts: alerts.get(vm.uuid)?.length, visible })),
      (item) => item.vm.uuid,
      (item) => createVmRow(item.vm),
    );
    setAttribute(this.#section.querySelector(".none"), "hidden", shown.length > 0);
  }
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
