// The workers: their heartbeat, what they use, and how much of the work is theirs.

import { list, make, mark, text } from "./dom.js";
import { bytes, count, duration, plural } from "./format.js";

const LATE = 4; // seconds without a heartbeat; a lease runs for six by default

export function updateWorkers(parent, workers, work) {
  const shares = new Map();
  for (const one of work) {
    for (const { worker_id, chunks } of one.shares) shares.set(worker_id, (shares.get(worker_id) ?? 0) + chunks);
  }
  const all = [...shares.values()].reduce((sum, chunks) => sum + chunks, 0);
  // Of those that are no more, only who did some of what is shown, or has just died.
  const shown = workers.filter((one) => one.status !== "stopped" || shares.has(one.worker_id));
  list(parent, shown, (one) => one.worker_id, row);
  for (const one of shown) parent.kept.get(one.worker_id).fill(one, shares.get(one.worker_id) ?? 0, all);
  return shown.length;
}

function row(worker) {
  const beat = make("span");
  const memory = make("td", { class: "number", "data-label": "memory" });
  const cpu = make("td", { class: "number", "data-label": "cpu" });
  const filled = make("span");
  const chunks = make("span");
  const element = make(
    "tr",
    {},
    make("td", { class: "name" }, worker.worker_id),
    make("td", { class: "cell-heartbeat" }, make("span", { class: "pulse" }, make("i", { "aria-hidden": "true" }), beat)),
    memory,
    cpu,
    make("td", { class: "cell-share" }, make("div", { class: "share" }, make("div", { class: "meter", "aria-hidden": "true" }, filled), chunks)),
  );
  return {
    element,
    update() {},
    fill(shown, share, all) {
      const age = shown.seconds_since_heartbeat;
      mark(element, "data-status", shown.status === "active" && age > LATE ? "late" : shown.status);
      text(beat, shown.status === "active" ? `${duration(age)} ago` : `${shown.status} ${duration(age)} ago`);
      text(memory, shown.memory_bytes === null ? "—" : bytes(shown.memory_bytes));
      text(cpu, shown.cpu_percent === null ? "—" : `${count(shown.cpu_percent)} %`);
      filled.style.width = all ? `${(100 * share) / all}%` : "0";
      text(chunks, plural(share, "chunk"));
    },
  };
}
