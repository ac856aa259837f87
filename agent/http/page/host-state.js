/** The host's state, built from the messages of one connection to the overview stream. */

import { compareNames } from "./format.js";

const KEYED = ["rows", "monitors", "alerts", "pools", "families"];

const STOPPED = ["io-error", "internal-error", "guest-panicked", "watchdog", "shutdown"];

/** Return a state in plain words: with the word "stopped" if QEMU stopped the guest. */
export const stateText = (word) => (STOPPED.includes(word) ? `stopped: ${word}` : word);

/** Return whether QEMU stopped the guest, after an error or after the guest shut down. */
export const isStopped = (vm) => vm.state === "up" && vm.running === false && STOPPED.includes(vm.status);

/** Return the state of a VM as a word, and the look of this word: good, idle, warning or bad. */
export function stateOf(vm) {
  if (vm.gone) return { word: "gone", look: "idle" };
  if (vm.state !== "up") return { word: vm.state, look: "bad" };
  const word = vm.status ?? "up";
  if (vm.running ?? true) return { word, look: "good" };
  return { word, look: STOPPED.includes(word) ? "bad" : "idle" };
}

export const SEVERITIES = ["critical", "error", "warning", "info", "debug"];

const bySeverity = (a, b) => SEVERITIES.indexOf(a.severity) - SEVERITIES.indexOf(b.severity) || a.since - b.since;

export class HostState {
  constructor() {
    this.vms = new Map(); // by UUID
    this.monitors = new Map(); // by a key that is unique, unlike the name
    this.alerts = new Map();
    this.pools = new Map();
    this.families = new Map(); // of the VM that the page shows
    this.agent = null;
    this.resources = {}; // of the host; empty before the first sample
    this.vm = undefined; // the VM that the page shows; null after it is gone
    this.alertsByVm = new Map();
    this.uuidsByName = new Map(); // of the rows; null for a name of several VMs
    this.hasRows = false;
    this.#columns = [];
  }

  #columns;

  /** Update the state with the changes in a message. */
  apply(changes) {
    if (changes.columns) this.#columns = changes.columns;
    for (const part of KEYED) if (changes[part]) this.#applyPart(part, changes[part]);
    for (const part of ["agent", "vm", "resources"]) if (part in changes) this[part] = changes[part];
    if (changes.alerts) this.alertsByVm = Map.groupBy([...this.alerts.values()].sort(bySeverity), (alert) => alert.uuid);
  }

  #applyPart(part, { set, gone = [] }) {
    const map = part === "rows" ? this.vms : this[part];
    let renamed = gone.length > 0;
    for (const key of gone) map.delete(key);
    for (const [key, value] of Object.entries(set)) {
      if (part !== "rows") {
        map.set(key, value);
        continue;
      }
      const vm = { uuid: key };
      this.#columns.forEach((name, index) => (vm[name] = value[index] ?? undefined));
      vm.name ??= key;
      const known = map.get(key);
      vm.rank = known?.rank;
      renamed ||= known?.name !== vm.name;
      map.set(key, vm);
    }
    if (part !== "rows") return;
    this.hasRows = true;
    if (renamed) this.#rankNames();
  }

  /** Give each VM its place in the natural order of names, so that sorting compares numbers. */
  #rankNames() {
    const sorted = [...this.vms.values()].sort((a, b) => compareNames(a.name, b.name) || (a.uuid < b.uuid ? -1 : 1));
    sorted.forEach((vm, place) => (vm.rank = place));
    this.uuidsByName = new Map();
    for (const { name, uuid } of sorted) this.uuidsByName.set(name, this.uuidsByName.has(name) ? null : uuid);
  }

  /** Return the firing alerts, the worst first. */
  sortedAlerts() {
    return [...this.alerts.values()].sort(bySeverity);
  }

  /** Return the worst severity of a VM's alerts; undefined if none fires. */
  severityOf(uuid) {
    return this.alertsByVm.get(uuid)?.[0]?.severity;
  }
}
