/** The table of VMs. The address contains filter, columns and order. The order does not change while the user reads the table. */

import { COLUMNS, DEFAULT_COLUMNS, NARROW_COLUMNS } from "./columns.js";
import { el, renderList, setAttribute, setText } from "./dom.js";
import { parseFilter } from "./filter.js";
import { vmHash } from "./view-address.js";
import { VirtualRows } from "./virtual-rows.js";

const NARROW = matchMedia("(max-width: 46rem)");
const NO_ALERTS = [];

/** Return the names of the columns in a parameter of the address. Unknown names are left out; the first column is always the name. */
function parseColumns(text) {
  const names = (text ?? "").split(",").filter((name) => name in COLUMNS && name !== "name");
  return names.length ? ["name", ...new Set(names)] : DEFAULT_COLUMNS;
}

export class VmTable {
  node;
  #parts;
  #rows;
  #host = null;
  #view = { q: "", sort: "name", reversed: false, names: DEFAULT_COLUMNS };
  #matches = () => true;
  #order = []; // UUIDs
  #known = new Map(); // the VMs in the order, also those that are gone
  #seen = new Set(["name", "state"]); // columns that have had a value
  #columns = [];
  #changedByUser = true;
  #onChange;

  /** @param onChange (parameters) => called when the user has changed the view; the parameters belong into the address */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#parts = this.#build();
    this.node = this.#parts.section;
    this.#rows = new VirtualRows(this.#parts.table, this.#parts.body, (item) => this.#createRow(item));
    NARROW.addEventListener("change", () => this.#userChange());
  }

