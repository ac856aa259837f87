/** The table of a VM's migration and jobs, with progress and remaining time. */

import { cell, el, setAttribute, setText } from "./dom.js";
import { bytes, duration, percent } from "./format.js";
import { createTable } from "./space-tables.js";

const ENDED = ["completed", "failed", "cancelled"];

/** Return the migration and the jobs of a VM's summary as rows of the table. */
export function activitiesOf(vm) {
  const activities = (vm.jobs ?? []).map((job) => ({
    key: `job ${job.job}`,
    name: `${job.type} ${job.job}`,
    status: [job.status, job.error].filter(Boolean).join(": "),
    share: job.progress_ratio,
    done: job.progress_ratio === undefined ? "" : percent(job.progress_ratio),
    remaining: job.remaining_seconds,
  }));
  const { migration } = vm;
  if (!migration) return activities;
  const { status, total_bytes: total, done_bytes: done, elapsed_seconds: elapsed, throughput_bytes_per_second: throughput } = migration;
  const progress = total ? [`${bytes(done)} of ${bytes(total)}`, throughput > 0 && `${bytes(throughput)}/s`] : [elapsed !== undefined && ENDED.includes(status) && `took ${duration(elapsed)}`];
  activities.push({ key: "migration", name: "migration", status, share: total ? done / total : undefined, done: progress.filter(Boolean).join(" · "), remaining: migration.remaining_seconds });
  return activities;
}

export function createActivityTable() {
  return createTable("activity", "Migrations and jobs", ["Activity", "Progress", "Remaining"], (item) => item.key, () => {
    const [name, status, done, remaining] = ["", "more", "more", "value"].map((style) => el("span", { class: style }));
    const bar = el("progress", { max: 1, "aria-label": "Progress" });
    const progress = cell("Progress", bar, done);
    return {
      node: el("tr", { role: "row" }, el("th", { role: "rowheader", scope: "row" }, name, " ", status), progress, cell("Remaining", remaining)),
      update(current) {
        setText(name, current.name);
        setText(status, current.status);
        setAttribute(bar, "hidden", current.share === undefined);
        if (current.share !== undefined) bar.value = current.share;
        setText(done, current.done);
        progress.classList.toggle("empty", !current.done);
        setText(remaining, current.remaining === undefined ? "" : duration(current.remaining));
      },
    };
  });
}
