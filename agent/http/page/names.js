/** Names of VMs as links. */

import { el, renderList, setAttribute, setText } from "./dom.js";
import { hashOf, vmHash } from "./view-address.js";

const MAX_LINKS = 4;

/** Return the address of the only VM with this name, or else of the table with a filter. */
export function hashOfName(host, name) {
  const uuid = host.uuidsByName.get(name);
  return uuid ? vmHash(uuid) : hashOf([], { q: `"${name}"` });
}

/** Return the names of the first VMs, and the number of further VMs, as a text. */
export function nameVms({ vms, vm_names: names = [] }) {
  const first = names.slice(0, MAX_LINKS);
  return `${first.join(", ")}${vms > first.length ? ` and ${vms - first.length} more` : ""}`;
}

/** Create the text of `nameVms`, whose names are links. `update({vms, vm_names}, host)` */
export function createNames() {
  const [links, more] = [el("span"), el("span")];
  return {
    node: el("span", {}, links, more),
    update({ vms, vm_names: names = [] }, host) {
      const first = names.slice(0, MAX_LINKS);
      renderList(links, [...first.entries()], ([place, name]) => `${place} ${name}`, ([place, name]) => {
        const link = el("a", {}, name);
        return { node: el("span", {}, place ? ", " : "", link), update: () => setAttribute(link, "href", hashOfName(host, name)) };
      });
      setText(more, vms > first.length ? ` and ${vms - first.length} more` : "");
    },
  };
}
