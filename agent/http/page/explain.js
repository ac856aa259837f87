/** Why a VM is slow or hangs: the sentences of the agent's explanation, the most likely cause first. */

import { el, renderList, setAttribute, withCode } from "./dom.js";

const TITLE = "Why it is slow or stands still";
const REFRESH_MS = 5000;

export class Explanation {
  node;
  #list = el("ol");
  #uuid = "";
  #timer;
  #abort = new AbortController();

  constructor() {
    this.node = el("section", { id: "explain", "aria-label": TITLE, hidden: true }, el("h2", {}, TITLE), this.#list);
  }

  /** Explain a VM until `close`. */
  open(uuid) {
    if (uuid === this.#uuid) return; // another section of the same VM
    this.close();
    this.#uuid = uuid;
    this.#abort = new AbortController();
    this.#request(this.#abort.signal);
  }

  close() {
    clearTimeout(this.#timer);
    this.#abort.abort();
    this.#uuid = "";
    this.#show([]);
  }

  async #request(signal) {
    try {
      const answer = await fetch(`explain?${new URLSearchParams({ vm: this.#uuid })}`, { signal });
      const causes = answer.ok ? (await answer.json()).causes : []; // a VM that is gone has no explanation
      if (!signal.aborted) this.#show(causes);
    } catch {
      // the stream shows that the agent does not answer
    }
    if (!signal.aborted) this.#timer = setTimeout(() => this.#request(signal), REFRESH_MS);
  }

  #show(causes) {
    setAttribute(this.node, "hidden", causes.length === 0);
    renderList(this.#list, [...causes.entries()], ([place]) => place, () => {
      const node = el("li");
      let shown = "";
      return {
        node,
        update([, { sentence }]) {
          if (sentence !== shown) node.replaceChildren(...withCode((shown = sentence)));
        },
      };
    });
  }
}
