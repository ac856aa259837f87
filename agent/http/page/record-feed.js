/** The latest events, alerts and lifecycle records, received once for all views. */

import { fieldName, fieldValue } from "./format.js";
import { openStream } from "./event-stream.js";

const MAX_KEPT = 500;
const SEVERITIES = { DEBUG: "debug", INFO: "info", WARN: "warning", ERROR: "error", FATAL: "critical" };
const RANKS = Object.keys(SEVERITIES);
const HIDDEN_FIELDS = new Set(["event", "category", "alert", "fingerprint", "since_timestamp_seconds"]);
const BYTE_FIELDS = new Set(["actual", "write-threshold", "amount-exceeded"]); // QEMU's own fields, whose names have no unit
const MARKED = /^qemu\.(alert\.|vm\.(?!attached|detached)|migration\.|event\.(stop|resume|reset|shutdown|suspend|wakeup|guest_|watchdog|block_io_error|block_job_(completed|error|cancelled)|device_deleted))/;

function* describeFields(data, subject) {
  for (const [name, value] of Object.entries(data)) {
    if (name === "qemu" && value && typeof value === "object") yield* describeFields(value, subject);
    else if (!HIDDEN_FIELDS.has(name) && ![0, "", null, subject].includes(value)) yield `${fieldName(name).replaceAll("-", " ")} ${fieldValue(BYTE_FIELDS.has(name) ? `${name}_bytes` : name, value)}`;
  }
}

function toEntry(record) {
  const subject = record.subject ?? "";
  const description = [...describeFields(record.data, subject)].join(" · ").slice(0, 400);
  const time = Date.parse(record.time) / 1000;
  const type = fieldName(record.type.replace(/^qemu\./, "")).replace(".", " · ");
  return { record, id: record.id, uuid: record.vmuuid, time, type, subject, description, vm: record.vmname ?? record.partitionkey ?? "", severity: SEVERITIES[record.severitytext] ?? "", rank: RANKS.indexOf(record.severitytext), isMarked: MARKED.test(record.type) };
}

class RecordFeed {
  kept = []; // newest first
  #last = "";
  #listeners = new Set();
  #isScheduled = false;

  constructor() {
    const url = () => `records?recent&type=qemu.event.,qemu.alert.,qemu.vm.,qemu.migration.,qemu.agent.&after=${encodeURIComponent(this.#last)}`;
    openStream(url, {
      message: (record, id) => this.#add(record, id),
      missed: ({ records }) => this.#add({ id: `missed-${performance.now()}`, type: "page.missed", severitytext: "WARN", time: new Date().toISOString(), data: { records } }),
    });
  }

  /** Call a listener after new records have arrived, once per frame. */
  listen(listener) {
    this.#listeners.add(listener);
  }

  unlisten(listener) {
    this.#listeners.delete(listener);
  }

  /** Return the records that report changes of a VM's state, as marks for graphs. Without a UUID, return those of all VMs. */
  marks(uuid) {
    const meant = this.kept.filter((entry) => entry.isMarked && (!uuid || entry.uuid === uuid)).slice(0, 60);
    return meant.map((entry) => ({ time: entry.time, text: [uuid ? "" : entry.vm, entry.type.replace(" · ", " "), entry.subject].filter(Boolean).join(" "), look: entry.rank >= 3 ? "bad" : entry.rank === 2 ? "warning" : "idle" }));
  }

  #add(record, id) {
    if (id) this.#last = id;
    this.kept.unshift(toEntry(record));
    this.kept.splice(MAX_KEPT);
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    requestAnimationFrame(() => {
      this.#isScheduled = false;
      for (const listener of this.#listeners) listener();
    });
  }
}

let feed = null;

/** Return the feed; the first call opens its stream. */
export const recordFeed = () => (feed ??= new RecordFeed());
