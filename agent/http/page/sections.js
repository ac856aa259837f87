/** The smaller sections: alerts, thin disks, migrations and jobs, and the agent. An empty section is hidden. */

import { cell, el, renderList, setAttribute, setText } from "./dom.js";
import { createUsageBar } from "./draw.js";
import { bytes, clock, compareNames, duration, fieldName, percent } from "./format.js";

const byId = (id) => document.getElementById(id);

const link = (uuid, name) => el("a", { href: `#/vm/${uuid}` }, name);

// Alerts.

function createAlertItem(first) {
  const what = el("b", {}, fieldName(first.alert));
  const detail = el("span", { class: "what" });
  const since = el("span", { class: "more" });
  const node = el("li", { "data-severity": first.severity }, el("span", { class: "severity" }, first.severity), el("span", {}, what, ...(first.uuid ? [" ", link(first.uuid, first.vm)] : []), first.subject ? ` ${first.subject}` : ""), detail, since);
  return {
    node,
    update(current) {
      const description = [
        current.level && `level ${current.level.replace(/^threshold (\d+)$/, (_, size) => bytes(Number(size)))} exceeded`,
        current.free_bytes !== undefined && `${bytes(current.free_bytes)} free`,
        current.growth_bytes_per_second > 0 && `growing ${bytes(current.growth_bytes_per_second)}/s`,
        current.vm_names && nameVms(current),
      ];
      setText(detail, description.filter(Boolean).join(" · "));
      setText(since, `since ${clock(current.since)}`);
    },
  };
}

export function renderAlerts(host, uuid) {
  const shown = host.alerts.filter((known) => !uuid || known.uuid === uuid);
  setAttribute(byId("alerts"), "hidden", shown.length === 0);
  renderList(byId("alerts").querySelector("ul"), shown, (known) => known.fingerprint, createAlertItem);
}

/** Return the VMs on a pool as a text: the first names, and the number of the others. */
function nameVms({ vms, vm_names: names }) {
  const first = names.slice(0, 4);
  return `${first.join(", ")}${vms > first.length ? ` and ${vms - first.length} more` : ""}`;
}

// Storage pools.

function createPoolRow(first) {
  const bar = createUsageBar();
  const [kind, used, committed, free, timeToFull, growth, vms] = ["more", "used", "more", "value", "value", "more", ""].map((name) => el("span", { class: name }));
  const node = el(
    "tr",
    { role: "row" },
    el("th", { role: "rowheader", scope: "row" }, first.pool, " ", kind),
    cell("Used", bar.node, el("div", { class: "under" }, used, committed)),
    cell("Free", free),
    cell("Time to full", timeToFull, growth),
    cell("VMs", vms),
  );
  return {
    node,
    update({ severity, ...current }) {
      const known = current.free_bytes !== undefined;
      const usable = current.used_bytes + current.free_bytes;
      const usedText = known ? `${bytes(current.used_bytes)} of ${bytes(usable)} · ${percent(current.used_bytes / usable)}` : "";
      const state = current.responsive ? current.error ?? current.problem : "does not answer";
      setText(kind, [current.type ?? current.kind.replace("_", " "), state].filter(Boolean).join(" · "));
      setAttribute(kind, "data-look", state ? "bad" : undefined);
      setAttribute(bar.node, "hidden", !known);
      if (known) bar.update(current.used_bytes / usable, [], `${usedText} used`, severity ?? "ok");
      setText(used, usedText);
      setText(committed, current.commitment_ratio !== undefined ? `${percent(current.commitment_ratio)} committed` : "");
      setText(free, known ? bytes(current.free_bytes) : "unknown");
      setText(timeToFull, current.time_to_full_seconds !== undefined ? duration(current.time_to_full_seconds) : "not in sight");
      setText(growth, current.growth_bytes_per_second > 0 ? `growing ${bytes(current.growth_bytes_per_second)}/s` : "");
      setText(vms, nameVms(current));
    },
  };
}

/** Return the severity of a pool's alerts; undefined if none fires. */
function severityOfPool(host, { pool }) {
  const firing = host.alerts.filter((known) => known.alert.startsWith("pool_") && known.subject === pool);
  return firing.some((known) => ["critical", "error"].includes(known.severity)) ? "critical" : firing[0]?.severity;
}

export function renderPools(host, uuid) {
  const used = new Set((host.vms.get(uuid)?.disks ?? []).map((known) => known.pool));
  const shown = host.pools.filter((known) => !uuid || used.has(known.pool)).map((known) => ({ ...known, severity: severityOfPool(host, known) }));
  setAttribute(byId("pools"), "hidden", shown.length === 0);
  renderList(byId("pools").querySelector("tbody"), shown, (known) => `${known.kind} ${known.pool}`, createPoolRow);
}

// Thin disks.

