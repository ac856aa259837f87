/** A live list of events, alerts and lifecycle records, without samples, with filters. */

import { el, renderList, setAttribute, setText } from "./dom.js";
import { clock, compareNames } from "./format.js";
import { recordFeed } from "./record-feed.js";
import { vmHash } from "./view-address.js";

const MAX_SHOWN = 200;
const SEVERITY_CHOICES = ["all", "info and above", "warning and above", "error and above", "critical"];

/** Create the row of a record. The VM's name is a link beside the details, unless all rows are of one VM. */
function createEventRow(entry, isOfVm) {
  const part = (name, value) => el("span", { class: name }, value);
  const more = el("pre", { tabindex: "0", "aria-label": "Record as JSON" });
  const summary = el("summary", {}, el("time", { datetime: entry.record.time }, clock(entry.time)), part("severity", entry.severity), part("type", entry.type), part("subject", entry.subject), part("what", entry.description));
  const details = el("details", { toggle: () => setText(more, JSON.stringify(entry.record, null, 2)) }, summary, more);
  const isLink = entry.uuid && !isOfVm;
  const who = el(isLink ? "a" : "span", { class: "who", href: isLink ? vmHash(entry.uuid) : undefined, title: entry.vm || undefined }, entry.vm);
  return { node: el("li", { "data-severity": entry.severity }, who, details), update() {} };
}

export class EventList {
  node;
  #uuid = "";
  #isPaused = false;
  #pausedAt = []; // what is shown while paused
  #severity = el("select", { id: "events-severity", input: () => this.render() }, ...SEVERITY_CHOICES.map((text, rank) => el("option", { value: rank }, text)));
  #vm = el("select", { id: "events-vm", input: () => this.render() });
  #text = el("input", { id: "events-text", type: "search", autocomplete: "off", spellcheck: "false", input: () => this.render() });
  #pause = el("button", { id: "events-pause", type: "button", "aria-pressed": "false", click: () => this.#togglePause() }, "Pause");
  #list = el("ol", { class: "events", reversed: true });
  #none = el("p", { class: "none" });
  #vmLabel = el("label", {}, "VM ", this.#vm);
  #listener = () => this.render();

  constructor() {
    const filters = el("form", { class: "filters", "aria-label": "Filter events", submit: (event) => event.preventDefault() }, el("label", {}, "Severity ", this.#severity), this.#vmLabel, el("label", {}, "Text ", this.#text), this.#pause);
    this.node = el("section", { id: "events", "aria-labelledby": "events-title" }, el("div", { class: "bar" }, el("h2", { id: "events-title" }, "Events"), filters), this.#list, this.#none);
  }

  /** Show the events of the VM with this UUID, or of all VMs for an empty UUID, until `close` is called. */
  open(uuid = "") {
    this.#uuid = uuid;
    setAttribute(this.#vmLabel, "hidden", uuid !== "");
    recordFeed().listen(this.#listener);
    this.render();
  }

  close() {
    recordFeed().unlisten(this.#listener);
  }

  #togglePause() {
    this.#isPaused = !this.#isPaused;
    this.#pausedAt = [...recordFeed().kept];
    this.render();
  }

  render() {
    const { kept } = recordFeed();
    const entries = this.#isPaused ? this.#pausedAt : kept;
    setAttribute(this.#pause, "aria-pressed", this.#isPaused);
    const newest = kept.indexOf(entries[0]);
    setText(this.#pause, this.#isPaused ? `Resume (${newest < 0 ? kept.length : newest} new)` : "Pause");
    this.#updateVmFilter(entries);
    const words = this.#text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (entry) =>
      entry.rank >= Number(this.#severity.value) &&
      (!this.#vm.value || this.#uuid || entry.vm === this.#vm.value) &&
      (!this.#uuid || entry.uuid === this.#uuid) &&
      words.every((word) => `${entry.vm} ${entry.type} ${entry.subject} ${entry.description}`.toLowerCase().includes(word));
    const shown = entries.filter(matches).slice(0, MAX_SHOWN);
    renderList(this.#list, shown, (entry) => entry.id, (entry) => createEventRow(entry, this.#uuid !== ""));
    setAttribute(this.#none, "hidden", shown.length > 0);
    const isFiltered = words.length > 0 || this.#severity.value !== "0" || this.#vm.value;
    setText(this.#none, isFiltered && entries.length ? "No event matches the filters." : "No events yet.");
  }

  #updateVmFilter(entries) {
    const names = [...new Set(entries.map((entry) => entry.vm))].filter(Boolean).sort(compareNames);
    renderList(this.#vm, ["", ...names], (name) => name, (name) => ({ node: el("option", { value: name }, name || "all"), update() {} }));
  }
}
