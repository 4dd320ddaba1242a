// Failures with their reasons, and the way to try them again.

import { button, offer } from "./actions.js";
import { list, make, show, text } from "./dom.js";
import { count, plural } from "./format.js";

export function updateTrouble(parent, trouble) {
  list(parent, trouble, (one) => one.run_id, card);
}

function card({ run_id }) {
  const title = make("h3");
  const why = make("p", { class: "why" });
  const failures = make("ul");
  const hint = make("p", { class: "soft" });
  const retry = button("Retry", `runs/${run_id}/retry`, { tone: "strong" });
  const element = make("article", { class: "card trouble" }, make("div", { class: "head" }, title, retry), why, hint, failures);
  return {
    element,
    update(shown) {
      const chunks = shown.failures.length;
      const over = shown.status === "failed" || shown.status === "completed";
      const what = chunks ? `${plural(chunks, "chunk")} failed` : "source and target differ";
      text(title, `${shown.pair ?? "run"} ${run_id.slice(0, 8)}: ${what}`);
      const told = shown.failures.some((one) => one.error === shown.error);
      text(why, told ? "" : (shown.error ?? ""));
      show(why, why.textContent !== "");
      // What is retried while the run goes on would only wait for it.
      offer(retry, over && shown.pair !== null);
      text(hint, shown.pair === null ? `No schedule has its pair; chroma-sync retry ${run_id} tries it again.` : "");
      show(hint, hint.textContent !== "");
      list(failures, shown.failures, (one) => one.task_id, failure);
    },
  };
}

function failure() {
  const why = make("div");
  const where = make("div", { class: "where" });
  return {
    element: make("li", {}, why, where),
    update(shown) {
      text(why, shown.error ?? "No reason is known.");
      const refused = shown.refused ? `, ${plural(shown.refused, "record")} refused` : "";
      const retries = shown.retries ? `, ${shown.retries === 1 ? "1 retry" : `${shown.retries} retries`}` : "";
      text(where, `${shown.collection}, records ${count(shown.start)} to ${count(shown.end)}${retries}${refused}`);
    },
  };
}
