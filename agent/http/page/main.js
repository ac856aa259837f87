/** The page: one stream of this host's overview, shown as it comes; a VM in detail by the address `#/vm/UUID`. */

import { set, text } from "./dom.js";
import { Detail } from "./detail.js";
import { Events } from "./events.js";
import { Host, stream } from "./live.js";
import * as sections from "./sections.js";
import { Vms } from "./vms.js";

const byId = (id) => document.getElementById(id);

const [vms, detail, events] = [new Vms(), new Detail(), new Events()];
let host = new Host();
let opened = null;

const wanted = () => decodeURIComponent(/^#\/vm\/([^/]+)$/.exec(location.hash)?.[1] ?? "");

function show() {
  const uuid = wanted();
  set(byId("vms"), "hidden", uuid !== "" || host.vms.size === 0);
  set(byId("no-vms"), "hidden", uuid !== "" || host.vms.size > 0 || !host.agent);
  vms.update(host);
  detail.update(host);
  sections.alerts(host, uuid);
  sections.moves(host, uuid);
  sections.disks(host, uuid);
  sections.agent(host);
  const [count, firing] = [host.vms.size, host.alerts.length];
  text(byId("host"), host.agent?.host ?? "");
  text(byId("counts"), `${count} VM${count === 1 ? "" : "s"} · ${firing || "no"} alert${firing === 1 ? "" : "s"}`);
  document.title = `${firing ? `(${firing}) ` : ""}${uuid && host.vms.has(uuid) ? `${host.vms.get(uuid).name} · ` : ""}${host.agent?.host ?? ""} · qmp-agent`;
}

/** Listen anew, for the VM that is wanted in detail; what was known stays until the agent has said it all again. */
function listen() {
  opened?.close();
  let fresh = true;
  const url = () => `overview/live${wanted() ? `?vm=${encodeURIComponent(wanted())}` : ""}`;
  opened = stream(url, {
    open: () => {
      fresh = true;
    },
    message: (news) => {
      if (fresh) host = new Host();
      fresh = false;
      host.take(news);
      linked(true);
      show();
    },
    lost: () => linked(false),
  });
}

function linked(up) {
  text(byId("link"), up ? "live" : "the agent does not answer; trying again");
  set(byId("link"), "data-look", up ? "good" : "bad");
  document.body.classList.toggle("stale", !up);
}

function route() {
  const uuid = wanted();
  if (location.hash && !location.hash.startsWith("#/")) return; // a place on this page
  detail.open(uuid);
  events.only(uuid);
  show();
  listen();
  if (uuid) byId("detail-title").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

window.addEventListener("hashchange", route);
route();
