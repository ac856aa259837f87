/** Elements made and kept up to date. Text is always text: nothing here, and nobody who uses it, makes markup of a string. */

const SVG = "http://www.w3.org/2000/svg";

/** Make an element; `attributes` without a value are left out, functions are listeners. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same, of a drawing. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Set an element's text, unless it is that already. */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** Set or remove an attribute. */
export function set(node, name, value) {
  if (value === undefined || value === false || value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

const kept = new WeakMap();

/**
 * Have a parent show these items, a child each, in order. A child is made once for each key and then updated, so that focus, selection
 * and what is open stay where they are.
 * @param make item => {node, update(item)}
 */
export function keyed(parent, items, key, make) {
  const before = kept.get(parent) ?? new Map();
  const now = new Map();
  for (const item of items) now.set(key(item), before.get(key(item)) ?? make(item));
  for (const [name, part] of before) if (!now.has(name)) part.node.remove();
  let place = parent.firstChild;
  for (const part of now.values()) {
    if (part.node === place) place = place.nextSibling;
    else if (part.node.isConnected && parent.moveBefore) parent.moveBefore(part.node, place);
    else parent.insertBefore(part.node, place);
  }
  kept.set(parent, now);
  for (const item of items) now.get(key(item)).update(item);
}

/** A table's cell, which on a narrow screen names its column. */
export const cell = (label, ...children) => el("td", { role: "cell", "data-label": label }, ...children);
