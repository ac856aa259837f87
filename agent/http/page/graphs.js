/** Definitions of the graphs of a VM and of the host: the columns of the history, and the metrics with the same figures. */

import { latency } from "./columns.js";
import { bytes, number, percent } from "./format.js";
import { GraphGroup } from "./graph.js";
import { loadFields, selector, showQuery } from "./promql.js";

const rate = (value) => `${bytes(value)}/s`;

/** Each graph: `fields` are [family, field][]; `promql(selectorOf)` replaces the query where a figure needs more than one series. */
const GRAPHS = {
  cpu: { title: "CPU", series: [["cpu", "used", "cpu"], ["steal", "steal", "steal"]], format: percent, top: 0.1, fields: [["vcpu", "cpu_seconds_total"], ["vcpu", "run_delay_seconds_total"]] },
  io: { title: "Disk throughput", series: [["read", "read", "read"], ["write", "write", "write"]], format: rate, isBinary: true, top: 1024, fields: [["block", "read_bytes_total"], ["block", "write_bytes_total"]] },
  operations: { title: "Disk operations", series: [["reads", "reads", "read"], ["writes", "writes", "write"]], format: (value) => `${number(value)}/s`, top: 1, fields: [["block", "reads_total"], ["block", "writes_total"]] },
  latency: { title: "Disk latency", series: [["read_latency", "read", "read"], ["write_latency", "write", "write"]], format: latency, top: 0.001, fields: [["block", "read_seconds_total"], ["block", "write_seconds_total"]], promql: (of) => ["read", "write"].map((kind) => `rate(${of(`qemu_block_${kind}_seconds_total`)}[5m]) / rate(${of(`qemu_block_${kind}s_total`)}[5m])`) },
  memory: { title: "Memory", series: [["used", "used by the guest", "memory"], ["resident", "resident in the host", "resident"]], format: bytes, isBinary: true, top: 1 << 20, fields: [["guest_memory", "available_bytes"], ["process", "resident_bytes"]], promql: (of) => [`${of("qemu_guest_memory_total_bytes")} - ${of("qemu_guest_memory_available_bytes")}`, of("qemu_process_resident_bytes")] },
  network: { title: "Network", series: [["receive", "received", "read"], ["transmit", "sent", "write"]], format: rate, isBinary: true, top: 1024, fields: [["net", "receive_bytes_total"], ["net", "transmit_bytes_total"]] },
  space: { title: "Used space of thin disks", series: [["disk", "used", "cpu"]], format: bytes, isBinary: true, top: 1 << 20, fields: [["block_space", "used_bytes"]] },
};

export const ALL_GRAPHS = Object.keys(GRAPHS);

/**
 * Create graphs.
 * @param names names in `GRAPHS`
 * @param labels the labels of the series: those of a VM; none for the sum over all VMs
 * @returns {{nodes, update(history, marks)}}
 */
export function createGraphs(names, labels) {
  const group = new GraphGroup();
  const graphs = names.map((name) => {
    const { series, fields, promql, ...spec } = GRAPHS[name];
    const parts = series.map(([column, label, style]) => ({ column, label, style }));
    return group.add({ ...spec, series: parts, onQuery: () => queryGraph(GRAPHS[name], labels) });
  });
  return { nodes: graphs.map((graph) => graph.node), update: (history, marks) => group.update(history, marks) };
}

async function queryGraph({ title, series, fields, promql }, labels) {
  const known = await loadFields();
  const isHost = Object.keys(labels).length === 0;
  const special = promql?.((name) => (isHost ? name : selector(name, labels)));
  const entries = fields.map(([family, name], index) => {
    const [kind, help, exported] = known[family].fields[name];
    return { series: exported, kind, help: `${series[index][1]}: ${help}`, labels, promql: special?.[index], isSum: isHost };
  });
  showQuery(title, entries);
}
