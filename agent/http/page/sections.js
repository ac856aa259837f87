/** The smaller sections: alerts, thin disks, migrations and jobs, the agent itself. A section with nothing to show is not shown. */

import { cell, el, keyed, set, text } from "./dom.js";
import { fullness } from "./draw.js";
import { bytes, clock, duration, percent, words } from "./format.js";

const byId = (id) => document.getElementById(id);

const link = (uuid, name) => el("a", { href: `#/vm/${uuid}` }, name);

// Alerts.

function alert(first) {
  const what = el("b", {}, words(first.alert));
  const detail = el("span", { class: "what" });
  const since = el("span", { class: "more" });
  const node = el("li", { "data-severity": first.severity }, el("span", { class: "severity" }, first.severity), el("span", {}, what, " ", link(first.uuid, first.vm), first.subject ? ` ${first.subject}` : ""), detail, since);
  return {
    node,
    update(one) {
      const said = [
        one.level && `past ${one.level.replace(/^threshold (\d+)$/, (_, size) => `a threshold of ${bytes(Number(size))}`)}`,
        one.free_bytes !== undefined && `${bytes(one.free_bytes)} left`,
        one.growth_bytes_per_second > 0 && `grows ${bytes(one.growth_bytes_per_second)}/s`,
      ];
      text(detail, said.filter(Boolean).join(" · "));
      text(since, `since ${clock(one.since)}`);
    },
  };
}

export function alerts(host, uuid) {
  const shown = host.alerts.filter((one) => !uuid || one.uuid === uuid);
  set(byId("alerts"), "hidden", shown.length === 0);
  keyed(byId("alerts").querySelector("ul"), shown, (one) => one.fingerprint, alert);
}

// Thin disks.

function disk({ vm, disk: first }) {
  const bar = fullness();
  const [used, headroom, growth, left] = ["used", "value", "more", "value"].map((name) => el("span", { class: name }));
  const ladder = el("ol", { class: "ladder", "aria-label": "Levels" });
  const note = el("span", { class: "more" });
  const node = el(
    "tr",
    { role: "row" },
    el("th", { role: "rowheader", scope: "row" }, link(vm.uuid, vm.name), ` ${first.device}`),
    cell("Used", bar.node, el("div", { class: "under" }, used, ladder)),
    cell("Headroom", headroom, note),
    cell("Full in", left, growth),
  );
  return {
    node,
    update({ disk: now }) {
      const share = now.used_bytes / now.limit_bytes;
      const rungs = now.levels ?? [];
      const over = rungs.filter(([, at]) => now.used_bytes > at).length;
      const level = over === 0 ? "ok" : over === rungs.length ? "critical" : "warning";
      const said = `${bytes(now.used_bytes)} of ${bytes(now.limit_bytes)}`;
      bar.update(share, rungs.map(([, at]) => at / now.limit_bytes), `${said} used, ${over} of ${rungs.length} levels exceeded`, level);
      text(used, `${said} · ${percent(share)}`);
      keyed(ladder, rungs, ([name]) => name, ([name]) => {
        const rung = el("li", {}, name);
        return { node: rung, update: ([, at]) => set(rung, "data-over", now.used_bytes > at) };
      });
      text(headroom, bytes(now.free_bytes));
      const armed = now.armed_threshold_bytes !== undefined ? `armed at ${bytes(now.armed_threshold_bytes)}` : "";
      text(note, now.threshold_foreign ? "its threshold is somebody else's" : armed);
      text(left, now.time_to_full_seconds !== undefined ? duration(now.time_to_full_seconds) : "does not grow");
      text(growth, now.growth_bytes_per_second > 0 ? `grows ${bytes(now.growth_bytes_per_second)}/s` : "");
    },
  };
}

export function disks(host, uuid) {
  const shown = [...host.vms.values()]
    .filter((vm) => !uuid || vm.uuid === uuid)
    .flatMap((vm) => (vm.disks ?? []).filter((one) => one.limit_bytes).map((one) => ({ vm, disk: one })));
  shown.sort((a, b) => b.disk.used_bytes / b.disk.limit_bytes - a.disk.used_bytes / a.disk.limit_bytes);
  set(byId("disks"), "hidden", shown.length === 0);
  keyed(byId("disks").querySelector("tbody"), shown, (one) => `${one.vm.uuid} ${one.disk.device}`, disk);
}

// Migrations and jobs.

function move(first) {
  const [what, status, done, left] = ["", "more", "more", "value"].map((name) => el("span", { class: name }));
  const bar = el("progress", { max: 1, "aria-label": "Progress" });
  const progress = cell("Progress", bar, done);
  const node = el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, link(first.vm.uuid, first.vm.name)), cell("What", what, status), progress, cell("Left", left));
  return {
    node,
    update(now) {
      text(what, now.what);
      text(status, now.status);
      set(bar, "hidden", now.share === undefined);
      if (now.share !== undefined) bar.value = now.share;
      text(done, now.done);
      progress.classList.toggle("empty", !now.done);
      text(left, now.left === undefined ? "" : duration(now.left));
    },
  };
}

