/** The events section: a live list of events, alerts and lifecycle records, with filters. It shows no samples. */

import { el, renderList, setAttribute, setText } from "./dom.js";
import { clock, compareNames, fieldName, fieldValue } from "./format.js";
import { openStream } from "./live.js";

const MAX_KEPT = 500;
const MAX_SHOWN = 200;
const SEVERITIES = { DEBUG: "debug", INFO: "info", WARN: "warning", ERROR: "error", FATAL: "critical" };
const RANKS = Object.keys(SEVERITIES);
const HIDDEN_FIELDS = new Set(["event", "category", "alert", "fingerprint", "since_timestamp_seconds"]);
const BYTE_FIELDS = new Set(["actual", "write-threshold", "amount-exceeded"]); // QEMU's own fields, whose names have no unit

function* describeFields(data, subject) {
  for (const [name, value] of Object.entries(data)) {
    if (name === "qemu" && value && typeof value === "object") yield* describeFields(value, subject);
    else if (!HIDDEN_FIELDS.has(name) && ![0, "", null, subject].includes(value)) yield `${fieldName(name).replaceAll("-", " ")} ${fieldValue(BYTE_FIELDS.has(name) ? `${name}_bytes` : name, value)}`;
  }
}

function toEntry(record) {
  const subject = record.subject ?? "";
  const description = [...describeFields(record.data, subject)].join(" · ").slice(0, 400);
  const time = Date.parse(record.time) / 1000;
  const type = fieldName(record.type.replace(/^qemu\./, "")).replace(".", " · ");
  return { record, id: record.id, time, type, subject, description, vm: record.vmname ?? record.partitionkey ?? "", severity: SEVERITIES[record.severitytext] ?? "", rank: RANKS.indexOf(record.severitytext) };
}

function createEventRow(entry) {
  const part = (name, value) => el("span", { class: name }, value);
  const more = el("pre", { tabindex: "0", "aria-label": "Record as JSON" });
  const node = el(
    "li",
    { "data-severity": entry.severity },
    el(
      "details",
      { toggle: () => setText(more, JSON.stringify(entry.record, null, 2)) },
      el("summary", {}, el("time", { datetime: entry.record.time }, clock(entry.time)), part("severity", entry.severity), part("who", entry.vm), part("type", entry.type), part("subject", entry.subject), part("what", entry.description)),
      more,
    ),
  );
  return { node, update() {} };
}

export class EventsSection {
  #section = document.getElementById("events");
  #severity = document.getElementById("events-severity");
  #vm = document.getElementById("events-vm");
  #text = document.getElementById("events-text");
  #pause = document.getElementById("events-pause");
  #kept = []; // newest first
  #waiting = []; // arrived while paused
  #paused = false;
  #onlyUuid = "";
  #renderScheduled = false;

  constructor() {
    for (const filter of [this.#severity, this.#vm, this.#text]) filter.addEventListener("input", () => this.#render());
    this.#section.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    this.#pause.addEventListener("click", () => this.#togglePause());
    const url = () => `records?recent&type=qemu.event.,qemu.alert.,qemu.vm.,qemu.agent.&after=${encodeURIComponent(this.#last)}`;
    openStream(url, {
      message: (record, id) => this.#add(record, id),
      missed: ({ records }) => this.#add({ id: `missed-${performance.now()}`, type: "page.missed", severitytext: "WARN", time: new Date().toISOString(), data: { records } }),
    });
  }

  #last = "";

  /** Show only the events of the VM with this UUID; an empty UUID shows the events of all VMs. */
  showOnly(uuid) {
    this.#onlyUuid = uuid;
    setAttribute(this.#vm.parentElement, "hidden", uuid !== "");
    this.#render();
  }

  #add(record, id) {
    if (id) this.#last = id;
    const list = this.#paused ? this.#waiting : this.#kept;
    list.unshift(toEntry(record));
    list.splice(MAX_KEPT);
    if (this.#renderScheduled) return;
    this.#renderScheduled = true; // a burst of events is rendered once per frame
    requestAnimationFrame(() => {
      this.#renderScheduled = false;
      this.#render();
    });
  }

  #togglePause() {
    this.#paused = !this.#paused;
    if (!this.#paused) this.#kept = [...this.#waiting.splice(0), ...this.#kept].slice(0, MAX_KEPT);
    this.#render();
  }

  #render() {
    setAttribute(this.#pause, "aria-pressed", this.#paused);
    setText(this.#pause, this.#paused ? `Resume (${this.#waiting.length} new)` : "Pause");
    this.#updateVmFilter();
    const words = this.#text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (entry) =>
      entry.rank >= Number(this.#severity.value) &&
      (!this.#vm.value || this.#onlyUuid || entry.vm === this.#vm.value) &&
      (!this.#onlyUuid || entry.record.vmuuid === this.#onlyUuid) &&
      words.every((word) => `${entry.vm} ${entry.type} ${entry.subject} ${entry.description}`.toLowerCase().includes(word));
    const shown = this.#kept.filter(matches).slice(0, MAX_SHOWN);
    renderList(this.#section.querySelector("ol"), shown, (entry) => entry.id, createEventRow);
    const placeholder = this.#section.querySelector(".none");
    setAttribute(placeholder, "hidden", shown.length > 0);
    setText(placeholder, this.#kept.length ? "No event matches the filters." : "No events yet.");
  }

  #updateVmFilter() {
    const names = [...new Set(this.#kept.map((entry) => entry.vm))].filter(Boolean).sort(compareNames);
    renderList(this.#vm, ["", ...names], (name) => name, (name) => ({ node: el("option", { value: name }, name || "all"), update() {} }));
  }
}
