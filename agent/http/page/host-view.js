/** The view of the host: the activity of all VMs over time, and the most active VMs. */

import { createFactList } from "./fact-list.js";
import { COLUMNS } from "./columns.js";
import { el, renderList, setAttribute, setText } from "./dom.js";
import { bytes, number, percent } from "./format.js";
import { ALL_GRAPHS, createGraphs } from "./graphs.js";
import { HistoryFeed, rangeLinks, rangeSeconds } from "./history-feed.js";
import { stateText } from "./host-state.js";
import { recordFeed } from "./record-feed.js";
import { hashOf, vmHash } from "./view-address.js";

const TOP = 5;
const RANKINGS = [["cpu", "Most CPU"], ["steal", "Most steal"], ["read", "Most read"], ["write", "Most written"], ["latency", "Slowest disks"], ["memory", "Most memory"], ["receive", "Most received"], ["transmit", "Most sent"]];
const NO_ALERTS = [];

function createRanking([name, title]) {
  const list = el("ol", {});
  const all = el("a", { href: hashOf([], { sort: name }), "aria-label": `All VMs by ${COLUMNS[name].title}` }, "all");
  const node = el("div", { class: "card ranking" }, el("h3", {}, title, " ", all), list);
  return {
    node,
    update(host) {
      const { sort, text } = COLUMNS[name];
      const known = [...host.vms.values()].filter((vm) => sort(vm, NO_ALERTS) > 0).sort((a, b) => sort(b, NO_ALERTS) - sort(a, NO_ALERTS) || a.rank - b.rank);
      setAttribute(node, "hidden", known.length === 0);
      renderList(list, known.slice(0, TOP), (vm) => vm.uuid, (first) => {
        const [link, value] = [el("a", { href: vmHash(first.uuid) }), el("span", {})];
        return {
          node: el("li", {}, link, value),
          update(vm) {
            setText(link, vm.name);
            setText(value, text(vm, NO_ALERTS));
          },
        };
      });
    },
  };
}

const known = (value, text) => (value === undefined ? "" : text(value));
const joined = (...texts) => texts.filter(Boolean).join(", ");

/** Return the facts about the host's CPUs and memory, and how much its VMs use. Leave out figures that the kernel does not have. */
function resourceFacts(of) {
  const pools = (of.hugepages ?? []).filter((pool) => pool.pool_bytes > 0).map((pool) => `${bytes(pool.free_bytes)} of ${bytes(pool.pool_bytes)} free (${pool.size})`);
  const waiting = [["a CPU", of.waiting_for_cpu_ratio], ["memory", of.waiting_for_memory_ratio], ["I/O", of.waiting_for_io_ratio]].filter(([, ratio]) => ratio !== undefined).map(([what, ratio]) => `${what} ${percent(ratio)}`);
  return [
    ["vCPUs of running VMs", joined(known(of.vcpus, String), known(of.vcpu_commitment_ratio, (ratio) => `${percent(ratio)} of the CPUs`), of.unknown_vms > 0 && `without ${of.unknown_vms} unknown VMs`)],
    ["Memory of all guests", joined(known(of.guest_memory_bytes, bytes), known(of.memory_commitment_ratio, (ratio) => `${percent(ratio)} of the memory`)), of.memory_commitment_ratio > 1 ? "warning" : undefined],
    ["Memory available", known(of.memory_available_bytes, bytes)],
    ["Huge pages", joined(...pools, pools.length > 0 && known(of.vm_hugetlb_bytes, (size) => `VMs use ${bytes(size)}`))],
    ["Swap", of.swap_bytes ? joined(`${bytes(of.swap_free_bytes ?? 0)} of ${bytes(of.swap_bytes)} free`, known(of.vm_swap_bytes, (size) => `VMs ${bytes(size)}`), of.swap_in_bytes_per_second > 0 && `${bytes(of.swap_in_bytes_per_second)}/s read`) : "", of.swap_in_bytes_per_second > 0 ? "warning" : undefined],
    ["KSM", of.ksm_running || of.ksm_saved_bytes ? joined(of.ksm_running ? "on" : "off", known(of.ksm_saved_bytes, (size) => `${bytes(size)} saved`)) : ""],
    ["Load (1 min)", known(of.load_1m, number)],
    ["Tasks wait for", waiting.join(", ")],
  ];
}

