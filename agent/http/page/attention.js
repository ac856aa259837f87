/** The list of problems that need attention, worst first. Pure. */

import { alertName, describeAlert, hashOfAlert, isStopReason } from "./alerts.js";
import { latency } from "./columns.js";
import { clock, duration, percent } from "./format.js";
import { nameVms } from "./names.js";
import { hashOf, poolHash, vmHash } from "./view-address.js";
import { isStopped, stateOf, stateText } from "./host-state.js";

const MAX_OF_KIND = 4;
const FULL_SHARE = 0.9;
const FULL_SECONDS = 86400;
const SOON_SECONDS = 30 * 86400;
const STEAL_CPUS = 0.1;
const LATENCY_SECONDS = 0.02;

/** Return the used share of a pool's usable space, from 0 to 1; undefined if unknown. */
export function poolShare({ used_bytes: used, free_bytes: free }) {
  return used === undefined || free === undefined || used + free === 0 ? undefined : used / (used + free);
}

/** Return a text for the problem of a pool; empty without a problem. */
export const poolProblem = (pool) => (pool.responsive === false ? "does not answer" : (pool.error ?? pool.problem ?? ""));

/** Compare two {share, seconds}: first those that are full within 30 days, the soonest first; then the fullest. */
export function compareFilling(a, b) {
  const [soon, later] = [a, b].map(({ seconds }) => (seconds < SOON_SECONDS ? seconds : SOON_SECONDS));
  return soon - later || (b.share ?? -1) - (a.share ?? -1);
}

/** Compare pools: first those with a problem, then those that fill first. */
export function comparePools(a, b) {
  const [first, second] = [a, b].map((pool) => ({ share: poolShare(pool), seconds: pool.time_to_full_seconds }));
  return Boolean(poolProblem(b)) - Boolean(poolProblem(a)) || compareFilling(first, second);
}

const isNearlyFull = (share, seconds) => share >= FULL_SHARE || seconds < FULL_SECONDS;
const fullText = (share, seconds) => [share !== undefined && `${percent(share)} used`, seconds !== undefined && `full in ${duration(seconds)}`].filter(Boolean).join(", ");

/** Each kind of problem: its colour, and the items of a host. An item is [key, subject, text, hash, rank]; larger ranks come first. */
const KINDS = {
  alert: {
    look: (alert) => (["critical", "error"].includes(alert.severity) ? "bad" : "warning"),
    items: (host) => host.sortedAlerts().map((alert) => ({ key: alert.fingerprint, subject: alert.vm || alert.subject, text: textOfAlert(host, alert), hash: hashOfAlert(host, alert), look: KINDS.alert.look(alert), severity: alert.severity })),
    more: () => hashOf(["events"]),
  },
  stopped: {
    items: (host) => vms(host, isStopped, (vm) => stateText(vm.status), () => 0, "bad"),
    more: () => hashOf([], { q: "state:stopped" }),
  },
  state: {
    items: (host) => vms(host, (vm) => stateOf(vm).look === "bad" && vm.state !== "up", (vm) => [vm.state, vm.reason].filter(Boolean).join(": "), () => 0, "bad"),
    more: () => hashOf([], { sort: "state" }),
  },
  monitor: {
    items: (host) => [...host.monitors].filter(([, known]) => ["busy", "denied"].includes(known.state)).map(([key, known]) => ({ key, subject: known.vm || known.monitor, text: [`monitor ${known.state}`, known.reason].filter(Boolean).join(": "), hash: hashOf(["agent"]), look: "warning" })),
    more: () => hashOf(["agent"]),
  },
  pool: {
    items: (host) =>
      [...host.pools.values()]
        .filter((pool) => poolProblem(pool) || isNearlyFull(poolShare(pool), pool.time_to_full_seconds))
        .sort(comparePools)
        .map((pool) => ({ key: `${pool.kind} ${pool.pool}`, subject: pool.pool, text: ["pool", poolProblem(pool), fullText(poolShare(pool), pool.time_to_full_seconds)].filter(Boolean).join(" · "), hash: poolHash(pool), look: poolProblem(pool) ? "bad" : "warning" })),
    more: () => hashOf(["storage"]),
  },
  disk: {
    items: (host) => vms(host, (vm) => isNearlyFull(vm.disk_used / vm.disk_size, vm.full_in), (vm) => `${vm.disk ?? "disk"} · ${fullText(vm.disk_size ? vm.disk_used / vm.disk_size : undefined, vm.full_in)}`, (vm) => (vm.disk_size ? vm.disk_used / vm.disk_size : 0), "warning", "disks"),
    more: () => hashOf([], { sort: "disk" }),
  },
  filesystem: {
    items: (host) => vms(host, (vm) => vm.filesystem_used / vm.filesystem_size >= FULL_SHARE, (vm) => `${vm.filesystem} in the guest · ${fullText(vm.filesystem_used / vm.filesystem_size)}`, (vm) => vm.filesystem_used / vm.filesystem_size, "warning", "guest"),
    more: () => hashOf([], { sort: "filesystem" }),
  },
  degraded: {
    items: (host) => vms(host, (vm) => vm.degraded?.length, (vm) => `collectors off: ${vm.degraded.join(", ")}`, (vm) => vm.degraded.length, "warning"),
    more: () => hashOf([], { q: "is:degraded" }),
  },
  steal: {
    items: (host) => vms(host, (vm) => vm.steal >= STEAL_CPUS && vm.steal >= STEAL_CPUS * (vm.cpu ?? 0), (vm) => `steal ${percent(vm.steal)}: vCPUs wait for a CPU`, (vm) => vm.steal, "warning", "cpu"),
    more: () => hashOf([], { sort: "steal" }),
  },
  latency: {
    items: (host) => vms(host, (vm) => vm.latency >= LATENCY_SECONDS && vm.iops >= 1, (vm) => `disk latency ${latency(vm.latency)}`, (vm) => vm.latency, "warning", "disks"),
    more: () => hashOf([], { sort: "latency" }),
  },
};

