/** The view of storage: all pools, and the fullest disks and guest file systems of all VMs. */

import { compareFilling } from "./attention.js";
import { el, setAttribute } from "./dom.js";
import { createDiskTable, createFilesystemTable, createPoolTable, filesystemSeverity, poolItems } from "./space-tables.js";

const MAX_ROWS = 20;

/** Return the VMs that are full first by two values and perhaps a time, at most `MAX_ROWS`. */
function fullest(host, used, size, seconds) {
  const known = [...host.vms.values()].filter((vm) => vm[used] !== undefined && vm[size] > 0);
  const filling = (vm) => ({ share: vm[used] / vm[size], seconds: vm[seconds] });
  return known.sort((a, b) => compareFilling(filling(a), filling(b)) || a.rank - b.rank).slice(0, MAX_ROWS);
}

export class StorageView {
  node;
  #pools = createPoolTable();
  #disks = createDiskTable();
  #filesystems = createFilesystemTable();
  #none = el("p", { class: "none", hidden: true }, "No image is in a known storage pool: “qmp-agent doctor” reports why.");

  constructor() {
    this.node = el("div", {}, el("h2", { class: "hidden", tabindex: "-1" }, "Storage"), this.#pools.node, this.#none, this.#disks.node, this.#filesystems.node);
  }

  title = (host) => `Storage · ${host.agent?.host ?? ""}`;

  update(host) {
    this.#pools.update(poolItems(host));
    setAttribute(this.#none, "hidden", host.pools.size > 0 || !host.agent);
    const disks = fullest(host, "disk_used", "disk_size", "full_in");
    this.#disks.update(disks.map((vm) => ({ uuid: vm.uuid, vm: vm.name, disk: { device: vm.disk, used_bytes: vm.disk_used, limit_bytes: vm.disk_size, time_to_full_seconds: vm.full_in } })));
    const filesystems = fullest(host, "filesystem_used", "filesystem_size");
    this.#filesystems.update(filesystems.map((vm) => ({ uuid: vm.uuid, vm: vm.name, filesystem: { mountpoint: vm.filesystem, used_bytes: vm.filesystem_used, size_bytes: vm.filesystem_size }, severity: filesystemSeverity(host, vm.uuid, vm.filesystem) })));
  }
}
