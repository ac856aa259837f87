/** Tables of storage that fills up: pools, thin disks and file systems in guests. An empty table is hidden. */

import { comparePools, poolProblem, poolShare } from "./attention.js";
import { cell, el, renderList, setAttribute, setText } from "./dom.js";
import { createUsageBar } from "./usage-bar.js";
import { bytes, duration, percent } from "./format.js";
import { createNames } from "./names.js";
import { poolHash, vmHash } from "./view-address.js";

/** Create a section with a table. `createRow(item)` returns {node, update(item)}; `key(item)` identifies a row. */
export function createTable(id, title, columns, key, createRow) {
  const head = el("tr", { role: "row" }, ...columns.map((name) => el("th", { role: "columnheader", scope: "col" }, name)));
  const body = el("tbody", { role: "rowgroup" });
  const heading = el("h2", { id: `${id}-title` }, title);
  const table = el("table", { class: id, role: "table" }, el("thead", { role: "rowgroup" }, head), body);
  const node = el("section", { id, "aria-labelledby": `${id}-title`, hidden: true }, heading, table);
  return {
    node,
    update(items) {
      setAttribute(node, "hidden", items.length === 0);
      renderList(body, items, key, createRow);
    },
  };
}

/** Return the colour of a bar without levels and alerts. */
const lookOfShare = (share) => (share > 0.95 ? "critical" : share > 0.85 ? "warning" : "ok");

const nameOf = (uuid, vm, isOfVm, text) => (isOfVm ? [text] : [el("a", { href: vmHash(uuid) }, vm), ` ${text}`]);

/** Return the time to full as a text. Without a forecast, the usage does not grow, or does not grow steadily. */
function timeToFullText({ time_to_full_seconds: seconds, growth_bytes_per_second: growth }) {
  if (seconds !== undefined) return duration(seconds);
  return growth === undefined || growth > 0 ? "no forecast" : "not growing";
}

/** A table of pools. An item is {pool, severity, host}. */
export function createPoolTable() {
  return createTable("pools", "Storage pools", ["Pool", "Used", "Free", "Time to full", "VMs"], ({ pool }) => `${pool.kind} ${pool.pool}`, ({ pool: first }) => {
    const bar = createUsageBar();
    const [kind, used, committed, free, timeToFull, growth] = ["more", "used", "more", "value", "value", "more"].map((name) => el("span", { class: name }));
    const vms = createNames();
    const head = el("th", { role: "rowheader", scope: "row" }, el("a", { href: poolHash(first) }, first.pool), " ", kind);
    const node = el("tr", { role: "row" }, head, cell("Used", bar.node, el("div", { class: "under" }, used, committed)), cell("Free", free), cell("Time to full", timeToFull, growth), cell("VMs", vms.node));
    return {
      node,
      update({ pool, severity, host }) {
        const share = poolShare(pool);
        const isKnown = share !== undefined;
        const usedText = isKnown ? `${bytes(pool.used_bytes)} of ${bytes(pool.used_bytes + pool.free_bytes)} · ${percent(share)}` : "";
        const problem = poolProblem(pool);
        setText(kind, [pool.type || pool.kind.replace("_", " "), problem].filter(Boolean).join(" · "));
        setAttribute(kind, "data-look", problem ? "bad" : undefined);
        setAttribute(bar.node, "hidden", !isKnown);
        if (isKnown) bar.update(share, [], `${usedText} used`, severity ?? lookOfShare(share));
        setText(used, usedText);
        setText(committed, pool.commitment_ratio !== undefined ? `${percent(pool.commitment_ratio)} committed` : "");
        setText(free, isKnown ? bytes(pool.free_bytes) : "unknown");
        setText(timeToFull, timeToFullText(pool));
        setText(growth, pool.growth_bytes_per_second > 0 ? `growing ${bytes(pool.growth_bytes_per_second)}/s` : "");
        vms.update(pool, host);
      },
    };
  });
}

/** Return the pools with the severity of their alerts: those with a problem, then those that fill first. */
export function poolItems(host, isShown = () => true) {
  const severity = ({ pool }) => {
    const firing = host.sortedAlerts().filter((known) => known.alert.startsWith("pool_") && known.subject === pool);
    return ["critical", "error"].includes(firing[0]?.severity) ? "critical" : firing[0]?.severity;
  };
  return [...host.pools.values()].filter(isShown).sort(comparePools).map((pool) => ({ pool, severity: severity(pool), host }));
}

