/** The view of one VM: graphs, tables and all values, in sections. The address names the section that is shown. */

import { createFactList } from "./fact-list.js";
import { createAlertList } from "./alerts.js";
import { el, setAttribute, setText } from "./dom.js";
import { EventList } from "./events.js";
import { Explanation } from "./explain.js";
import { clock } from "./format.js";
import { ALL_GRAPHS, createGraphs } from "./graphs.js";
import { HistoryFeed, rangeLinks, rangeSeconds } from "./history-feed.js";
import { activitiesOf, createActivityTable } from "./jobs.js";
import { createLatencyTable, latencyItems } from "./latency.js";
import { FamilyTables } from "./family-tables.js";
import { overviewHash } from "./overview.js";
import { loadFields } from "./promql.js";
import { recordFeed } from "./record-feed.js";
import { hashOf } from "./view-address.js";
import { createDiskTable, createFilesystemTable, createPoolTable, filesystemSeverity, poolItems } from "./space-tables.js";
import { stateOf, stateText } from "./host-state.js";

/** Each section: its title, its graphs, its parts, and the families whose values it shows. */
const SECTIONS = {
  "": { title: "Overview", graphs: ALL_GRAPHS, parts: ["alerts", "activity", "disks"] },
  disks: { title: "Disks and pools", graphs: ["io", "operations", "latency", "space"], parts: ["latencies", "disks", "pools"], families: /^block/ },
  cpu: { title: "CPU", graphs: ["cpu"], families: /^(vcpu|iothread|kvm|process|cgroup)/, but: "vcpu_dirty" },
  memory: { title: "Memory", graphs: ["memory"], families: /^(balloon|memory|guest_memory|hv_balloon|dirty_rate|vcpu_dirty)/ },
  network: { title: "Network", graphs: ["network"], families: /^(net|guest_interface|guest_address)$/ },
  guest: { title: "Guest", parts: ["filesystems"], families: /^guest_/, but: "guest_memory" },
  jobs: { title: "Jobs and migrations", parts: ["activity"], families: /^(job|migration|dump)/ },
  events: { title: "Events", parts: ["events"] },
  alerts: { title: "Alerts", parts: ["alerts"] },
  inventory: { title: "Inventory", families: /^(identity|runstate|inventory|tpm|vnc|spice)/ },
};

