/** The view of all VMs: counts, what needs attention, and the table. */

import { attentionItems, comparePools, poolShare } from "./attention.js";
import { el, renderList, setAttribute, setText } from "./dom.js";
import { bytes, duration, percent } from "./format.js";
import { hashOf, replaceHash } from "./view-address.js";
import { SEVERITIES, stateText } from "./host-state.js";
import { VmTable } from "./vm-table.js";

/** The last address of this view, for links back to the table. */
let lastHash = "#/";
let lastScroll = 0;
export const overviewHash = () => lastHash;

const STATE_LOOKS = { running: "good", up: "good", paused: "idle", prelaunch: "idle", suspended: "idle", inmigrate: "idle", postmigrate: "idle" };

/** Create a tile: a title, and a list of links with counts. */
function createTile(title) {
  const list = el("ul", {});
  const node = el("div", { class: "tile" }, el("h2", {}, title), list);
  return {
    node,
    /** @param entries {{key, text, hash, look}[]} */
    update(entries) {
      renderList(list, entries, (entry) => entry.key, () => {
        const link = el("a", {});
        return {
          node: el("li", {}, link),
          update(entry) {
            setText(link, entry.text);
            setAttribute(link, "href", entry.hash);
            setAttribute(link, "data-look", entry.look);
          },
        };
      });
    },
  };
}

export class OverviewView {
  node;
  #host = null;
  #tiles = { vms: createTile("VMs"), alerts: createTile("Alerts"), load: createTile("Host"), pools: createTile("Pools that fill first") };
  #attention = el("ul", {});
  #calm = el("p", { class: "none" }, "Nothing needs attention.");
  #table = new VmTable((parameters) => {
    lastHash = hashOf([], parameters);
    replaceHash(lastHash);
  });

  constructor() {
    const tiles = el("section", { class: "tiles", "aria-label": "Summary" }, ...Object.values(this.#tiles).map((tile) => tile.node));
    const attention = el("section", { id: "attention", "aria-labelledby": "attention-title", tabindex: "0" }, el("h2", { id: "attention-title" }, "Needs attention"), this.#calm, this.#attention);
    this.node = el("div", { class: "overview" }, tiles, attention, this.#table.node);
    this.#table.node.querySelector(".grid").addEventListener("scroll", (event) => (lastScroll = event.target.scrollTop));
  }

  open({ parameters }) {
    if (lastHash !== (location.hash || "#/")) lastScroll = 0;
    lastHash = location.hash || "#/";
    this.#table.setView(parameters);
    requestAnimationFrame(() => (this.#table.node.querySelector(".grid").scrollTop = lastScroll));
  }

  onKey(event) {
    if (event.key === "/") this.#table.focusFilter();
    else if (["ArrowDown", "ArrowUp"].includes(event.key)) this.#table.focusRows();
    else return false;
    return true;
  }

  update(host) {
    this.#host = host;
    this.#updateTiles(host);
    const items = attentionItems(host);
    setAttribute(this.#calm, "hidden", items.length > 0 || !host.hasRows);
    this.#attention.parentElement.classList.toggle("busy", items.length > 0);
    renderList(this.#attention, items, (item) => item.key, createAttentionItem);
    this.#table.update(host);
  }

  #updateTiles(host) {
    const { states = {} } = host.agent ?? {};
    const sorted = Object.entries(states).sort(([a], [b]) => (STATE_LOOKS[a] === "good") - (STATE_LOOKS[b] === "good"));
    this.#tiles.vms.update(sorted.map(([state, count]) => ({ key: state, text: `${count} ${stateText(state)}`, hash: hashOf([], { q: `state:${state}` }), look: STATE_LOOKS[state] ?? "bad" })));
    const severities = Map.groupBy(host.alerts.values(), (alert) => alert.severity);
    const firing = SEVERITIES.filter((severity) => severities.has(severity)).map((severity) => ({ key: severity, text: `${severities.get(severity).length} ${severity}`, hash: hashOf([], { q: `alert:${severity}` }), look: ["critical", "error"].includes(severity) ? "bad" : "warning" }));
    this.#tiles.alerts.update(firing.length ? firing : [{ key: "none", text: "none", hash: hashOf(["events"]), look: "good" }]);
    this.#tiles.load.update(hostEntries(host));
    const pools = [...host.pools.values()].filter((pool) => poolShare(pool) !== undefined).sort(comparePools);
    this.#tiles.pools.update(pools.slice(0, 2).map((pool) => ({ key: `${pool.kind} ${pool.pool}`, text: [`${percent(poolShare(pool))} ${pool.pool}`, pool.time_to_full_seconds !== undefined && `full in ${duration(pool.time_to_full_seconds)}`].filter(Boolean).join(" · "), hash: hashOf(["pool", pool.kind, pool.pool]), look: poolShare(pool) > 0.95 ? "bad" : poolShare(pool) > 0.85 ? "warning" : "good" })));
  }
}

/** Return the activity of all VMs together. */
function hostEntries(host) {
  const { cpus, memory_bytes: size } = host.agent ?? {};
  const sum = (name) => {
    const known = [...host.vms.values()].map((vm) => vm[name]).filter((value) => value !== undefined);
    return known.length ? known.reduce((a, b) => a + b, 0) : undefined;
  };
  const [cpu, resident] = [sum("cpu"), sum("resident")];
  const entry = (key, text, share) => ({ key, text, hash: hashOf(["host"]), look: share > 0.95 ? "bad" : share > 0.85 ? "warning" : "good" });
  return [
    cpu !== undefined && entry("cpu", cpus ? `CPU ${percent(cpu / cpus)} of ${cpus}` : `CPU ${percent(cpu)}`, cpus ? cpu / cpus : 0),
    resident !== undefined && entry("memory", size ? `memory ${percent(resident / size)} of ${bytes(size)}` : `memory ${bytes(resident)}`, size ? resident / size : 0),
  ].filter(Boolean);
}

function createAttentionItem({ severity }) {
  const [link, text] = [el("a", {}), el("span", { class: "what" })];
  const spoken = severity ? [" ", el("span", { class: "hidden" }, `${severity}:`)] : []; // the colour of the edge shows it to others
  const node = el("li", {}, link, ...spoken, " ", text);
  return {
    node,
    update(item) {
      setText(link, item.subject);
      setAttribute(link, "href", item.hash);
      setText(text, item.text);
      setAttribute(node, "data-look", item.look);
      setAttribute(node, "title", item.text.length > 40 ? item.text : undefined);
    },
  };
}
