/** The view of the agent itself: delivery, queues, monitors. */

import { cell, el, setAttribute, setText } from "./dom.js";
import { bytes, clock, compareNames, duration } from "./format.js";
import { createFactList } from "./fact-list.js";
import { vmHash } from "./view-address.js";
import { createTable } from "./space-tables.js";

/** Return a word for the agent's readiness, as in /readyz, and the colour of the word. Every view lists the problems at its top. */
function healthOf({ unready_reasons: reasons, warnings }) {
  const problems = reasons.length + warnings.length;
  return [`${reasons.length ? "not ready" : "ready"}, ${problems === 1 ? "1 problem" : `${problems || "no"} problems`}`, problems ? "bad" : "good"];
}

function agentFacts(agent) {
  const { sink, journal, queues, monitors } = agent;
  const states = Object.entries(monitors).map(([state, count]) => `${count} ${state}`);
  const waiting = queues.reduce((sum, queue) => sum + queue.records, 0);
  const oldest = Math.max(0, ...queues.map((queue) => queue.oldest_record_age_seconds));
  const dropped = [...agent.dropped.map(({ reason, queue, records }) => [`${reason} (${queue})`, records]), ...Object.entries(agent.events_dropped)].filter(([, count]) => count > 0);
  return [
    ["Health", ...healthOf(agent)],
    ["Version", agent.version],
    ["Monitors", states.join(", ") || "none discovered", Object.keys(monitors).some((state) => state !== "up") ? undefined : "good"],
    ["Sink", sink.error ? `${sink.name}: ${sink.error}` : sink.name, sink.error ? "bad" : "good"],
    journal && ["Journal", journal.error ?? (journal.quarantined ? `${journal.quarantined} damaged files quarantined` : "ok"), journal.error ? "bad" : "good"],
    ["Delivered", `${agent.delivered.toLocaleString("en")} records`],
    ["Waiting", waiting ? `${waiting.toLocaleString("en")} records, oldest ${duration(oldest)}` : "nothing"],
    ["Dropped", dropped.map(([reason, count]) => `${count} ${reason}`).join(", ") || "nothing", dropped.length ? "bad" : "good"],
    agent.reconnects > 0 && ["Sink reconnects", String(agent.reconnects)],
  ].filter(Boolean);
}

function createQueueRow(first) {
  const values = ["Records", "Oldest", "Memory", "Disk"].map((title) => [title, el("span")]);
  return {
    node: el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, first.name), ...values.map(([title, value]) => cell(title, value))),
    update(queue) {
      const texts = [queue.records.toLocaleString("en"), queue.records ? duration(queue.oldest_record_age_seconds) : "–", bytes(queue.memory_bytes ?? 0), bytes(queue.disk_bytes ?? 0)];
      values.forEach(([, value], index) => setText(value, texts[index]));
    },
  };
}

const LOOKS = { up: "good", stalled: "bad", denied: "bad", busy: "warning" };

function createMonitorRow([, first]) {
  const [state, reason, vm] = [el("span", { class: "state" }), el("span", { class: "what" }), el("a")];
  const vmCell = cell("VM", vm);
  return {
    node: el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, first.monitor), cell("State", state), vmCell, cell("Reason", reason)),
    update([, known]) {
      setText(state, known.state);
      setAttribute(state, "data-look", LOOKS[known.state] ?? "idle");
      setText(vm, known.vm);
      setAttribute(vm, "href", known.uuid ? vmHash(known.uuid) : undefined);
      setText(reason, known.reason || `since ${clock(known.since)}`);
      vmCell.classList.toggle("empty", !known.vm);
    },
  };
}

const MAX_MONITORS = 200;

export class AgentView {
  node;
  #facts = createFactList();
  #queues = createTable("queues", "Queues", ["Queue", "Records", "Oldest", "Memory", "Disk"], (queue) => queue.name, createQueueRow);
  #monitors = createTable("monitors", "Monitors", ["Monitor", "State", "VM", "Reason"], ([key]) => key, createMonitorRow);
  #filter = el("input", { type: "search", autocomplete: "off", spellcheck: "false", input: () => this.update(this.#host) });
  #more = el("p", { class: "more" });
  #host = null;

  constructor() {
    this.#monitors.node.firstElementChild.after(el("p", {}, el("label", {}, "Filter ", this.#filter)));
    this.#monitors.node.append(this.#more);
    this.node = el("div", { id: "agent" }, el("h2", { tabindex: "-1" }, "Agent"), this.#facts.node, this.#queues.node, this.#monitors.node);
  }

  title = (host) => `Agent · ${host.agent?.host ?? ""}`;

  update(host) {
    this.#host = host;
    if (!host.agent) return;
    this.#facts.update(agentFacts(host.agent));
    this.#queues.update(host.agent.queues);
    const words = this.#filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...host.monitors].filter(([, known]) => words.every((word) => `${known.monitor} ${known.vm} ${known.state} ${known.reason}`.toLowerCase().includes(word)));
    all.sort(([, a], [, b]) => (a.state === "up") - (b.state === "up") || compareNames(a.monitor, b.monitor));
    this.#monitors.update(all.slice(0, MAX_MONITORS));
    setAttribute(this.#monitors.node, "hidden", host.monitors.size === 0);
    setText(this.#more, all.length > MAX_MONITORS ? `and ${all.length - MAX_MONITORS} more: use the filter` : "");
  }
}
