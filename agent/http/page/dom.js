/** Creation and update of DOM elements. Strings are always inserted as text, never parsed as markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Create an HTML element. Attributes that are undefined or false are left out. A function becomes a listener of the event. */
export function el(tag, attributes = {}, ...children) {
  return fillElement(document.createElement(tag), attributes, children);
}

/** Create an SVG element, with attributes as for `el`. */
export function svg(tag, attributes = {}, ...children) {
  return fillElement(document.createElementNS(SVG, tag), attributes, children);
}

function fillElement(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Return the children of an element for a text of Markdown: `code` becomes an element, a link its text. */
export function withCode(text) {
  const parts = text.replace(/\[([^\]]+)\]\([^)]*\)/g, "$1").split("`");
  return parts.map((part, index) => (index % 2 ? el("code", {}, part) : part));
}

/** Set an element's text if it differs. */
export function setText(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** Set an attribute of an element. The values undefined, false and null remove the attribute. */
export function setAttribute(node, name, value) {
  if (value === undefined || value === false || value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

const renderedParts = new WeakMap();

/**
 * Render a child element for each item, in order. A child is created once for each key, and then only updated. So it keeps the focus, the
 * selection and open details.
 * @param key item => the key of the item's child
 * @param create item => {node, update(item)}
 */
export function renderList(parent, items, key, create) {
  const previous = renderedParts.get(parent) ?? new Map();
  const current = new Map();
  for (const item of items) current.set(key(item), previous.get(key(item)) ?? create(item));
  for (const [name, part] of previous) if (!current.has(name)) part.node.remove();
  let position = parent.firstChild;
  for (const part of current.values()) {
    if (part.node === position) position = position.nextSibling;
    else if (part.node.isConnected && parent.moveBefore) parent.moveBefore(part.node, position);
    else parent.insertBefore(part.node, position);
  }
  renderedParts.set(parent, current);
  for (const item of items) current.get(key(item)).update(item);
}

/** Create a table cell. On a narrow screen, the cell shows the label, the name of its column. */
export const cell = (label, ...children) => el("td", { role: "cell", "data-label": label }, ...children);
