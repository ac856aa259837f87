/** A stream of server-sent events that reconnects automatically. */

const RETRY_MS = { first: 500, max: 10_000 };
const MAX_EARLY_CALLS = 50;

let early = null;

/** Open a stream before its listeners are loaded. `openStream` with the same URL takes over this stream. */
export function openEarly(address) {
  const opened = { url: () => address, calls: [], listeners: null };
  const pass = (name) => (...values) => {
    if (opened.listeners) opened.listeners[name]?.(...values);
    else if (opened.calls.push([name, values]) > MAX_EARLY_CALLS) closeEarly();
  };
  opened.stream = connectStream(() => opened.url(), { open: pass("open"), message: pass("message"), missed: pass("missed"), disconnected: pass("disconnected") });
  early = opened;
}

/** Close the early stream, because its listeners could not be loaded. */
function closeEarly() {
  early.stream.close();
  early = null;
}

/**
 * Open a stream, and open it again whenever it ends. (EventSource itself does not reconnect after an error response.)
 * @param url () => the URL, evaluated for each connection
 * @param listeners {{open(), message(value, id), missed(value), disconnected()}}
 * @returns {{close()}}
 */
export function openStream(url, listeners) {
  if (early?.url() !== url()) return connectStream(url, listeners);
  const { calls, stream } = Object.assign(early, { url, listeners });
  early = null;
  for (const [name, values] of calls) listeners[name]?.(...values);
  return stream;
}

function connectStream(url, listeners) {
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
