/** Renders the rows of a long list that are in view, and the row that has the focus. */

import { renderList, setAttribute } from "./dom.js";

const OVERSCAN = 6; // rows above and below the view, so that scrolling shows no gap

export class VirtualRows {
  #scroller;
  #body;
  #create;
  #items = [];
  #active = "";
  #scheduled = false;

  /**
   * @param scroller the element that scrolls
   * @param body the parent of the rows, in the scroller; the custom property `--row` is the height of a row in pixels
   * @param create item => {node, update(item)}; an item has a `key`
   */
  constructor(scroller, body, create) {
    [this.#scroller, this.#body, this.#create] = [scroller, body, create];
    scroller.addEventListener("scroll", () => this.#schedule());
    new ResizeObserver(() => this.#schedule()).observe(scroller);
  }

  get items() {
    return this.#items;
  }

  /** Return the key of the row that has the focus or had it last. */
  get active() {
    return this.#active;
  }

  /** Show these items in this order. */
  update(items) {
    this.#items = items;
    this.render();
  }

  render() {
    const height = this.rowHeight;
    const [top, room] = [this.#scroller.scrollTop, this.#scroller.clientHeight];
    const first = Math.max(0, Math.floor(top / height) - OVERSCAN);
    const last = Math.min(this.#items.length, Math.ceil((top + room) / height) + OVERSCAN);
    const places = Array.from({ length: Math.max(0, last - first) }, (_, index) => first + index);
    const active = this.#items.findIndex((item) => item.key === this.#active);
    if (active >= 0 && active < first) places.unshift(active);
    else if (active >= last) places.push(active);
    this.#body.style.height = `${this.#items.length * height}px`;
    const shown = places.map((place) => ({ ...this.#items[place], place, isActive: place === Math.max(active, 0) }));
    renderList(this.#body, shown, (item) => item.key, (item) => this.#createRow(item));
  }

  get rowHeight() {
    return parseFloat(getComputedStyle(this.#scroller).getPropertyValue("--row")) || 26;
  }

  #createRow(first) {
    const { node, update } = this.#create(first);
    let top;
    return {
      node,
      update: (item) => {
        const wanted = item.place * this.rowHeight;
        if (top !== wanted) node.style.transform = `translateY(${(top = wanted)}px)`;
        setAttribute(node, "aria-rowindex", item.place + 2); // the heading is the first row
        update(item);
      },
    };
  }

  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.render();
    });
  }

  /** Move the focus by a number of rows; ±Infinity is the first or the last row. */
  move(steps) {
    const from = this.#items.findIndex((item) => item.key === this.#active);
    const to = Math.min(Math.max(from < 0 ? 0 : from + steps, 0), this.#items.length - 1);
    if (to >= 0) this.focus(this.#items[to].key);
  }

  /** Focus the link of a row, and scroll until it is in view. */
  focus(key) {
    const place = this.#items.findIndex((item) => item.key === key);
    if (place < 0) return;
    this.#active = key;
    const [height, head] = [this.rowHeight, this.#body.offsetTop];
    const [top, room] = [this.#scroller.scrollTop, this.#scroller.clientHeight - head];
    if (place * height < top) this.#scroller.scrollTop = place * height;
    else if ((place + 1) * height > top + room) this.#scroller.scrollTop = (place + 1) * height - room;
    this.render();
    this.#body.querySelector(`[data-key="${CSS.escape(key)}"] a`)?.focus({ preventScroll: true });
  }

  /** Remember the row that has the focus, without moving the focus. */
  setActive(key) {
    this.#active = key;
    this.render();
  }

  /** The number of rows that fit the view. */
  get pageSize() {
    return Math.max(1, Math.floor(this.#scroller.clientHeight / this.rowHeight) - 2);
  }
}