  #build() {
    const filter = el("input", { id: "vms-filter", type: "search", autocomplete: "off", spellcheck: "false", placeholder: "name, state:paused, alert:any, label:tier=gold", "aria-keyshortcuts": "/", input: () => this.#setFilter(filter.value), keydown: (event) => this.#onFilterKey(event) });
    const sort = el("select", { id: "vms-sort", change: () => this.#sortBy(sort.value) });
    const choices = el("fieldset", { class: "choices" }, el("legend", {}, "Columns"));
    const held = el("button", { type: "button", class: "held", title: "The order stays while you read the table. This sorts it now.", click: () => this.#userChange() }, "Sort now");
    const title = el("h2", { id: "vms-title" }, "VMs");
    const bar = el("div", { class: "bar" }, title, held, el("label", { class: "find" }, "Filter ", filter), el("label", { class: "sort" }, "Sort by ", sort), el("details", { class: "menu" }, el("summary", {}, "Columns"), choices));
    const head = el("div", { role: "row", class: "row head", "aria-rowindex": 1 });
    const body = el("div", { role: "rowgroup", class: "rows", keydown: (event) => this.#onKey(event), focusin: (event) => this.#onFocus(event) });
    const table = el("div", { role: "table", class: "grid", "aria-labelledby": "vms-title" }, el("div", { role: "presentation", class: "width" }, el("div", { role: "rowgroup", class: "heads" }, head), body));
    const none = el("p", { class: "none", hidden: true });
    const section = el("section", { id: "vms", "aria-labelledby": "vms-title" }, bar, none, table);
    return { filter, sort, choices, held, title, head, body, table, none, section };
  }

  /** Apply the filter, the columns and the order in the parameters of an address. */
  setView(parameters) {
    const [q, sort] = [parameters.get("q") ?? "", parameters.get("sort") ?? "name"];
    const name = sort.replace(/^-/, "");
    this.#view = { q, sort: name in COLUMNS ? name : "name", reversed: sort.startsWith("-"), names: parseColumns(parameters.get("cols")) };
    if (this.#parts.filter.value !== q) this.#parts.filter.value = q;
    this.#matches = parseFilter(q);
    this.#renderChoices();
    this.#changedByUser = true;
    if (this.#host) this.update(this.#host);
  }

  get parameters() {
    const { q, sort, reversed, names } = this.#view;
    const order = `${reversed ? "-" : ""}${sort}`;
    return { q, sort: order === "name" ? "" : order, cols: names === DEFAULT_COLUMNS ? "" : names.slice(1).join(",") };
  }

  focusFilter() {
    this.#parts.filter.focus();
    this.#parts.filter.select();
  }

  /** Focus the row that had the focus last, or else the first row. */
  focusRows() {
    this.#rows.move(0);
  }

  #setFilter(q) {
    this.#view.q = q;
    this.#matches = parseFilter(q);
    this.#parts.table.scrollTop = 0;
    this.#userChange();
  }

  #sortBy(name) {
    const reversed = this.#view.sort === name && !this.#view.reversed;
    Object.assign(this.#view, { sort: name, reversed });
    this.#parts.table.scrollTop = 0;
    this.#userChange();
  }

  #chooseColumn(name, isChosen) {
    const names = isChosen ? [...this.#view.names, name] : this.#view.names.filter((known) => known !== name);
    const inOrder = Object.keys(COLUMNS).filter((known) => names.includes(known));
    this.#view.names = inOrder.join() === DEFAULT_COLUMNS.join() ? DEFAULT_COLUMNS : inOrder;
    this.#userChange();
  }

  #userChange() {
    this.#changedByUser = true;
    this.#onChange(this.parameters);
    if (this.#host) this.update(this.#host);
  }

  #onFilterKey(event) {
    if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      if (this.#parts.filter.value) this.#setFilter((this.#parts.filter.value = ""));
      else this.#rows.move(0);
    } else if (event.key === "ArrowDown" || event.key === "Enter") {
      event.preventDefault();
      this.#rows.move(0);
    }
  }

  #onKey(event) {
    const page = this.#rows.pageSize;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (steps === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.#rows.move(steps);
  }

  #onFocus(event) {
    const key = event.target.closest("[data-key]")?.dataset.key;
    if (key && key !== this.#rows.active) this.#rows.setActive(key);
  }

  /** Return whether the user reads the table: the pointer or the focus is in the table, or the table is scrolled. */
  #isRead() {
    const { table, body } = this.#parts;
    return table.scrollTop > 0 || table.matches(":hover") || body.contains(document.activeElement);
  }

  update(host) {
    this.#host = host;
    const alertsOf = (vm) => host.alertsByVm.get(vm.uuid) ?? NO_ALERTS;
    const wanted = this.#sorted(host, alertsOf);
    if (this.#changedByUser || !this.#isRead()) this.#order = wanted;
    else this.#order = this.#order.concat(wanted.filter((uuid) => !this.#known.has(uuid)));
    this.#changedByUser = false;
    const before = this.#known;
    this.#known = new Map(this.#order.map((uuid) => [uuid, host.vms.get(uuid) ?? { ...before.get(uuid), gone: true }]));
    this.#updateColumns(host, alertsOf);
    const items = this.#order.map((uuid) => ({ key: uuid, vm: this.#known.get(uuid), alerts: host.alertsByVm.get(uuid) ?? NO_ALERTS }));
    this.#rows.update(items);
    this.#renderTexts(host, wanted);
  }

  #sorted(host, alertsOf) {
    const { sort } = COLUMNS[this.#view.sort];
    const direction = this.#view.reversed ? -1 : 1;
    return [...host.vms.values()]
      .filter((vm) => this.#matches(vm, alertsOf(vm)))
      .map((vm) => ({ vm, value: sort(vm, alertsOf(vm)) }))
      .sort((a, b) => (a.value === undefined) - (b.value === undefined) || direction * ((b.value ?? 0) - (a.value ?? 0)) || a.vm.rank - b.vm.rank)
      .map(({ vm }) => vm.uuid);
  }

  #updateColumns(host, alertsOf) {
    const { names, sort } = this.#view;
    for (const name of names) {
      if (!this.#seen.has(name) && [...host.vms.values()].some((vm) => COLUMNS[name].sort(vm, alertsOf(vm)) !== undefined)) this.#seen.add(name);
    }
    const isChosen = names !== DEFAULT_COLUMNS;
    const wide = names.filter((name) => isChosen || this.#seen.has(name));
    const narrow = (isChosen ? wide : NARROW_COLUMNS).filter((name) => this.#seen.has(name)).slice(0, 6);
    const shown = NARROW.matches ? narrow : wide;
    if (shown.join() !== this.#columns.join()) {
      this.#columns = shown;
      this.#parts.table.style.setProperty("--columns", shown.map((name) => COLUMNS[name].width).join(" "));
    }
    renderList(this.#parts.head, shown, (name) => name, (name) => this.#createHead(name));
    renderList(this.#parts.sort, [...new Set(["name", ...names])], (name) => name, (name) => ({ node: el("option", { value: name }, COLUMNS[name].title), update() {} }));
    this.#parts.sort.value = sort;
  }

  #createHead(name) {
    const { title, help, number } = COLUMNS[name];
    const button = el("button", { type: "button", title: help, click: () => this.#sortBy(name) }, title);
    const node = el("div", { role: "columnheader", class: number ? "number" : undefined }, button);
    return {
      node,
      update: () => {
        const isAscending = Boolean(COLUMNS[name].ascending) !== this.#view.reversed;
        setAttribute(node, "aria-sort", this.#view.sort !== name ? undefined : isAscending ? "ascending" : "descending");
      },
    };
  }

  #createRow(first) {
    const link = el("a", { href: vmHash(first.key) });
    const name = el("div", { role: "rowheader", class: "name" }, link);
    const node = el("div", { role: "row", class: "row", "data-key": first.key }, name);
    let columns = null;
    let cells = [];
    return {
      node,
      update: ({ vm, alerts, isActive }) => {
        if (columns !== this.#columns) {
          columns = this.#columns;
          cells = columns.slice(1).map(createCell);
          node.replaceChildren(name, ...cells.map((cell) => cell.node));
        }
        setText(link, vm.name);
        setAttribute(link, "tabindex", isActive ? undefined : -1);
        setAttribute(node, "data-severity", alerts[0]?.severity);
        for (const cell of cells) cell.update(vm, alerts);
      },
    };
  }

  #renderChoices() {
    const { choices } = this.#parts;
    const boxes = Object.entries(COLUMNS).slice(1).map(([name, { title }]) => {
      const box = el("input", { type: "checkbox", checked: this.#view.names.includes(name), change: () => this.#chooseColumn(name, box.checked) });
      return el("label", {}, box, ` ${title}`);
    });
    choices.replaceChildren(choices.firstChild, ...boxes);
  }

  #renderTexts(host, wanted) {
    const { title, held, none, table } = this.#parts;
    const total = host.vms.size;
    setText(title, wanted.length === total ? `VMs (${total})` : `VMs (${wanted.length} of ${total})`);
    setAttribute(table, "aria-rowcount", this.#order.length + 1);
    held.classList.toggle("off", wanted.join() === this.#order.join());
    setAttribute(held, "disabled", held.classList.contains("off"));
    setAttribute(table, "hidden", this.#order.length === 0);
    setAttribute(none, "hidden", this.#order.length > 0 || !host.hasRows);
    setText(none, total ? "No VM matches the filter." : "No VM is attached. The view of the agent shows the reasons.");
  }
}

function createCell(name) {
  const { title, number, text, look, share, state } = COLUMNS[name];
  const inner = state ? el("span", { class: "state" }) : null;
  const node = el("div", { role: "cell", class: number ? "number" : undefined, "data-label": title }, ...(inner ? [inner] : []));
  let shownShare;
  return {
    node,
    update(vm, alerts) {
      const value = text(vm, alerts);
      setText(inner ?? node, value);
      setAttribute(node, "data-look", value ? look?.(vm, alerts) : undefined);
      setAttribute(node, "title", value.length > 14 ? value : undefined);
      if (!share) return;
      const current = share(vm);
      const shown = current === undefined ? "" : Math.min(1, current).toFixed(3);
      if (shown === shownShare) return;
      shownShare = shown;
      node.classList.toggle("share", shown !== "");
      node.style.setProperty("--share", shown || "0");
    },
  };
}
