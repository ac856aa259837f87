/** Streams of server-sent events that reconnect by themselves, and the host's state as the overview stream reports it. */

const MAX_POINTS = 60;
const RETRY_MS = { first: 500, max: 10_000 };

/**
 * Open a stream, and open it again whenever it ends. (EventSource itself does not reconnect after an error response.)
 * @param url () => the URL, evaluated for each connection
 * @param listeners {{open(), message(value, id), missed(value), disconnected()}}
 * @returns {{close()}}
 */
export function openStream(url, listeners) {
  let source, timer;
  let delay = RETRY_MS.first;
  const connect = () => {
    source = new EventSource(url());
    source.onopen = () => {
      delay = RETRY_MS.first;
      listeners.open?.();
    };
    source.onmessage = (event) => listeners.message(JSON.parse(event.data), event.lastEventId);
    source.addEventListener("missed", (event) => listeners.missed?.(JSON.parse(event.data)));
    source.onerror = () => {
      listeners.disconnected?.();
      source.close(); // its built-in retry delay is seconds long and fixed
      timer = setTimeout(connect, delay);
      delay = Math.min(delay * 2, RETRY_MS.max);
    };
  };
  connect();
  return {
    close() {
      clearTimeout(timer);
      source.close();
    },
  };
}

/** The host's state, built from the messages of one connection. */
export class HostState {
  constructor() {
    this.vms = new Map();
    this.history = new Map();
    this.monitors = [];
    this.alerts = [];
    this.pools = [];
    this.agent = null;
    this.detail = null;
  }

  /** Update the state with the changes in a message. */
  apply(changes) {
    for (const uuid of changes.gone ?? []) {
      this.vms.delete(uuid);
      this.history.delete(uuid);
    }
    for (const [uuid, points] of Object.entries(changes.history ?? {})) this.history.set(uuid, points);
    for (const [uuid, vm] of Object.entries(changes.vms ?? {})) {
      this.vms.set(uuid, vm);
      this.#addPoint(uuid, vm.now ?? {});
    }
    for (const part of ["monitors", "alerts", "pools", "agent", "detail"]) if (part in changes) this[part] = changes[part];
  }

  #addPoint(uuid, now) {
    const points = this.history.get(uuid) ?? [];
    if (!now.time || now.time <= (points.at(-1)?.[0] ?? 0)) return;
    points.push([now.time, ...["cpu", "read", "write", "reads", "writes", "memory"].map((name) => now[name] ?? null)]);
    this.history.set(uuid, points.slice(-MAX_POINTS));
  }
}