export class VmView {
  node;
  #uuid = "";
  #section = "";
  #host = null;
  #fields = null;
  #history = null;
  #feed = null;
  #graphs = null;
  #parts = {
    alerts: createAlertList("Alerts firing", { isOfOne: true }),
    activity: createActivityTable(),
    latencies: createLatencyTable(),
    disks: createDiskTable({ isOfVm: true }),
    pools: createPoolTable(),
    filesystems: createFilesystemTable({ isOfVm: true }),
    events: new EventList(),
  };
  #families = new FamilyTables();
  #name = el("h2", { id: "vm-title", tabindex: "-1" });
  #state = el("span", { class: "state" });
  #reason = el("span", { class: "more" });
  #facts = createFactList();
  #explain = new Explanation();
  #back = el("a", {}, "← All VMs");
  #tabs = el("nav", { class: "tabs", "aria-label": "Sections of the VM" });
  #ranges = el("div", {});
  #cards = el("div", { class: "cards" });
  #empty = el("p", { class: "none" });
  #drawMarks = () => this.#drawGraphs();

  constructor() {
    const { alerts, ...others } = this.#parts;
    const parts = Object.values(others).map((part) => part.node);
    this.node = el("div", { id: "vm" }, el("p", { class: "back" }, this.#back), el("div", { class: "title" }, this.#name, this.#state, this.#reason), this.#explain.node, this.#facts.node, this.#tabs, alerts.node, this.#ranges, this.#cards, ...parts, this.#families.node, this.#empty);
    loadFields().then((fields) => {
      this.#fields = fields;
      if (this.#host) this.update(this.#host);
    }, () => {}); // the values appear after the next visit
  }

  title = (host) => host.vm?.name ?? "";

  /** Show the VM and the section in the address. */
  open({ path: [, uuid], parameters }, host) {
    this.#uuid = uuid;
    this.#section = parameters.get("tab") in SECTIONS ? parameters.get("tab") : "";
    this.#history = null;
    const range = parameters.get("range") ?? "";
    const { graphs = [] } = SECTIONS[this.#section];
    setAttribute(this.#back, "href", overviewHash());
    this.#tabs.replaceChildren(...Object.entries(SECTIONS).map(([tab, { title }]) => el("a", { href: hashOf(["vm", uuid], { tab, range }), "aria-current": tab === this.#section && "page" }, title)));
    this.#feed?.close();
    this.#graphs = createGraphs(graphs, { vm_uuid: uuid });
    this.#cards.replaceChildren(...this.#graphs.nodes);
    const hashOfRange = (name) => hashOf(["vm", uuid], { tab: this.#section, range: name === "5m" ? "" : name });
    this.#ranges.replaceChildren(...(graphs.length ? [rangeLinks(el, rangeSeconds(range), hashOfRange)] : []));
    this.#feed = graphs.length ? new HistoryFeed({ vm: uuid }, rangeSeconds(range), (history) => this.#onHistory(history)) : null;
    recordFeed().listen(this.#drawMarks);
    this.#parts.events.open(uuid);
    this.#explain.open(uuid);
    this.update(host);
  }

  close() {
    this.#feed?.close();
    this.#feed = null;
    this.#parts.events.close();
    this.#explain.close();
    recordFeed().unlisten(this.#drawMarks);
  }

  #onHistory(history) {
    this.#history = history;
    this.#drawGraphs();
  }

  #drawGraphs() {
    if (!this.#history) return;
    const alerts = (this.#host?.alertsByVm.get(this.#uuid) ?? []).map((alert) => ({ time: alert.since, text: `${alert.alert.replaceAll("_", " ")} ${alert.subject}`, look: "bad" }));
    this.#graphs.update(this.#history, [...alerts, ...recordFeed().marks(this.#uuid)]);
  }

  update(host) {
    this.#host = host;
    const vm = host.vm?.uuid === this.#uuid ? host.vm : null;
    const known = host.vms.get(this.#uuid);
    setText(this.#name, vm?.name ?? known?.name ?? this.#uuid);
    const isGone = !vm && host.agent && host.vm !== undefined && host.vm?.uuid !== this.#uuid;
    const { word, look } = vm ? stateOf(vm) : { word: isGone || (host.agent && !known) ? "gone" : "", look: "idle" };
    setText(this.#state, stateText(word));
    setAttribute(this.#state, "data-look", look);
    setText(this.#reason, vm?.reason ?? (word === "gone" ? "The agent does not watch this VM now. Its last events and graphs may be below." : ""));
    this.#facts.update(vm ? factsOf(vm) : []);
    this.#updateParts(host, vm);
  }

  #updateParts(host, vm) {
    const { parts = [], families: pattern, but } = SECTIONS[this.#section];
    const firing = host.alertsByVm.get(this.#uuid) ?? [];
    const disks = (vm?.disks ?? []).filter((disk) => disk.limit_bytes).map((disk) => ({ uuid: this.#uuid, vm: vm.name, disk }));
    const used = new Set((vm?.disks ?? []).map((disk) => disk.pool));
    const filesystems = (vm?.guest?.filesystems ?? []).map((filesystem) => ({ uuid: this.#uuid, vm: vm.name, filesystem, severity: filesystemSeverity(host, this.#uuid, filesystem.mountpoint) }));
    const items = { alerts: firing, activity: vm ? activitiesOf(vm) : [], latencies: latencyItems(vm?.disks ?? []), disks, pools: poolItems(host, (pool) => used.has(pool.pool)), filesystems };
    for (const [name, part] of Object.entries(this.#parts)) {
      if (name === "events") setAttribute(part.node, "hidden", !parts.includes("events"));
      else part.update(parts.includes(name) ? items[name] : [], host);
    }
    const isNever = (name, subjects) => name === "migration" && subjects[0]?.[1].status === "none";
    const isMeant = ([name, { subjects }]) => pattern?.test(name) && name !== but && subjects.length > 0 && !isNever(name, subjects);
    const shown = new Map(vm ? [...host.families].filter(isMeant) : []);
    this.#families.update(shown, this.#fields, { vm_uuid: this.#uuid });
    const nodes = [...Object.values(this.#parts).map((part) => part.node), this.#families.node];
    setAttribute(this.#empty, "hidden", nodes.some((node) => !node.hidden) || this.#graphs.nodes.length > 0);
    setText(this.#empty, { alerts: "No alert fires.", jobs: "No migration and no job." }[this.#section] ?? "No values.");
  }
}

/** Return the facts about a VM and its guest. */
function factsOf(vm) {
  const { agent, reason, frozen, hostname, system, kernel, addresses = [] } = vm.guest ?? {};
  const state = [agent, reason, frozen && "file systems frozen"].filter(Boolean).join(": ");
  return [
    ["UUID", vm.uuid],
    ["Monitor", vm.monitor],
    ["QEMU", vm.qemu],
    ["vCPUs", vm.vcpus ? String(vm.vcpus) : ""],
    ["Last response", vm.last_response ? clock(vm.last_response) : ""],
    ["Guest agent", state],
    ["Guest agent's values", vm.guest?.last_response ? clock(vm.guest.last_response) : ""],
    ["Guest", [hostname, system, kernel].filter(Boolean).join(" · ")],
    ["Addresses", addresses.join(", ")],
    ["Collectors off", (vm.degraded ?? []).map(({ collector, cause }) => `${collector}: ${cause}`).join("; "), "warning"],
  ];
}
