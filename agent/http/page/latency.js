/** A table of the latency of disks with latency histograms; hidden without histograms. */

import { latency } from "./columns.js";
import { cell, el, setText } from "./dom.js";
import { number } from "./format.js";
import { createTable } from "./space-tables.js";

const QUANTILES = { p50: "Median", p99: "99 %", p999: "99.9 %" };

const OWNERS = { agent: "histogram set by the agent", other: "histogram set by another client" };

/** Return a quantile as a text. A quantile in the last bin of a histogram is a lower bound. */
const quantileText = (seconds, lastBoundary) => `${seconds >= lastBoundary ? "≥ " : ""}${latency(seconds)}`;

/** Create the table. An item is {device, kind, owner, values}: the values of one kind of operation of a disk. */
export function createLatencyTable() {
  const columns = ["Disk", "Operation", ...Object.values(QUANTILES), "Operations"];
  return createTable("latencies", "Latency of disks, last minute", columns, ({ device, kind }) => `${device} ${kind}`, ({ device, kind }) => {
    const times = Object.entries(QUANTILES).map(([name, title]) => ({ name, title, node: el("span", { class: "value" }) }));
    const rate = el("span", { class: "value" });
    const setBy = el("span", { class: "more" });
    const node = el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, device, " ", setBy), cell("Operation", kind.replaceAll("_", " ")), ...times.map((time) => cell(time.title, time.node)), cell("Operations", rate));
    return {
      node,
      update({ owner, values }) {
        setText(setBy, OWNERS[owner] ?? "");
        for (const time of times) setText(time.node, quantileText(values[time.name], values.last_boundary));
        setText(rate, `${number(values.operations / values.seconds)}/s`);
      },
    };
  });
}

/** Return the items of a VM's disks. */
export const latencyItems = (disks) => disks.flatMap(({ device, latencies = {}, histogram_owner: owner }) => Object.entries(latencies).map(([kind, values]) => ({ device, kind, owner, values })));