/** A table of thin disks with their levels. An item is {uuid, vm, disk}. */
export function createDiskTable({ isOfVm = false } = {}) {
  return createTable("disks", isOfVm ? "Thin disks" : "Fullest thin disk of each VM", isOfVm ? ["Disk", "Used, with warning levels", "Free", "Time to full"] : ["Disk", "Used", "Free", "First disk full in"], ({ uuid, disk }) => `${uuid} ${disk.device}`, ({ uuid, vm, disk: first }) => {
    const bar = createUsageBar();
    const [used, free, growth, timeToFull, note] = ["used", "value", "more", "value", "more"].map((name) => el("span", { class: name }));
    const levelList = el("ol", { class: "levels", "aria-label": "Levels" });
    const head = el("th", { role: "rowheader", scope: "row" }, ...nameOf(uuid, vm, isOfVm, first.device));
    const node = el("tr", { role: "row" }, head, cell("Used", bar.node, el("div", { class: "under" }, used, levelList)), cell("Free", free, note), cell(isOfVm ? "Time to full" : "First disk full in", timeToFull, growth));
    return {
      node,
      update({ disk }) {
        const levels = disk.levels ?? [];
        const exceeded = levels.filter(([, at]) => disk.used_bytes > at).length;
        const share = disk.used_bytes / disk.limit_bytes;
        const byLevels = exceeded === 0 ? "ok" : exceeded === levels.length ? "critical" : "warning";
        const severity = levels.length ? byLevels : lookOfShare(share);
        const usedText = `${bytes(disk.used_bytes)} of ${bytes(disk.limit_bytes)}`;
        bar.update(share, levels.map(([, at]) => at / disk.limit_bytes), levels.length ? `${usedText} used, ${exceeded} of ${levels.length} levels exceeded` : `${usedText} used`, severity);
        setText(used, `${usedText} · ${percent(share)}`);
        setAttribute(levelList, "hidden", levels.length === 0);
        renderList(levelList, levels, ([name]) => name, ([name]) => {
          const item = el("li", {}, name);
          return { node: item, update: ([, at]) => setAttribute(item, "data-exceeded", disk.used_bytes > at) };
        });
        setText(free, bytes(disk.free_bytes ?? disk.limit_bytes - disk.used_bytes));
        const armed = disk.armed_threshold_bytes !== undefined ? `QEMU threshold at ${bytes(disk.armed_threshold_bytes)}` : "";
        setText(note, disk.threshold_foreign ? "another client owns the QEMU threshold" : armed);
        setText(timeToFull, timeToFullText(disk));
        setText(growth, disk.growth_bytes_per_second > 0 ? `growing ${bytes(disk.growth_bytes_per_second)}/s` : "");
      },
    };
  });
}

/** A table of file systems in guests. An item is {uuid, vm, filesystem, severity}. */
export function createFilesystemTable({ isOfVm = false } = {}) {
  return createTable("filesystems", isOfVm ? "File systems in the guest" : "Fullest file system in each guest", ["File system", "Used", "Free", "Device"], ({ uuid, filesystem }) => `${uuid} ${filesystem.mountpoint} ${filesystem.device}`, ({ uuid, vm, filesystem: first }) => {
    const bar = createUsageBar();
    const [used, free, device] = ["used", "value", "more"].map((name) => el("span", { class: name }));
    const node = el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, ...nameOf(uuid, vm, isOfVm, first.mountpoint)), cell("Used", bar.node, el("div", { class: "under" }, used)), cell("Free", free), cell("Device", device));
    return {
      node,
      update({ filesystem, severity }) {
        const { used_bytes: usedBytes, size_bytes: size } = filesystem;
        const isKnown = usedBytes !== undefined && size > 0;
        const usedText = isKnown ? `${bytes(usedBytes)} of ${bytes(size)}` : "unknown";
        setAttribute(bar.node, "hidden", !isKnown);
        if (isKnown) bar.update(usedBytes / size, [], `${usedText} used`, severity ?? lookOfShare(usedBytes / size));
        setText(used, isKnown ? `${usedText} · ${percent(usedBytes / size)}` : usedText);
        setText(free, isKnown ? bytes(size - usedBytes) : "");
        setText(device, [filesystem.device, filesystem.type].filter(Boolean).join(" "));
      },
    };
  });
}

/** Return the severity of a file system's alert; undefined if none fires. */
export function filesystemSeverity(host, uuid, mountpoint) {
  const firing = (host.alertsByVm.get(uuid) ?? []).filter((known) => known.alert === "guest_filesystem_space" && known.subject === mountpoint);
  return firing[0]?.severity;
}
