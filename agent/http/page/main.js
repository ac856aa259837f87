/** The page: renders each message of the overview stream. The location `#/vm/UUID` shows the detail of one VM. */

import { setAttribute, setText } from "./dom.js";
import { DetailSection } from "./detail.js";
import { EventsSection } from "./events.js";
import { HostState, openStream } from "./live.js";
import * as sections from "./sections.js";
import { VmsSection } from "./vms.js";

const byId = (id) => document.getElementById(id);

const [vms, detail, events] = [new VmsSection(), new DetailSection(), new EventsSection()];
let host = new HostState();
let connection = null;

const selectedUuid = () => decodeURIComponent(/^#\/vm\/([^/]+)$/.exec(location.hash)?.[1] ?? "");

function render() {
  const uuid = selectedUuid();
  setAttribute(byId("vms"), "hidden", uuid !== "" || host.vms.size === 0);
  setAttribute(byId("no-vms"), "hidden", uuid !== "" || host.vms.size > 0 || !host.agent);
  vms.update(host);
  detail.update(host);
  sections.renderAlerts(host, uuid);
  sections.renderActivities(host, uuid);
  sections.renderPools(host, uuid);
  sections.renderDisks(host, uuid);
  sections.renderFilesystems(host, uuid);
  sections.renderAgent(host);
  const [count, firing] = [host.vms.size, host.alerts.length];
  setText(byId("host"), host.agent?.host ?? "");
  setText(byId("counts"), `${count} VM${count === 1 ? "" : "s"} · ${firing || "no"} alert${firing === 1 ? "" : "s"}`);
  document.title = `${firing ? `(${firing}) ` : ""}${uuid && host.vms.has(uuid) ? `${host.vms.get(uuid).name} · ` : ""}${host.agent?.host ?? ""} · qmp-agent`;
}

/** Open the overview stream with the detail of the selected VM. The old state stays visible until the first message of the new stream. */
function connect() {
  connection?.close();
  let isFirst = true;
  const url = () => `overview/live${selectedUuid() ? `?vm=${encodeURIComponent(selectedUuid())}` : ""}`;
  connection = openStream(url, {
    open: () => {
      isFirst = true;
    },
    message: (changes) => {
      if (isFirst) host = new HostState();
      isFirst = false;
      host.apply(changes);
      showConnection(true);
      render();
    },
    disconnected: () => showConnection(false),
  });
}

function showConnection(up) {
  setText(byId("connection"), up ? "live" : "the agent does not answer; reconnecting");
  setAttribute(byId("connection"), "data-look", up ? "good" : "bad");
  document.body.classList.toggle("stale", !up);
}

function showSelectedVm() {
  const uuid = selectedUuid();
  if (location.hash && !location.hash.startsWith("#/")) return; // an anchor on this page
  detail.open(uuid);
  events.showOnly(uuid);
  render();
  connect();
  if (uuid) byId("detail-title").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

window.addEventListener("hashchange", showSelectedVm);
showSelectedVm();
