/** What happened: events, alerts and changes in VMs' lives as they come, filtered by who looks; samples are not among them. */

import { el, keyed, set, text } from "./dom.js";
import { clock, figure, words } from "./format.js";
import { stream } from "./live.js";

const KEPT = 500;
const SHOWN = 200;
const SEVERITIES = ["debug", "info", "warning", "error", "critical"];
const HIDDEN = new Set(["event", "category", "alert", "fingerprint", "since_timestamp_seconds"]);
const BYTES = new Set(["actual", "write-threshold", "amount-exceeded"]); // of QEMU's own fields, whose names tell no unit

function* figures(data, subject) {
  for (const [name, value] of Object.entries(data)) {
    if (name === "qemu" && value && typeof value === "object") yield* figures(value, subject);
    else if (!HIDDEN.has(name) && ![0, "", null, subject].includes(value)) yield `${words(name).replaceAll("-", " ")} ${figure(BYTES.has(name) ? `${name}_bytes` : name, value)}`;
  }
}

function entry(record) {
  const subject = record.subject ?? "";
  const said = [...figures(record.data, subject)].join(" · ").slice(0, 400);
  const time = Date.parse(record.time) / 1000;
  const type = words(record.type.replace(/^qemu\./, "")).replace(".", " · ");
  return { record, id: record.id, time, type, subject, said, vm: record.vmname ?? record.partitionkey ?? "", rank: SEVERITIES.indexOf(record.severity) };
}

function line(one) {
  const part = (name, said) => el("span", { class: name }, said);
  const more = el("pre", { tabindex: "0", "aria-label": "The record" });
  const node = el(
    "li",
    { "data-severity": one.record.severity },
    el(
      "details",
      { toggle: () => text(more, JSON.stringify(one.record, null, 2)) },
      el("summary", {}, el("time", { datetime: one.record.time }, clock(one.time)), part("severity", one.record.severity), part("who", one.vm), part("type", one.type), part("subject", one.subject), part("what", one.said)),
      more,
    ),
  );
  return { node, update() {} };
}

export class Events {
  #section = document.getElementById("events");
  #severity = document.getElementById("events-severity");
  #vm = document.getElementById("events-vm");
  #text = document.getElementById("events-text");
  #pause = document.getElementById("events-pause");
  #kept = []; // the newest first
  #waiting = []; // come while paused
  #paused = false;
  #only = "";
  #due = false;

  constructor() {
    for (const filter of [this.#severity, this.#vm, this.#text]) filter.addEventListener("input", () => this.#show());
    this.#section.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    this.#pause.addEventListener("click", () => this.#turn());
    const url = () => `records?recent&type=qemu.event.,qemu.alert.,qemu.vm.,qemu.agent.&after=${encodeURIComponent(this.#last)}`;
    stream(url, {
      message: (record, id) => this.#take(record, id),
      missed: ({ records }) => this.#take({ id: `missed-${performance.now()}`, type: "page.missed", severity: "warning", time: new Date().toISOString(), data: { records } }),
    });
  }

  #last = "";

  /** Show one VM's alone, by UUID; empty is all. */
  only(uuid) {
    this.#only = uuid;
    set(this.#vm.parentElement, "hidden", uuid !== "");
    this.#show();
  }

  #take(record, id) {
    if (id) this.#last = id;
    const list = this.#paused ? this.#waiting : this.#kept;
    list.unshift(entry(record));
    list.splice(KEPT);
    if (this.#due) return;
    this.#due = true; // a storm is drawn once a frame
    requestAnimationFrame(() => {
      this.#due = false;
      this.#show();
    });
  }

  #turn() {
    this.#paused = !this.#paused;
    if (!this.#paused) this.#kept = [...this.#waiting.splice(0), ...this.#kept].slice(0, KEPT);
    this.#show();
  }

  #show() {
    set(this.#pause, "aria-pressed", this.#paused);
    text(this.#pause, this.#paused ? `Go on (${this.#waiting.length} new)` : "Pause");
    this.#names();
    const words = this.#text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (one) =>
      one.rank >= Number(this.#severity.value) &&
      (!this.#vm.value || this.#only || one.vm === this.#vm.value) &&
      (!this.#only || one.record.vmuuid === this.#only) &&
      words.every((word) => `${one.vm} ${one.type} ${one.subject} ${one.said}`.toLowerCase().includes(word));
    const shown = this.#kept.filter(fits).slice(0, SHOWN);
    keyed(this.#section.querySelector("ol"), shown, (one) => one.id, line);
    const none = this.#section.querySelector(".none");
    set(none, "hidden", shown.length > 0);
    text(none, this.#kept.length ? "Nothing fits the filters." : "Nothing has happened yet.");
  }

  #names() {
    const names = [...new Set(this.#kept.map((one) => one.vm))].filter(Boolean).sort();
    keyed(this.#vm, ["", ...names], (name) => name, (name) => ({ node: el("option", { value: name }, name || "all"), update() {} }));
  }
}
