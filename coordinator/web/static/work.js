// Runs at work: their phases, the grid of chunks, the rate and the time left.

import { button, offer } from "./actions.js";
import { badge, list, make, mark, show, text } from "./dom.js";
import { count, duration, percent, plural, rate, since } from "./format.js";
import { grid } from "./grid.js";
import { verdict } from "./history.js";

const TONES = {
  verified: ["good", "good"], "caught up": ["good", "good"], completed: ["good", "good"],
  failed: ["bad", "bad"], "not verified": ["bad", "bad"], paused: ["plain", "plain"],
  interrupted: ["warn", "warn"], planning: ["busy", "busy"], running: ["busy", "busy"],
  verifying: ["busy", "busy"],
};

export function updateWork(parent, work, now) {
  list(parent, work, (one) => one.run.run_id, card);
  for (const one of work) parent.kept.get(one.run.run_id).fill(one, now);
}

function card({ run }) {
  const state = badge();
  const phases = make("ol", { class: "phases", "aria-label": "Phases" });
  const done = make("strong");
  const what = make("span", { class: "figure-label" });
  const [chunks, records, speed, left] = ["Chunks", "Records", "Records a second", "Time left"].map(figure);
  const filled = make("span");
  const meter = make("div", { class: "meter", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, filled);
  const cells = grid();
  const group = make("span", { class: "group" });
  const failed = legend("f", "failed");
  const why = make("p", { class: "why", hidden: true });
  const path = `runs/${run.run_id}`;
  const pause = button("Pause", `${path}/pause`);
  const resume = button("Resume", `${path}/resume`);
  const cancel = button("Cancel run", `${path}/cancel`, {
    tone: "danger",
    confirm: ["Cancel this run?", "Chunks under way are finished, no other is begun. What was written stays."],
  });

  const element = make(
    "article",
    { class: "card work" },
    make(
      "div",
      { class: "head" },
      make("h3", {}, run.pair ? `${run.pair} · ${run.kind}` : `${run.kind} ${run.source} → ${run.target}`),
      state.element,
      make("code", { class: "soft", title: run.run_id }, run.run_id.slice(0, 8)),
      make("div", { class: "actions" }, pause, resume, cancel),
    ),
    phases,
    make("div", { class: "figures" }, make("div", { class: "percent" }, done, what), chunks.element, records.element, speed.element, left.element),
    meter,
    why,
    cells.element,
    make("div", { class: "legend" }, legend("c", "completed"), legend("r", "being worked on"), legend("p", "waiting"), failed, group),
  );

  function fill({ run: shown, part: partId, grid: cellsOf }, now) {
    const over = shown.ended !== null;
    const part = shown.parts.find((one) => one.run_id === partId);
    const word = over ? verdict(shown) : shown.paused ? "paused" : shown.status;
    state.update(...(TONES[word] ?? ["plain", "bad"]), word);
    list(phases, shown.parts, (one) => one.run_id, phase);
    shown.parts.forEach((one, index) => phases.kept.get(one.run_id).fill(one, index, shown));

    const settled = part.chunks.completed + part.chunks.failed;
    const share = part.chunks.planned ? settled / part.chunks.planned : 0;
    text(done, percent(share));
    text(what, `of the ${part.kind === "verify" ? "verification" : "sync"}`);
    filled.style.width = `${share * 100}%`;
    mark(meter, "aria-valuenow", Math.floor(share * 100));
    mark(meter, "aria-label", `Chunks settled of the ${part.kind}`);
    chunks.fill(`${count(part.chunks.completed)} / ${count(part.chunks.planned)}`);
    records.fill(`${count(part.records_done)} / ${count(part.records)}`);
    if (over) {
      const took = since(shown.begun, Date.parse(shown.ended));
      speed.fill(duration(took), "Took");
      left.fill(`${duration(since(shown.ended, now))} ago`, "Ended");
    } else {
      speed.fill(rate(part.records_per_second));
      left.fill(part.seconds_left === null ? "—" : `~ ${duration(part.seconds_left)}`);
    }
    cells.update(
      cellsOf,
      `${plural(part.chunks.planned, "chunk")}: ${count(part.chunks.completed)} completed, ${count(part.chunks.processing)} being worked on, ${count(part.chunks.pending)} waiting, ${count(part.chunks.failed)} failed.`,
    );
    show(failed, part.chunks.failed > 0);
    text(group, cellsOf.per_cell > 1 ? `a cell is ${count(cellsOf.per_cell)} chunks` : "a cell is a chunk");
    text(why, shown.error ?? "");
    show(why, Boolean(shown.error));
    offer(pause, !over && !shown.paused);
    offer(resume, !over && shown.paused);
    offer(cancel, !over);
  }
  return { element, update() {}, fill };
}

function figure(label) {
  const name = make("span", { class: "figure-label" }, label);
  const value = make("strong");
  return {
    element: make("div", {}, value, name),
    fill(words, otherLabel = label) {
      text(value, words);
      text(name, otherLabel);
    },
  };
}

const legend = (state, words) => make("span", {}, make("i", { "data-state": state, "aria-hidden": "true" }), words);

function phase() {
  const dot = make("i", { "aria-hidden": "true" });
  const label = make("span");
  return {
    element: make("li", {}, dot, label),
    update() {},
    fill(part, index, run) {
      const earlier = run.parts.slice(0, index).filter((one) => one.kind === part.kind).length;
      const isLast = index === run.parts.length - 1;
      text(label, part.kind === "verify" ? "Verify" : index ? `Pass ${earlier + 1}` : "Sync");
      mark(dot, "data-tone", tone(part, isLast, run));
      mark(label, "title", part.kind === "verify" && part.verified === false && !isLast ? "found records to sync again" : null);
      mark(this.element, "aria-current", isLast && run.ended === null ? "step" : null);
    },
  };
}

function tone(part, isLast, run) {
  if (part.chunks.failed) return "bad";
  // A sync that waits for its verification has done its own part.
  if (part.ended === null && (isLast || part.status !== "verifying")) return "busy";
  // What a verification finds while the source changes is what the next pass is for.
  if (part.kind === "verify" && part.verified === false) {
    return isLast && verdict(run) === "not verified" ? "bad" : "again";
  }
  return "good";
}
