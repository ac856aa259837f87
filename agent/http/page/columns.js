/** The columns of the VM table. Pure. */

import { bytes, duration, number, percent } from "./format.js";
import { SEVERITIES, stateOf } from "./host-state.js";

const rate = (value) => (value === undefined ? "" : value === 0 ? "0" : `${bytes(value)}/s`);
const cpus = (value) => (value === undefined ? "" : percent(value));
const shareOf = (used, size) => (used === undefined || !size ? undefined : used / size);

/** Return the mean time of an operation as a text. */
export const latency = (seconds) => (seconds === undefined ? "" : seconds < 0.001 ? `${number(seconds * 1e6)} µs` : seconds < 1 ? `${number(seconds * 1000)} ms` : `${number(seconds)} s`);

const memoryOf = (vm) => vm.used ?? vm.resident ?? vm.total;
const LOOKS = ["bad", "warning", "idle", "good"];

/**
 * A column: `sort(vm, alerts)` returns a number, larger first, or undefined for a VM without a value, which comes last.
 * `text(vm, alerts)` is the cell's text. `share(vm)` from 0 to 1 adds a bar. `look(vm, alerts)` adds a colour.
 */
export const COLUMNS = {
  name: { title: "VM", width: "minmax(9em, 1.6fr)", sort: (vm) => -vm.rank, text: (vm) => vm.name, ascending: true },
  state: { title: "State", width: "7em", sort: (vm) => -LOOKS.indexOf(stateOf(vm).look), text: (vm) => stateOf(vm).word, look: (vm) => stateOf(vm).look, state: true },
  alerts: { title: "Alerts", width: "3.6em", number: true, sort: (vm, alerts) => (alerts.length ? 100 * (5 - SEVERITIES.indexOf(alerts[0].severity)) + Math.min(alerts.length, 99) : undefined), text: (vm, alerts) => (alerts.length ? String(alerts.length) : ""), look: (vm, alerts) => (["critical", "error"].includes(alerts[0]?.severity) ? "bad" : "warning") },
  cpu: { title: "CPU", width: "5.2em", number: true, help: "CPU time of the vCPUs; 100 % is one CPU of the host", sort: (vm) => vm.cpu, text: (vm) => cpus(vm.cpu), share: (vm) => shareOf(vm.cpu, vm.vcpus) },
  steal: { title: "Steal", width: "4.4em", number: true, help: "Time for which vCPUs waited for a CPU of the host", sort: (vm) => vm.steal, text: (vm) => cpus(vm.steal), look: (vm) => (vm.steal > 0.1 && vm.steal > 0.1 * (vm.cpu ?? 0) ? "warning" : undefined) },
  read: { title: "Read", width: "6em", number: true, sort: (vm) => vm.read, text: (vm) => rate(vm.read) },
  write: { title: "Write", width: "6em", number: true, sort: (vm) => vm.write, text: (vm) => rate(vm.write) },
  iops: { title: "IOPS", width: "4.5em", number: true, sort: (vm) => vm.iops, text: (vm) => (vm.iops === undefined ? "" : number(vm.iops)) },
  latency: { title: "Latency", width: "4.6em", number: true, help: "Mean time of a disk's operation", sort: (vm) => vm.latency, text: (vm) => latency(vm.latency), look: (vm) => (vm.latency > 0.02 ? "warning" : undefined) },
  memory: { title: "Memory", width: "5.6em", number: true, help: "Used by the guest, else resident in the host", sort: memoryOf, text: (vm) => (memoryOf(vm) === undefined ? "" : bytes(memoryOf(vm))), share: (vm) => shareOf(vm.used, vm.total) },
  receive: { title: "Received", width: "6em", number: true, sort: (vm) => vm.receive, text: (vm) => rate(vm.receive) },
  transmit: { title: "Sent", width: "6em", number: true, sort: (vm) => vm.transmit, text: (vm) => rate(vm.transmit) },
  disk: { title: "Disk used", width: "5.2em", number: true, help: "The fullest thin disk", sort: (vm) => shareOf(vm.disk_used, vm.disk_size), text: (vm) => fullness(vm.disk_used, vm.disk_size), share: (vm) => shareOf(vm.disk_used, vm.disk_size), look: (vm) => fullLook(shareOf(vm.disk_used, vm.disk_size)) },
  full: { title: "Full in", width: "6em", number: true, help: "Until the first thin disk is full at its present growth", sort: (vm) => (vm.full_in === undefined ? undefined : -vm.full_in), text: (vm) => (vm.full_in === undefined ? "" : duration(vm.full_in)), look: (vm) => (vm.full_in < 86400 ? "warning" : undefined) },
  filesystem: { title: "Guest FS", width: "4.8em", number: true, help: "The fullest file system in the guest", sort: (vm) => shareOf(vm.filesystem_used, vm.filesystem_size), text: (vm) => fullness(vm.filesystem_used, vm.filesystem_size), share: (vm) => shareOf(vm.filesystem_used, vm.filesystem_size), look: (vm) => fullLook(shareOf(vm.filesystem_used, vm.filesystem_size)) },
  activity: { title: "Activity", width: "minmax(6em, 1fr)", sort: (vm) => (vm.activity === undefined ? undefined : (vm.progress ?? 0)), text: (vm) => [vm.activity, vm.progress !== undefined && percent(vm.progress)].filter(Boolean).join(" ") },
  notes: { title: "Notes", width: "minmax(6em, 1.2fr)", help: "Why a VM is stalled; collectors that are off", sort: (vm) => (notesOf(vm) ? 1 : undefined), text: (vm) => notesOf(vm), look: () => "warning" },
  vcpus: { title: "vCPUs", width: "4em", number: true, sort: (vm) => vm.vcpus, text: (vm) => (vm.vcpus === undefined ? "" : String(vm.vcpus)) },
  labels: { title: "Labels", width: "minmax(8em, 1.2fr)", sort: (vm) => (vm.labels ? 1 : undefined), text: (vm) => Object.entries(vm.labels ?? {}).map(([name, value]) => `${name}=${value}`).join(" ") },
  qemu: { title: "QEMU", width: "5em", sort: (vm) => versionNumber(vm.qemu), text: (vm) => vm.qemu ?? "" },
  uuid: { title: "UUID", width: "24em", sort: (vm) => -vm.rank, text: (vm) => vm.uuid },
};

export const DEFAULT_COLUMNS = ["name", "state", "alerts", "cpu", "steal", "read", "write", "latency", "memory", "receive", "transmit", "disk", "full", "filesystem", "activity", "notes"];

/** Columns on a narrow screen, where a row has two lines. */
export const NARROW_COLUMNS = ["name", "state", "cpu", "memory", "write", "disk"];

const fullness = (used, size) => (shareOf(used, size) === undefined ? "" : percent(used / size));
const fullLook = (share) => (share > 0.95 ? "bad" : share > 0.85 ? "warning" : undefined);
const notesOf = (vm) => [vm.reason, vm.degraded?.length && `collectors off: ${vm.degraded.join(", ")}`].filter(Boolean).join(" · ");

function versionNumber(version) {
  const parts = /^(\d+)\.(\d+)(?:\.(\d+))?/.exec(version ?? "");
  return parts ? Number(parts[1]) * 1e6 + Number(parts[2]) * 1e3 + Number(parts[3] ?? 0) : undefined;
}
