/** The view of all firing alerts and of the latest events. `events.js` has the list of events and its filters. */

import { createAlertList } from "./alerts.js";
import { el, setAttribute } from "./dom.js";
import { EventList } from "./events.js";

export class EventsView {
  node;
  #alerts = createAlertList("Alerts firing");
  #none = el("p", { class: "none" }, "No alert fires.");
  #events = new EventList();

  constructor() {
    this.node = el("div", { class: "alerts-and-events" }, el("h2", { class: "hidden", tabindex: "-1" }, "Alerts and events"), this.#alerts.node, this.#none, this.#events.node);
  }

  open() {
    this.#events.open();
  }

  close() {
    this.#events.close();
  }

  title = (host) => `Events · ${host.agent?.host ?? ""}`;

  update(host) {
    this.#alerts.update(host.sortedAlerts(), host);
    setAttribute(this.#none, "hidden", host.alerts.size > 0 || !host.agent);
  }
}
