/** The page: opens the overview stream for the view in the address, and renders that view after each message. */

import "./early-stream.js"; // usually done before the other modules are loaded
import { setAttribute, setText, renderList, el } from "./dom.js";
import { openHelp } from "./help-dialog.js";
import { openStream } from "./event-stream.js";
import { overviewHash } from "./overview.js";
import { parseHash, streamUrl } from "./view-address.js";
import { HostState } from "./host-state.js";
import { loadAllViews, loadView, viewName } from "./views.js";

const NAVIGATION = { vm: "", pool: "storage" }; // the link of a view that has none of its own
const byId = (id) => document.getElementById(id);

const made = new Map(); // a view is created once, so that it keeps filters and open details
let host = new HostState();
let view = null;
let route = { path: [], parameters: new URLSearchParams() };
let connection = null;
let connectedUrl = "";
let mustReload = false; // the modules of a view did not load, and a browser may not request them again

function render() {
  view.update(host);
  setText(byId("host"), host.agent?.host ?? "");
  const problems = [...(host.agent?.unready_reasons ?? []), ...(host.agent?.warnings ?? [])];
  setAttribute(byId("problems"), "hidden", problems.length === 0);
  renderList(byId("problems"), problems, (problem) => problem, (problem) => ({ node: el("li", {}, problem), update() {} }));
  const firing = host.alerts.size;
  document.title = [`${firing ? `(${firing}) ` : ""}${view.title?.(host) || (host.agent?.host ?? "")}`, "qmp-agent"].filter(Boolean).join(" · ");
}

/** Open the stream of the view. The old state stays visible until the first message of the new stream. */
function connect() {
  const url = streamUrl(route.path);
  if (connectedUrl === url) return;
  connection?.close();
  connectedUrl = url;
  let isFirst = true;
  connection = openStream(() => url, {
    open: () => (isFirst = true),
    message: (changes) => {
      if (mustReload) return location.reload();
      if (isFirst) host = keepRows(host, changes);
      if (isFirst) requestAnimationFrame(() => setTimeout(loadAllViews)); // after the first rows are visible
      isFirst = false;
      host.apply(changes);
      showConnection(true);
      render();
    },
    disconnected: () => showConnection(false),
  });
}

/** Return a new state for a new connection. The stream of one VM has no rows, so keep the old rows for the return to the table. */
function keepRows(before, changes) {
  const state = new HostState();
  if (!changes.rows && route.path[0] === "vm") Object.assign(state, { vms: before.vms, uuidsByName: before.uuidsByName, hasRows: before.hasRows });
  return state;
}

function showConnection(up) {
  setText(byId("connection"), up ? "live" : "the agent does not answer; reconnecting");
  setAttribute(byId("connection"), "data-look", up ? "good" : "bad");
  document.body.classList.toggle("stale", !up);
}

/** Load the view at the address, and show it. */
async function showView() {
  const { hash } = location;
  const found = parseHash(hash);
  if (found === null) return; // an anchor on this page
  const kind = viewName(found.path);
  const View = made.has(kind) ? null : await loadView(kind).catch(onLoadFailed);
  if (location.hash !== hash || View === undefined) return; // the user went on meanwhile, or the view did not load
  if (!made.has(kind)) made.set(kind, new View());
  switchTo(kind, found);
}

function onLoadFailed() {
  mustReload = true;
  showConnection(false);
}

function switchTo(kind, found) {
  const before = view;
  route = found;
  view = made.get(kind);
  if (before !== view) {
    before?.close?.();
    byId("view").replaceChildren(view.node);
  }
  for (const link of byId("views").children) setAttribute(link, "aria-current", link.dataset.view === (NAVIGATION[kind] ?? kind) ? "page" : undefined);
  setAttribute(byId("views").firstElementChild, "href", overviewHash());
  view.open?.(route, host);
  render();
  connect();
  if (before !== null && before !== view) {
    view.node.querySelector("h2[tabindex]")?.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
}

/** Keys that work everywhere except in an input field. */
function onKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, select, textarea")) return;
  if (event.key === "?") openHelp();
  else if (event.key === "Escape" && route.path.length > 0) location.hash = route.path[0] === "pool" ? "#/storage" : overviewHash();
  else if (event.key === "/" && !view?.onKey) location.hash = overviewHash();
  else if (!view?.onKey?.(event)) return;
  event.preventDefault();
}

document.addEventListener("keydown", onKey);
byId("keys-button").addEventListener("click", openHelp);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is that of the view
  byId("main").focus();
});
window.addEventListener("hashchange", showView);
showView();
