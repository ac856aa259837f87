/** The view of one storage pool: its space over time, its figures, its alerts and its VMs. */

import { createFactList } from "./fact-list.js";
import { createAlertList } from "./alerts.js";
import { poolProblem } from "./attention.js";
import { el, renderList, setAttribute, setText } from "./dom.js";
import { bytes, compareNames, fieldName, fieldValue, sentenceCase } from "./format.js";
import { GraphGroup } from "./graph.js";
import { HistoryFeed, rangeLinks, rangeSeconds } from "./history-feed.js";
import { hashOfName } from "./names.js";
import { loadFields, showQuery } from "./promql.js";
import { hashOf } from "./view-address.js";
import { createPoolTable, poolItems } from "./space-tables.js";

const HIDDEN = new Set(["pool", "kind", "key", "vms", "vm_names", "growers", "problem", "error", "used_bytes", "free_bytes", "commitment_ratio", "growth_bytes_per_second", "time_to_full_seconds"]);

export class PoolView {
  node;
  #kind = "";
  #pool = "";
  #feed = null;
  #table = createPoolTable();
  #facts = createFactList();
  #alerts = createAlertList("Alerts firing", { isOfOne: true });
  #title = el("h2", { tabindex: "-1" });
  #state = el("span", { class: "state" });
  #ranges = el("div", {});
  #cards = el("div", { class: "cards" });
  #growers = el("ol", {});
  #vms = el("ul", { class: "names" });
  #vmTitle = el("h2", { id: "pool-vms-title" }, "VMs");
  #vmSection = el("section", { "aria-labelledby": "pool-vms-title" }, this.#vmTitle, this.#vms);
  #growerSection = el("section", { "aria-labelledby": "growers-title" }, el("h2", { id: "growers-title" }, "Disks that grow most"), this.#growers);

  constructor() {
    this.node = el("div", {}, el("p", { class: "back" }, el("a", { href: "#/storage" }, "← All storage")), el("div", { class: "title" }, this.#title, this.#state), this.#alerts.node, this.#table.node, this.#ranges, this.#cards, this.#facts.node, this.#growerSection, this.#vmSection);
  }

  title = () => this.#pool;

  open({ path: [, kind, pool], parameters }) {
    [this.#kind, this.#pool] = [kind, pool];
    setText(this.#title, pool);
    this.#feed?.close();
    const range = parameters.get("range") ?? "6h";
    const group = new GraphGroup();
    const series = [["used", "used", "write"], ["free", "free", "read"]].map(([column, label, style]) => ({ column, label, style }));
    const graph = group.add({ title: "Space", series, format: bytes, isBinary: true, top: 1 << 20, onQuery: () => this.#query() });
    this.#cards.replaceChildren(graph.node);
    const hashOfRange = (name) => hashOf(["pool", kind, pool], { range: name });
    this.#ranges.replaceChildren(rangeLinks(el, rangeSeconds(range), hashOfRange));
    this.#feed = new HistoryFeed({ pool, kind }, rangeSeconds(range), (history) => group.update(history, []));
  }

  close() {
    this.#feed?.close();
    this.#feed = null;
  }

  async #query() {
    const { fields } = (await loadFields()).pool;
    const labels = { pool: this.#pool, kind: this.#kind };
    showQuery("Space", ["used_bytes", "free_bytes", "size_bytes"].map((name) => ({ series: fields[name][2], kind: fields[name][0], help: fields[name][1], labels })));
  }

  update(host) {
    const pool = host.pools.get(`${this.#kind} ${this.#pool}`);
    const problem = pool ? poolProblem(pool) : host.agent ? "gone" : "";
    setText(this.#state, problem);
    setAttribute(this.#state, "data-look", problem ? "bad" : undefined);
    this.#alerts.update(host.sortedAlerts().filter((alert) => alert.alert.startsWith("pool_") && alert.subject === this.#pool), host);
    this.#table.update(poolItems(host, (known) => known === pool));
    const values = Object.entries(pool ?? {}).filter(([name, value]) => !HIDDEN.has(name) && value !== "" && typeof value !== "object");
    this.#facts.update(values.map(([name, value]) => [sentenceCase(fieldName(name)), fieldValue(name, value)]));
    this.#updateVms(host, pool);
  }

  #updateVms(host, pool) {
    const growers = Array.isArray(pool?.growers) ? pool.growers : [];
    setAttribute(this.#growerSection, "hidden", growers.length === 0);
    renderList(this.#growers, growers, ({ vm, device }) => `${vm} ${device}`, ({ vm, device }) => {
      const [link, rate] = [el("a", {}, vm), el("span")];
      return {
        node: el("li", {}, link, ` ${device} `, rate),
        update(grower) {
          setAttribute(link, "href", hashOfName(host, vm));
          setText(rate, `${bytes(grower.growth_bytes_per_second)}/s`);
        },
      };
    });
    const names = [...(pool?.vm_names ?? [])].sort(compareNames);
    setAttribute(this.#vmSection, "hidden", names.length === 0);
    setText(this.#vmTitle, pool?.vms > names.length ? `VMs (${names.length} of ${pool.vms})` : "VMs");
    renderList(this.#vms, names, (name) => name, (name) => {
      const link = el("a", {}, name);
      return { node: el("li", {}, link), update: () => setAttribute(link, "href", hashOfName(host, name)) };
    });
  }
}