function createDiskRow({ vm, disk: first }) {
  const bar = createUsageBar();
  const [used, free, growth, timeToFull] = ["used", "value", "more", "value"].map((name) => el("span", { class: name }));
  const levelList = el("ol", { class: "levels", "aria-label": "Levels" });
  const note = el("span", { class: "more" });
  const node = el(
    "tr",
    { role: "row" },
    el("th", { role: "rowheader", scope: "row" }, link(vm.uuid, vm.name), ` ${first.device}`),
    cell("Used", bar.node, el("div", { class: "under" }, used, levelList)),
    cell("Free", free, note),
    cell("Time to full", timeToFull, growth),
  );
  return {
    node,
    update({ disk: current }) {
      const share = current.used_bytes / current.limit_bytes;
      const levels = current.levels ?? [];
      const exceeded = levels.filter(([, at]) => current.used_bytes > at).length;
      const severity = exceeded === 0 ? "ok" : exceeded === levels.length ? "critical" : "warning";
      const usedText = `${bytes(current.used_bytes)} of ${bytes(current.limit_bytes)}`;
      bar.update(share, levels.map(([, at]) => at / current.limit_bytes), `${usedText} used, ${exceeded} of ${levels.length} levels exceeded`, severity);
      setText(used, `${usedText} · ${percent(share)}`);
      renderList(levelList, levels, ([name]) => name, ([name]) => {
        const item = el("li", {}, name);
        return { node: item, update: ([, at]) => setAttribute(item, "data-exceeded", current.used_bytes > at) };
      });
      setText(free, bytes(current.free_bytes));
      const armed = current.armed_threshold_bytes !== undefined ? `QEMU threshold at ${bytes(current.armed_threshold_bytes)}` : "";
      setText(note, current.threshold_foreign ? "another client owns the QEMU threshold" : armed);
      setText(timeToFull, current.time_to_full_seconds !== undefined ? duration(current.time_to_full_seconds) : "not growing");
      setText(growth, current.growth_bytes_per_second > 0 ? `growing ${bytes(current.growth_bytes_per_second)}/s` : "");
    },
  };
}

export function renderDisks(host, uuid) {
  const shown = [...host.vms.values()]
    .filter((vm) => !uuid || vm.uuid === uuid)
    .flatMap((vm) => (vm.disks ?? []).filter((known) => known.limit_bytes).map((known) => ({ vm, disk: known })));
  shown.sort((a, b) => b.disk.used_bytes / b.disk.limit_bytes - a.disk.used_bytes / a.disk.limit_bytes);
  setAttribute(byId("disks"), "hidden", shown.length === 0);
  renderList(byId("disks").querySelector("tbody"), shown, (item) => `${item.vm.uuid} ${item.disk.device}`, createDiskRow);
}

// File systems in guests.

function createFilesystemRow({ vm, filesystem: first }) {
  const bar = createUsageBar();
  const [used, free, device] = ["used", "value", "more"].map((name) => el("span", { class: name }));
  const node = el(
    "tr",
    { role: "row" },
    el("th", { role: "rowheader", scope: "row" }, link(vm.uuid, vm.name), ` ${first.mountpoint}`),
    cell("Used", bar.node, el("div", { class: "under" }, used)),
    cell("Free", free),
    cell("Device", device),
  );
  return {
    node,
    update({ filesystem: current, severity }) {
      const usedText = `${bytes(current.used_bytes)} of ${bytes(current.size_bytes)}`;
      const share = current.used_bytes / current.size_bytes;
      bar.update(share, [], `${usedText} used`, severity ?? "ok");
      setText(used, `${usedText} · ${percent(share)}`);
      setText(free, bytes(current.size_bytes - current.used_bytes));
      setText(device, `${current.device} ${current.type}`);
    },
  };
}

/** Return the severity of a file system's alert; undefined if none fires. */
function severityOf(host, vm, { mountpoint }) {
  const firing = host.alerts.filter((known) => known.alert === "guest_filesystem_space" && known.uuid === vm.uuid && known.subject === mountpoint);
  return firing.some((known) => known.severity === "critical") ? "critical" : firing[0]?.severity;
}

export function renderFilesystems(host, uuid) {
  const shown = [...host.vms.values()]
    .filter((vm) => !uuid || vm.uuid === uuid)
    .flatMap((vm) => (vm.guest?.filesystems ?? []).map((known) => ({ vm, filesystem: known, severity: severityOf(host, vm, known) })));
  shown.sort((a, b) => b.filesystem.used_bytes / b.filesystem.size_bytes - a.filesystem.used_bytes / a.filesystem.size_bytes);
  setAttribute(byId("filesystems"), "hidden", shown.length === 0);
  renderList(byId("filesystems").querySelector("tbody"), shown, (item) => `${item.vm.uuid} ${item.filesystem.mountpoint} ${item.filesystem.device}`, createFilesystemRow);
}

// Migrations and jobs.

function createActivityRow(first) {
  const [name, status, done, remaining] = ["", "more", "more", "value"].map((style) => el("span", { class: style }));
  const bar = el("progress", { max: 1, "aria-label": "Progress" });
  const progress = cell("Progress", bar, done);
  const node = el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, link(first.vm.uuid, first.vm.name)), cell("Activity", name, status), progress, cell("Remaining", remaining));
  return {
    node,
    update(current) {
      setText(name, current.name);
      setText(status, current.status);
      setAttribute(bar, "hidden", current.share === undefined);
      if (current.share !== undefined) bar.value = current.share;
      setText(done, current.done);
      progress.classList.toggle("empty", !current.done);
      setText(remaining, current.remaining === undefined ? "" : duration(current.remaining));
    },
  };
}

