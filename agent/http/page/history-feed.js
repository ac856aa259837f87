/** Requests the history of a VM, of a pool or of the host from the agent, and keeps it up to date. */

export const RANGES = [
  ["5m", 300, "5 minutes"],
  ["1h", 3600, "1 hour"],
  ["6h", 21600, "6 hours"],
];
const REFRESH_MS = { 300: 5000, 3600: 15_000, 21600: 60_000 };

/** Return the seconds of a range's name; five minutes for an unknown name. */
export const rangeSeconds = (name) => (RANGES.find(([known]) => known === name) ?? RANGES[0])[1];

export class HistoryFeed {
  #parameters;
  #seconds;
  #onUpdate;
  #timer;
  #abort = new AbortController();
  #points = [];
  #columns = [];

  /**
   * @param parameters which history: {vm}, {pool, kind}, or {} for the host
   * @param seconds the range
   * @param onUpdate ({columns, points, from, to}) => called after each answer; times are in seconds
   */
  constructor(parameters, seconds, onUpdate) {
    [this.#parameters, this.#seconds, this.#onUpdate] = [parameters, seconds, onUpdate];
    this.#request();
  }

  close() {
    clearTimeout(this.#timer);
    this.#abort.abort();
  }

  async #request() {
    const after = this.#points.at(-1)?.[0] ?? 0;
    const query = new URLSearchParams({ ...this.#parameters, range: this.#seconds, after });
    try {
      const answer = await fetch(`history?${query}`, { signal: this.#abort.signal });
      if (answer.ok) this.#add(await answer.json());
    } catch {
      if (this.#abort.signal.aborted) return; // else the stream shows that the agent does not answer
    }
    if (!this.#abort.signal.aborted) this.#timer = setTimeout(() => this.#request(), REFRESH_MS[this.#seconds]);
  }

  #add({ columns, points }) {
    this.#columns = columns;
    const last = this.#points.at(-1)?.[0] ?? 0;
    this.#points.push(...points.filter(([time]) => time > last));
    const to = this.#points.at(-1)?.[0] ?? Date.now() / 1000;
    const from = to - this.#seconds;
    this.#points = this.#points.filter(([time]) => time > from);
    this.#onUpdate({ columns: this.#columns, points: this.#points, from, to });
  }
}

/** Create the choice of a range, as links. `hashOfRange` returns the address of the view with a range. */
export function rangeLinks(el, current, hashOfRange) {
  const links = RANGES.map(([name, seconds, text]) => el("a", { href: hashOfRange(name), "aria-current": seconds === current && "true" }, text));
  return el("nav", { class: "ranges", "aria-label": "Range of the graphs" }, ...links);
}
