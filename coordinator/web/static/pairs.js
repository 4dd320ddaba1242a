// The pairs: how fresh each target is, and whether that was verified.

import { button, offer } from "./actions.js";
import { bars } from "./charts.js";
import { badge, list, make, show, text } from "./dom.js";
import { clock, duration, plural, since } from "./format.js";
import { bar } from "./history.js";

const STATES = {
  alike: ["good", "good", "verified alike"],
  "caught up": ["good", "good", "caught up"],
  syncing: ["busy", "busy", "syncing"],
  stalled: ["bad", "warn", "stalled"],
  failed: ["bad", "bad", "not verified"],
  overdue: ["warn", "warn", "overdue"],
  paused: ["plain", "plain", "paused"],
  waiting: ["plain", "waiting", "never synced"],
};

export function updatePairs(parent, pairs, now, history) {
  list(parent, pairs, (pair) => pair.name, card);
  for (const pair of pairs) parent.kept.get(pair.name).fill(pair, now, history);
}

function card(pair) {
  const state = badge();
  const lag = make("strong");
  const lagLabel = make("span", { class: "soft" });
  const source = make("span", { class: "mono" });
  const target = make("span", { class: "mono" });
  const schedule = make("span");
  const next = make("span");
  const why = make("p", { class: "why", hidden: true });
  const spark = make("div", { class: "spark" });
  const path = `pairs/${encodeURIComponent(pair.name)}`;
  const sync = button("Sync now", `${path}/sync`);
  const verify = button("Verify now", `${path}/verify`);
  const pause = button("Pause", `${path}/pause`, { tone: "quiet" });
  const resume = button("Resume", `${path}/resume`);
  let drawn = "";

  const element = make(
    "article",
    { class: "card pair" },
    make("div", { class: "head" }, make("h3", {}, pair.name), state.element),
    make("p", { class: "fresh" }, lag, lagLabel),
    why,
    make(
      "div",
      { class: "route" },
      make("span", { "aria-label": "from" }, "●"), source,
      make("span", { "aria-label": "to" }, "→"), target,
    ),
    spark,
    make("div", { class: "meta" }, schedule, next),
    make("div", { class: "actions" }, sync, verify, pause, resume),
  );

  function fill(shown, now, history) {
    state.update(...STATES[shown.state]);
    const age = shown.alike_as_of === null ? null : since(shown.alike_as_of, now);
    text(lag, age === null ? "—" : duration(age));
    text(lagLabel, age === null ? "not yet known to be alike" : "since known to be alike");
    lagLabel.title = age === null ? "" : clock(shown.alike_as_of);
    text(source, shown.source);
    source.title = shown.source;
    text(target, shown.target);
    target.title = shown.target;
    text(schedule, shown.schedule.startsWith("every ") ? shown.schedule : `cron ${shown.schedule}`);
    text(next, upcoming(shown, now));
    text(why, reason(shown, now));
    show(why, why.textContent !== "");
    offer(sync, !shown.paused);
    offer(verify, !shown.paused);
    offer(pause, !shown.paused);
    offer(resume, shown.paused);
    const past = history.filter((run) => run.pair === shown.name);
    const newest = past.length ? `${past.at(-1).run_id}${past.at(-1).ended}` : "none";
    if (newest !== drawn) {
      drawn = newest;
      spark.replaceChildren(bars(past.map(bar), { most: 40, label: told(past) }));
      spark.firstChild.style.height = "40px";
    }
  }
  return { element, update() {}, fill };
}

function told(past) {
  if (!past.length) return "No run has ended yet.";
  const bad = past.filter((run) => bar(run).tone === "bad").length;
  return `How long its last ${plural(past.length, "run")} took; ${bad} not verified.`;
}

function upcoming(pair, now) {
  if (pair.requested) return `${pair.requested} asked for`;
  if (pair.paused) return "its schedule is held";
  if (pair.state === "syncing" || pair.state === "stalled" || pair.next_run === null) return "";
  const left = (Date.parse(pair.next_run) - now) / 1000;
  return left > 0 ? `next in ${duration(left)}` : "due now";
}

function reason(pair, now) {
  if (pair.error) return pair.error;
  if (pair.state === "stalled") return `No sign of life for ${duration(since(pair.last_sign_of_life, now))}.`;
  if (pair.state === "caught up") return "";
  if (pair.run_verified === false) return "The last run could not be verified.";
  return "";
}
