/** Formatting of values for display. Pure. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Format a size in bytes with three digits: `1.5 GiB`. */
export function bytes(size) {
  let unit = 0;
  while (Math.abs(size) >= 999.5 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  const isBelowOne = unit > 0 && Math.abs(size) < 1; // 1010 MiB are 0.99 GiB
  return `${isBelowOne ? size.toFixed(2) : number(size)} ${UNITS[unit]}`;
}

/** Format a number with three digits. */
export function number(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return value.toExponential(2);
  return size >= 99.95 ? value.toFixed(0) : String(Number(value.toPrecision(size < 0.01 ? 1 : 3)));
}

/** Format a share from 0 to 1 as a percentage. */
export const percent = (share) => `${number(Number((share * 100).toFixed(1)))} %`;

/** Format a duration in seconds in at most two units: `2 h 5 min`. */
export function duration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  const days = Math.round(hours / 24);
  return days < 1000 ? `${days} days` : "years";
}

/** Format a timestamp in seconds since the epoch as the time of day, with the date if that is not today. */
export function clock(seconds) {
  const at = new Date(seconds * 1000);
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.toLocaleDateString("sv")} `;
  return day + at.toLocaleTimeString("sv");
}

/** Format the value of a field. The name of the field, such as `read_bytes_total`, has the unit. */
export function fieldValue(name, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value?.counts) return `${value.counts.reduce((sum, count) => sum + count, 0)} operations`; // a histogram
  if (typeof value === "object" && value !== null) return JSON.stringify(value);
  if (typeof value !== "number") return String(value);
  if (name.endsWith("timestamp_seconds")) return clock(value);
  if (name.includes("bytes_per_second")) return `${bytes(value)}/s`;
  if (name.includes("bytes")) return bytes(value);
  if (name.includes("seconds")) return duration(value);
  if (name.endsWith("_ratio")) return percent(value);
  return Number.isInteger(value) ? String(value) : number(value);
}

/** Format the rate of a counter. The name of the counter has the unit. Seconds per second are a percentage. */
export function fieldRate(name, value) {
  if (name.includes("bytes")) return `${bytes(value)}/s`;
  if (name.includes("seconds")) return percent(value);
  return `${number(value)}/s`;
}

/** Return a text that begins with a capital letter. */
export const sentenceCase = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const NATURAL_ORDER = new Intl.Collator("en", { numeric: true });

/** Compare two names in natural order: `vm2` precedes `vm10`. */
export const compareNames = (a, b) => NATURAL_ORDER.compare(a, b);

const UNIT_SUFFIXES = [
  [/_total$/, ""],
  [/_bytes_per_second$|_timestamp_seconds$|_bytes$|_ratio$/, ""],
  [/^(time_.*)_seconds$/, "$1"],
  [/_seconds$/, "_time"],
];

/** Return the name of a field in words, without the unit: `read` for `read_bytes_total`, `read time` for `read_seconds_total`. */
export const fieldName = (name) => UNIT_SUFFIXES.reduce((words, [suffix, word]) => words.replace(suffix, word), name).replaceAll("_", " ");
