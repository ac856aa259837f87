/** The page: renders the overview stream as it arrives. The location `#/vm/UUID` shows one VM in detail. */

import { setAttribute, setText } from "./dom.js";
import { Detail } from "./detail.js";
import { Events } from "./events.js";
import { Host, stream } from "./live.js";
import * as sections from "./sections.js";
import { Vms } from "./vms.js";

const byId = (id) => document.getElementById(id);

const [vms, detail, events] = [new Vms(), new Detail(), new Events()];
let host = new Host();
let connection = null;

const selectedUuid = () => decodeURIComponent(/^#\/vm\/([^/]+)$/.exec(location.hash)?.[1] ?? "");

function render() {
  const uuid = selectedUuid();
  setAttribute(byId("vms"), "hidden", uuid !== "" || host.vms.size === 0);
  setAttribute(byId("no-vms"), "hidden", uuid !== "" || host.vms.size > 0 || !host.agent);
  vms.update(host);
  detail.update(host);
  sections.alerts(host, uuid);
  sections.activity(host, uuid);
  sections.disks(host, uuid);
  sections.agent(host);
  const [count, firing] = [host.vms.size, host.alerts.length];
  setText(byId("host"), host.agent?.host ?? "");
  setText(byId("counts"), `${count} VM${count === 1 ? "" : "s"} · ${firing || "no"} alert${firing === 1 ? "" : "s"}`);
  document.title = `${firing ? `(${firing}) ` : ""}${uuid && host.vms.has(uuid) ? `${host.vms.get(uuid).name} · ` : ""}${host.agent?.host ?? ""} · qmp-agent`;
}

/** Connect for the selected VM. The old state stays visible until the first message of the new connection. */
function connect() {
  connection?.close();
  let isFirst = true;
  const url = () => `overview/live${selectedUuid() ? `?vm=${encodeURIComponent(selectedUuid())}` : ""}`;
  connection = stream(url, {
    open: () => {
      isFirst = true;
    },
    message: (changes) => {
      if (isFirst) host = new Host();
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

function route() {
  const uuid = selectedUuid();
  if (location.hash && !location.hash.startsWith("#/")) return; // an anchor on this page
  detail.open(uuid);
  events.showOnly(uuid);
  render();
  connect();
  if (uuid) byId("detail-title").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

window.addEventListener("hashchange", route);
route();
