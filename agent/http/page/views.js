/** The views of the page. The overview's modules load with the page. Other views load after the first rows, or when the user opens a view. */

import { OverviewView } from "./overview.js";

const VIEWS = {
  "": async () => OverviewView,
  vm: async () => (await import("./vm-view.js")).VmView,
  storage: async () => (await import("./storage-view.js")).StorageView,
  pool: async () => (await import("./pool-view.js")).PoolView,
  events: async () => (await import("./events-view.js")).EventsView,
  host: async () => (await import("./host-view.js")).HostView,
  agent: async () => (await import("./agent-view.js")).AgentView,
};

/** Return the name of the view at an address; the overview for an unknown address. */
export const viewName = ([first]) => (first in VIEWS ? first : "");

/** Return the class of a view. */
export const loadView = (name) => VIEWS[name]();

/** Load the modules of all views. If the agent does not answer, a view loads when it is opened. */
export const loadAllViews = () => Promise.allSettled(Object.keys(VIEWS).map(loadView));
