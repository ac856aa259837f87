/** The address of a view: `#/PATH?PARAMETERS`. A link with this address shows the same view again. Pure except for `location`. */

/**
 * Parse a location hash.
 * @returns {{path: string[], parameters: URLSearchParams} | null} null for an anchor on the page
 */
export function parseHash(hash) {
  if (hash && !hash.startsWith("#/")) return null;
  const [path, query] = hash.slice(2).split("?", 2);
  const parts = path.split("/").filter(Boolean).map(decode);
  return { path: parts, parameters: new URLSearchParams(query ?? "") };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // an address that a person typed
  }
}

/** Return the hash of a view. Empty parameters are left out. */
export function hashOf(path, parameters = {}) {
  const known = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== "");
  const query = new URLSearchParams(known).toString().replaceAll("%3A", ":").replaceAll("%2C", ",");
  return `#/${path.map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
}

/** Change the address without a new entry in the browser's history, and without a `hashchange`. */
export const replaceHash = (hash) => history.replaceState(null, "", hash);

export const vmHash = (uuid, tab) => hashOf(["vm", uuid], { tab });
export const poolHash = ({ kind, pool }) => hashOf(["pool", kind, pool]);

/** Return the address of the stream with the data of a view. */
export function streamUrl([kind, uuid]) {
  if (kind === "vm" && uuid) return `overview/live?vm=${encodeURIComponent(uuid)}`;
  return kind === "agent" ? "overview/live?monitors" : "overview/live";
}