const textOfAlert = (host, alert) => [alertName(host, alert), alert.vm && alert.subject, describeAlert(alert), alert.vm_names && nameVms(alert), `since ${clock(alert.since).slice(0, -3)}`].filter(Boolean).join(" · ");

function vms(host, isMeant, text, rank, look, tab) {
  const meant = [...host.vms.values()].filter(isMeant).sort((a, b) => rank(b) - rank(a) || a.rank - b.rank);
  return meant.map((vm) => ({ key: vm.uuid, subject: vm.name, text: text(vm), hash: vmHash(vm.uuid, tab), look }));
}

/** Return whether an alert already reports the same problem as an item of another kind. */
function isCovered(host, kind, { key, subject }) {
  const alerts = [...(host.alertsByVm.get(key) ?? []), ...(kind === "pool" ? host.alertsByVm.get("") ?? [] : [])];
  const covering = { stopped: (alert) => isStopReason(host, alert), pool: (alert) => alert.subject === subject, disk: (alert) => /threshold|space|full/.test(alert.alert) && !alert.alert.startsWith("guest"), filesystem: (alert) => alert.alert === "guest_filesystem_space" }[kind];
  return Boolean(covering) && alerts.some(covering);
}

/**
 * Return the problems of the host that need attention.
 * @returns {{key, subject, text, hash, look}[]} at most `MAX_OF_KIND` items of each kind, and an item for the others
 */
export function attentionItems(host) {
  const result = [];
  for (const [kind, { items, more }] of Object.entries(KINDS)) {
    const all = items(host).filter((item) => !isCovered(host, kind, item));
    const room = kind === "alert" ? 2 * MAX_OF_KIND : MAX_OF_KIND;
    const shown = all.length > room ? all.slice(0, room - 1) : all;
    result.push(...shown.map((item) => ({ ...item, key: `${kind} ${item.key}` })));
    const rest = all.length - shown.length;
    if (rest > 0) result.push({ key: `${kind} more`, subject: `${rest} more`, text: { alert: "alerts", stopped: "VMs that have stopped", state: "VMs that do not answer", monitor: "monitors", pool: "pools", disk: "disks nearly full", filesystem: "file systems nearly full", degraded: "VMs with collectors off", steal: "VMs that wait for a CPU", latency: "VMs with slow disks" }[kind], hash: more(), look: all[shown.length].look });
  }
  return result;
}
