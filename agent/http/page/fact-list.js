/** A list of facts, each with a title and a text. */

import { el, renderList, setAttribute, setText } from "./dom.js";

/** Create a list of facts. `update(facts)` takes [title, text, look][], and leaves out facts without a text. */
export function createFactList() {
  const node = el("dl", { class: "facts" });
  return {
    node,
    update(facts) {
      renderList(node, facts.filter((fact) => fact?.[1]), ([title]) => title, ([title]) => {
        const value = el("dd");
        return {
          node: el("div", {}, el("dt", {}, title), value),
          update([, text, look]) {
            setText(value, text);
            setAttribute(value, "data-look", look);
          },
        };
      });
    },
  };
}
