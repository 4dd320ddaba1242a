// The past: how long runs took, and how much they wrote.

import { bars } from "./charts.js";
import { make, mark } from "./dom.js";
import { clock, count, duration, plural } from "./format.js";

const MOST = 60;
const ROWS = 15;

const seconds = (run) => (Date.parse(run.ended) - Date.parse(run.begun)) / 1000;

/** How a run ended. A sync that completed unverified has caught up with a source that never rests. */
export function verdict(run) {
  if (run.verified) return "verified";
  if (run.verified === null) return run.status;
  return run.status === "completed" && run.kind !== "verify" ? "caught up" : "not verified";
}

const tone = (run) =>
  ({ verified: "good", "caught up": "good", failed: "bad", "not verified": "bad" })[verdict(run)] ?? "plain";
const name = (run) => (run.pair ? `${run.pair} · ${run.kind}` : run.kind);

/** A run as a bar of its duration. */
export const bar = (run) => ({
  value: seconds(run),
  tone: tone(run),
  title: `${name(run)}, ${clock(run.begun)}: ${duration(seconds(run))}, ${verdict(run)}`,
});

export function updateHistory(parent, runs) {
  const newest = runs.length ? `${runs.at(-1).run_id}${runs.at(-1).ended}` : "none";
  if (parent.getAttribute("data-newest") === newest) return;
  mark(parent, "data-newest", newest);
  const isOpen = parent.querySelector("details")?.open ?? false;
  if (!runs.length) {
    parent.replaceChildren(make("p", { class: "empty" }, "No run has ended yet."));
    return;
  }
  const bad = runs.filter((run) => tone(run) === "bad").length;
  const written = runs.reduce((sum, run) => sum + run.written, 0);
  const longest = Math.max(...runs.map(seconds));
  parent.replaceChildren(
    make(
      "div",
      { class: "charts" },
      chart("How long runs took", `at most ${duration(longest)}`, runs.map(bar),
        `How long the last ${plural(runs.length, "run")} took; ${bad} not verified.`),
      chart("Records written", `${count(written)} in all`,
        runs.map((run) => ({ value: run.written, tone: run.written ? tone(run) : "plain", title: `${name(run)}, ${clock(run.begun)}: ${plural(run.written, "record")} written` })),
        `Records that each of the last ${plural(runs.length, "run")} wrote, ${count(written)} in all.`),
    ),
    make("details", { open: isOpen }, make("summary", {}, "The last runs in numbers"), table(runs)),
  );
}

const chart = (title, note, values, label) =>
  make("figure", {}, make("figcaption", {}, make("span", {}, title), make("span", {}, note)), bars(values, { most: MOST, label }));

function table(runs) {
  const heads = ["Begun", "Run", "Took", "Written", "Unchanged", "Unlike", "Verdict"];
  const numbers = new Set([2, 3, 4, 5]);
  const kind = (index) => ({ class: numbers.has(index) ? "number" : null });
  const rows = runs.slice(-ROWS).reverse().map((run) =>
    make(
      "tr",
      {},
      ...[clock(run.begun), name(run), duration(seconds(run)), count(run.written), count(run.unchanged), count(run.unlike), verdict(run)].map(
        (words, index) => make("td", kind(index), words),
      ),
    ),
  );
  return make(
    "div",
    { class: "scroll" },
    make(
      "table",
      { class: "past" },
      make("thead", {}, make("tr", {}, ...heads.map((words, index) => make("th", { scope: "col", ...kind(index) }, words)))),
      make("tbody", {}, ...rows),
    ),
  );
}
