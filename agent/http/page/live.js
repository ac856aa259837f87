/** What the agent says, as it comes: two streams of server-sent events that mend themselves, and this host put together from one of them. */

const POINTS = 60;
const RETRY = { first: 500, most: 10_000 };

/**
 * A stream that is opened again whenever it ends: a browser gives up by itself where it was answered with an error.
 * @param url () => where, asked at each opening
 * @param tell {{open(), message(value, id), missed(value), lost()}}
 * @returns {{close()}}
 */
export function stream(url, tell) {
  let source, timer;
  let wait = RETRY.first;
  const open = () => {
    source = new EventSource(url());
    source.onopen = () => {
      wait = RETRY.first;
      tell.open?.();
    };
    source.onmessage = (event) => tell.message(JSON.parse(event.data), event.lastEventId);
    source.addEventListener("missed", (event) => tell.missed?.(JSON.parse(event.data)));
    source.onerror = () => {
      tell.lost?.();
      source.close(); // its own waits are seconds long and not ours to choose
      timer = setTimeout(open, wait);
      wait = Math.min(wait * 2, RETRY.most);
    };
  };
  open();
  return {
    close() {
      clearTimeout(timer);
      source.close();
    },
  };
}

/** This host as the agent told it, from its first message on. */
export class Host {
  constructor() {
    this.vms = new Map();
    this.history = new Map();
    this.monitors = [];
    this.alerts = [];
    this.agent = null;
    this.detail = null;
  }

  /** Take what is new. */
  take(news) {
    for (const uuid of news.gone ?? []) {
      this.vms.delete(uuid);
      this.history.delete(uuid);
    }
    for (const [uuid, points] of Object.entries(news.history ?? {})) this.history.set(uuid, points);
    for (const [uuid, vm] of Object.entries(news.vms ?? {})) {
      this.vms.set(uuid, vm);
      this.#remember(uuid, vm.now ?? {});
    }
    for (const part of ["monitors", "alerts", "agent", "detail"]) if (part in news) this[part] = news[part];
  }

  #remember(uuid, now) {
    const points = this.history.get(uuid) ?? [];
    if (!now.time || now.time <= (points.at(-1)?.[0] ?? 0)) return;
    points.push([now.time, ...["cpu", "read", "write", "reads", "writes", "memory"].map((name) => now[name] ?? null)]);
    this.history.set(uuid, points.slice(-POINTS));
  }
}
