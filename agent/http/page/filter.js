/** The filter of the VM table: words and `key:value` pairs. The table shows the VMs that match every one of them. Pure. */

import { SEVERITIES, isStopped, stateOf } from "./host-state.js";

const KEYS = {
  state: (value) => (vm) => stateOf(vm).word.startsWith(value) || (value === "stopped" && isStopped(vm)),
  alert: (value) => (vm, alerts) => (value === "any" ? alerts.length > 0 : alerts.some((alert) => alert.severity === value || alert.alert.includes(value))),
  label: (value) => (vm) => Object.entries(vm.labels ?? {}).some(([name, text]) => matchesLabel(value, name.toLowerCase(), String(text).toLowerCase())),
  is: (value) => (vm) => Boolean({ degraded: vm.degraded?.length, busy: vm.activity }[value]),
};

function matchesLabel(wanted, name, text) {
  const [key, value] = wanted.split("=", 2);
  return name === key && (value === undefined || text === value);
}

/** Split a filter into words. A quoted text with spaces is one word. */
const split = (text) => [...text.toLowerCase().matchAll(/(?:[^\s"]|"[^"]*"?)+/g)].map(([word]) => word.replaceAll('"', ""));

/**
 * Parse a filter.
 * @returns (vm, alerts) => whether the VM with these alerts matches
 */
export function parseFilter(text) {
  const tests = split(text).map((word) => {
    const [, key, value] = /^(\w+):(.+)$/.exec(word) ?? [];
    if (key in KEYS) return KEYS[key](value);
    return (vm) => `${vm.name} ${vm.uuid} ${stateOf(vm).word}`.toLowerCase().includes(word);
  });
  return (vm, alerts) => tests.every((test) => test(vm, alerts));
}

/** The help on the filter: examples, each with its meaning. */
export const FILTER_HELP = [
  ["web", "the name, UUID or state contains “web”"],
  ["state:paused", "the state begins with “paused”"],
  ["state:stopped", "QEMU stopped the guest, after an error or after the guest shut down"],
  ["alert:any", "an alert fires"],
  [`alert:${SEVERITIES[0]}`, "an alert of this severity, or with this word in its name, fires"],
  ["label:tier=gold", "the VM's manager has this label"],
  ["is:degraded", "a collector is off"],
  ["is:busy", "a migration or a job is under way"],
];
