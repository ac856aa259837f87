/** Texts and lists of firing alerts. */

import { el, renderList, setAttribute, setText, withCode } from "./dom.js";
import { bytes, clock, duration, fieldName } from "./format.js";
import { createNames } from "./names.js";
import { hashOf, poolHash, vmHash } from "./view-address.js";

/** The alerts that report why QEMU stopped a guest. */
const STOPPING = new Set(["disk_full", "io_error_stop", "watchdog_stop", "guest_panicked", "internal_error", "reset_stopped", "shutdown_stuck"]);

/** Return whether an alert reports why the guest does not run. */
export function isStopReason(host, { alert, uuid }) {
  const vm = host.vm?.uuid === uuid ? host.vm : host.vms.get(uuid);
  return STOPPING.has(alert) && vm?.running === false;
}

/** Return the name of an alert in words. If the alert reports why the guest does not run, the words say so. */
export const alertName = (host, alert) => `${isStopReason(host, alert) ? "stopped: " : ""}${fieldName(alert.alert)}`;

/** Return the address of the pool of an alert; undefined without a pool that the page knows. */
function hashOfPool(host, { alert, subject }) {
  const pool = alert.startsWith("pool_") ? [...host.pools.values()].find((known) => known.pool === subject) : undefined;
  return pool && poolHash(pool);
}

/** Return the address of the view of an alert's VM or pool, or else of the view of all alerts. */
export const hashOfAlert = (host, alert) => (alert.uuid ? vmHash(alert.uuid, "alerts") : (hashOfPool(host, alert) ?? hashOf(["events"])));

/** Return the details of an alert as a text: exceeded level, free space, growth. */
export function describeAlert(alert) {
  return [
    alert.level && `level ${alert.level.replace(/^threshold (\d+)$/, (_, size) => bytes(Number(size)))} exceeded`,
    alert.free_bytes !== undefined && `${bytes(alert.free_bytes)} free`,
    alert.growth_bytes_per_second > 0 && `growing ${bytes(alert.growth_bytes_per_second)}/s`,
    alert.time_to_full_seconds !== undefined && `full in ${duration(alert.time_to_full_seconds)}`,
  ].filter(Boolean).join(" · ");
}

let descriptions = null;

/** Request the descriptions of all alerts once. */
function loadDescriptions() {
  descriptions ??= fetch("alert-descriptions").then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`HTTP ${answer.status}`))));
  descriptions.catch(() => (descriptions = null)); // try again at the next alert
  return descriptions;
}

/** Create the description of an alert: its meaning, with causes and remedy to unfold. The operator's own alerts have no description. */
function createDescription(name, open) {
  const [meaning, cause, action] = ["span", "p", "p"].map((tag) => el(tag));
  const node = el("details", { class: "help", open, hidden: true }, el("summary", {}, meaning, " ", el("span", { class: "link" }, "Causes, and what to do")), cause, action);
  const show = (known) => {
    const info = known[name];
    if (!info) return;
    setText(meaning, info.help);
    cause.replaceChildren(el("b", {}, "Usual causes: "), ...withCode(info.cause));
    action.replaceChildren(el("b", {}, "What to do: "), ...withCode(info.action));
    setAttribute(node, "hidden", false);
  };
  loadDescriptions().then(show, () => {}); // the stream shows that the agent does not answer
  return node;
}

/** Create an item of a list of alerts. `isOfOne`: leave out the VM or pool, which the whole list shares. `isOpen`: unfold the description. */
function createAlert(first, isOfOne, isOpen) {
  const [name, detail, since] = [el("b"), el("span", { class: "what" }), el("span", { class: "more" })];
  const vm = first.uuid && !isOfOne ? [el("a", { href: vmHash(first.uuid) }, first.vm), " "] : [];
  const subject = el(first.uuid ? "span" : "a", {}, first.subject);
  const what = el("span", {}, ...vm, name, ...(first.subject && (first.uuid || !isOfOne) ? [" ", subject] : []));
  const names = createNames();
  const node = el("li", { "data-severity": first.severity }, el("span", { class: "severity" }, first.severity), what, detail, names.node, since, createDescription(first.alert, isOpen));
  return {
    node,
    update({ alert, host }) {
      setText(name, alertName(host, alert));
      if (!alert.uuid) setAttribute(subject, "href", hashOfPool(host, alert));
      setText(detail, describeAlert(alert));
      setAttribute(names.node, "hidden", !alert.vm_names?.length);
      names.update(alert, host);
      setText(since, `since ${clock(alert.since)}`);
    },
  };
}

/** Create a section with a list of alerts. `isOfOne`: all alerts are of one VM or pool. `update(alerts, host)` hides a section without alerts. */
export function createAlertList(title, { isOfOne = false } = {}) {
  const list = el("ul", { class: "alerts" });
  const node = el("section", { id: "alerts", "aria-label": title, hidden: true }, el("h2", {}, title), list);
  return {
    node,
    update(alerts, host) {
      setAttribute(node, "hidden", alerts.length === 0);
      const items = alerts.map((alert) => ({ alert, host }));
      renderList(list, items, ({ alert }) => alert.fingerprint, ({ alert }) => createAlert(alert, isOfOne, isOfOne && alert === alerts[0]));
    },
  };
}