const ENDED = ["completed", "failed", "cancelled"];

function activitiesOf(vm) {
  const activities = (vm.jobs ?? []).map((job) => ({
    vm,
    key: `${vm.uuid} job ${job.job}`,
    name: `${job.type} ${job.job}`,
    status: [job.status, job.error].filter(Boolean).join(": "),
    share: job.progress_ratio,
    done: job.progress_ratio === undefined ? "" : percent(job.progress_ratio),
    remaining: job.remaining_seconds,
  }));
  const { migration } = vm;
  if (!migration) return activities;
  const { status, total_bytes: total, done_bytes: done, elapsed_seconds: elapsed, throughput_bytes_per_second: throughput } = migration;
  const ended = ENDED.includes(status);
  const progress = total ? [`${bytes(done)} of ${bytes(total)}`, throughput > 0 && `${bytes(throughput)}/s`] : [elapsed !== undefined && ended && `took ${duration(elapsed)}`];
  activities.push({ vm, key: `${vm.uuid} migration`, name: "migration", status, share: total ? done / total : undefined, done: progress.filter(Boolean).join(" · "), remaining: migration.remaining_seconds });
  return activities;
}

export function renderActivities(host, uuid) {
  const shown = [...host.vms.values()].filter((vm) => !uuid || vm.uuid === uuid).flatMap(activitiesOf);
  setAttribute(byId("activity"), "hidden", shown.length === 0);
  renderList(byId("activity").querySelector("tbody"), shown, (item) => item.key, createActivityRow);
}

// The agent.

function createFact(first) {
  const value = el("dd");
  return {
    node: el("div", {}, el("dt", {}, first[0]), value),
    update([, current, look]) {
      setText(value, current);
      setAttribute(value, "data-look", look);
    },
  };
}

function agentFacts(agent, monitors) {
  const { sink, journal, queues } = agent;
  const states = [...Map.groupBy(monitors, (known) => known.state)].map(([state, all]) => `${all.length} ${state}`);
  const waiting = queues.reduce((sum, queue) => sum + queue.records, 0);
  const oldest = Math.max(...queues.map((queue) => queue.oldest_record_age_seconds));
  const dropped = [...agent.dropped.map(({ reason, queue, records }) => [`${reason} (${queue})`, records]), ...Object.entries(agent.events_dropped)].filter(([, count]) => count > 0);
  return [
    ["Version", agent.version],
    ["Monitors", states.join(", ") || "none discovered", monitors.some((known) => known.state !== "up") ? undefined : "good"],
    ["Sink", sink.error ? `${sink.name}: ${sink.error}` : sink.name, sink.error ? "bad" : "good"],
    journal && ["Journal", journal.error ?? (journal.quarantined ? `${journal.quarantined} damaged files quarantined` : "ok"), journal.error ? "bad" : "good"],
    ["Delivered", agent.delivered.toLocaleString("en")],
    ["Waiting", waiting ? `${waiting.toLocaleString("en")} records, oldest ${duration(oldest)}` : "nothing"],
    ["Dropped", dropped.map(([reason, count]) => `${count} ${reason}`).join(", ") || "nothing", dropped.length ? "bad" : "good"],
    agent.reconnects > 0 && ["Sink reconnects", String(agent.reconnects)],
  ].filter(Boolean);
}

const LOOKS = { up: "good", stalled: "bad", denied: "bad", busy: "warning" };

function createMonitorRow(first) {
  const [state, vm, reason] = [el("span", { class: "state" }), el("span"), el("span", { class: "what" })];
  const cells = [cell("State", state), cell("VM", vm), cell("Reason", reason)];
  const node = el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, first.monitor), ...cells);
  return {
    node,
    update(current) {
      setText(state, current.state);
      setAttribute(state, "data-look", LOOKS[current.state] ?? "idle");
      setText(vm, current.vm);
      setText(reason, current.reason || `since ${clock(current.since)}`);
      cells[1].classList.toggle("empty", !current.vm);
    },
  };
}

export function renderAgent(host) {
  if (!host.agent) return;
  setAttribute(byId("agent"), "hidden", false);
  renderList(byId("agent").querySelector(".facts"), agentFacts(host.agent, host.monitors), ([name]) => name, createFact);
  const sorted = [...host.monitors].sort((a, b) => (a.state === "up") - (b.state === "up") || compareNames(a.monitor, b.monitor));
  setAttribute(byId("agent").querySelector("table"), "hidden", sorted.length === 0);
  renderList(byId("agent").querySelector("tbody"), sorted, (known) => known.monitor, createMonitorRow);
  const problems = [...host.agent.unready_reasons, ...host.agent.warnings];
  setAttribute(byId("problems"), "hidden", problems.length === 0);
  renderList(byId("problems"), problems, (problem) => problem, (problem) => ({ node: el("li", {}, problem), update() {} }));
}