/** Create the list of resources that VMs wait for: which VMs wait, and which VMs use most. */
function createContention() {
  const list = el("ul", { class: "contention" });
  const node = el("section", { id: "contention", "aria-labelledby": "contention-title", hidden: true }, el("h2", { id: "contention-title" }, "VMs that wait for others"), list);
  return {
    node,
    update(entries) {
      setAttribute(node, "hidden", entries.length === 0);
      renderList(list, entries, (entry) => `${entry.resource} ${entry.kind} ${entry.pool}`, () => {
        const [text, links] = [el("p", {}), el("p", { class: "names" })];
        return {
          node: el("li", {}, text, links),
          update(entry) {
            setText(text, entry.sentence);
            const vms = new Map([...entry.waiting, ...entry.taking].map((vm) => [vm.uuid, vm]));
            renderList(links, [...vms.values()], (vm) => vm.uuid, (first) => {
              const link = el("a", { href: vmHash(first.uuid) });
              return { node: el("span", {}, link, " "), update: (vm) => setText(link, vm.vm) };
            });
          },
        };
      });
    },
  };
}

export class HostView {
  node;
  #feed = null;
  #history = null;
  #graphs = createGraphs(ALL_GRAPHS, {});
  #facts = createFactList();
  #contention = createContention();
  #ranges = el("div", {});
  #rankings = RANKINGS.map(createRanking);
  #drawMarks = () => this.#draw();

  constructor() {
    const rankings = el("div", { class: "cards rankings" }, ...this.#rankings.map((ranking) => ranking.node));
    this.node = el("div", {}, el("h2", { tabindex: "-1" }, "Host"), this.#facts.node, this.#contention.node, el("h2", {}, "VMs that do most"), rankings, el("h2", {}, "All VMs together"), this.#ranges, el("div", { class: "cards" }, ...this.#graphs.nodes));
  }

  title = (host) => `Host · ${host.agent?.host ?? ""}`;

  open({ parameters }) {
    this.#feed?.close();
    const seconds = rangeSeconds(parameters.get("range"));
    this.#ranges.replaceChildren(rangeLinks(el, seconds, (range) => hashOf(["host"], { range: range === "5m" ? "" : range })));
    this.#feed = new HistoryFeed({}, seconds, (history) => {
      this.#history = history;
      this.#draw();
    });
    recordFeed().listen(this.#drawMarks);
  }

  close() {
    this.#feed?.close();
    recordFeed().unlisten(this.#drawMarks);
  }

  #draw() {
    if (this.#history) this.#graphs.update(this.#history, recordFeed().marks("").filter((mark) => mark.look === "bad"));
  }

  update(host) {
    const { agent } = host;
    if (!agent) return;
    const states = Object.entries(agent.states ?? {}).map(([state, count]) => `${count} ${stateText(state)}`);
    this.#facts.update([["Host", agent.host], ["VMs", states.join(", ") || "none"], ["vCPUs", sumOf(host, "vcpus")], ["CPUs", agent.cpus ? String(agent.cpus) : ""], ["Memory", agent.memory_bytes ? bytes(agent.memory_bytes) : ""], ...resourceFacts(host.resources)]);
    this.#contention.update(host.resources.contention ?? []);
    for (const ranking of this.#rankings) ranking.update(host);
  }
}

const sumOf = (host, name) => String([...host.vms.values()].reduce((sum, vm) => sum + (vm[name] ?? 0), 0) || "");