const ENDED = ["completed", "failed", "cancelled"];

function moving(vm) {
  const found = (vm.jobs ?? []).map((job) => ({
    vm,
    key: `${vm.uuid} job ${job.job}`,
    what: `${job.type} ${job.job}`,
    status: [job.status, job.error].filter(Boolean).join(": "),
    share: job.progress_ratio,
    done: job.progress_ratio === undefined ? "" : percent(job.progress_ratio),
    left: job.remaining_seconds,
  }));
  const { migration } = vm;
  if (!migration) return found;
  const { status, total_bytes: of, done_bytes: done, elapsed_seconds: took, throughput_bytes_per_second: speed } = migration;
  const ended = ENDED.includes(status);
  const said = of ? [`${bytes(done)} of ${bytes(of)}`, speed > 0 && `${bytes(speed)}/s`] : [took !== undefined && ended && `took ${duration(took)}`];
  found.push({ vm, key: `${vm.uuid} migration`, what: "migration", status, share: of ? done / of : undefined, done: said.filter(Boolean).join(" · "), left: migration.remaining_seconds });
  return found;
}

export function moves(host, uuid) {
  const shown = [...host.vms.values()].filter((vm) => !uuid || vm.uuid === uuid).flatMap(moving);
  set(byId("moves"), "hidden", shown.length === 0);
  keyed(byId("moves").querySelector("tbody"), shown, (one) => one.key, move);
}

// The agent itself.

function fact(first) {
  const value = el("dd");
  return {
    node: el("div", {}, el("dt", {}, first[0]), value),
    update([, said, look]) {
      text(value, said);
      set(value, "data-look", look);
    },
  };
}

function facts(agent, monitors) {
  const { sink, journal, queues } = agent;
  const states = [...Map.groupBy(monitors, (one) => one.state)].map(([state, all]) => `${all.length} ${state}`);
  const waiting = queues.reduce((all, queue) => all + queue.records, 0);
  const lag = Math.max(...queues.map((queue) => queue.oldest_record_age_seconds));
  const lost = [...agent.dropped.map((one) => [`${one.reason} (${one.queue})`, one.records]), ...Object.entries(agent.events_dropped)].filter(([, count]) => count > 0);
  return [
    ["Version", agent.version],
    ["Monitors", states.join(", ") || "none found", monitors.some((one) => one.state !== "up") ? undefined : "good"],
    ["Records go to", sink.error ? `${sink.name}: ${sink.error}` : sink.name, sink.error ? "bad" : "good"],
    journal && ["Journal", journal.error ?? (journal.quarantined ? `${journal.quarantined} damaged files set aside` : "in order"), journal.error ? "bad" : "good"],
    ["Delivered", agent.delivered.toLocaleString("en")],
    ["Waiting", waiting ? `${waiting.toLocaleString("en")} records, the oldest for ${duration(lag)}` : "nothing"],
    ["Dropped", lost.map(([why, count]) => `${count} ${why}`).join(", ") || "nothing", lost.length ? "bad" : "good"],
    agent.reconnects > 0 && ["Sink rebuilt", `${agent.reconnects} times`],
  ].filter(Boolean);
}

const LOOKS = { up: "good", stalled: "bad", denied: "bad", busy: "warning" };

function monitor(first) {
  const [state, who, why] = [el("span", { class: "state" }), el("span"), el("span", { class: "what" })];
  const cells = [cell("State", state), cell("VM", who), cell("Why", why)];
  const node = el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, first.monitor), ...cells);
  return {
    node,
    update(one) {
      text(state, one.state);
      set(state, "data-look", LOOKS[one.state] ?? "idle");
      text(who, one.vm);
      text(why, one.reason || `since ${clock(one.since)}`);
      cells[1].classList.toggle("empty", !one.vm);
    },
  };
}

export function agent(host) {
  if (!host.agent) return;
  set(byId("agent"), "hidden", false);
  keyed(byId("agent").querySelector(".facts"), facts(host.agent, host.monitors), ([name]) => name, fact);
  const sorted = [...host.monitors].sort((a, b) => (a.state === "up") - (b.state === "up") || (a.monitor < b.monitor ? -1 : 1));
  set(byId("agent").querySelector("table"), "hidden", sorted.length === 0);
  keyed(byId("agent").querySelector("tbody"), sorted, (one) => one.monitor, monitor);
  const troubles = [...host.agent.unready_reasons, ...host.agent.warnings];
  set(byId("troubles"), "hidden", troubles.length === 0);
  keyed(byId("troubles"), troubles, (said) => said, (said) => ({ node: el("li", {}, said), update() {} }));
}
