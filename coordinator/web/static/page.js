// Asks how things are once a second, and shows it. Says so when nobody answers, and goes on when
// somebody does.

import { allowChanges, wantToken } from "./actions.js";
import { read, token } from "./api.js";
import { mark, show, text } from "./dom.js";
import { duration, plural } from "./format.js";
import { updateHistory } from "./history.js";
import { updatePairs } from "./pairs.js";
import { updateTrouble } from "./trouble.js";
import { updateWork } from "./work.js";
import { updateWorkers } from "./workers.js";

const EVERY = 1000; // milliseconds
const HISTORY_EVERY = 5000;
const SLOW = 4000;
const WORDS = { live: "live", lost: "connection lost", waiting: "waiting for an answer" };

const find = (id) => document.getElementById(id);

let overview = null;
let history = [];
let historyAsked = -HISTORY_EVERY;
let ahead = 0; // of our clock, the server's
let answered = performance.now();
let lost = null; // why nobody answers
let asking = false;

async function look() {
  if (document.hidden) return;
  if (asking) {
    paint(); // it takes its time
    return;
  }
  asking = true;
  try {
    const seen = await read("overview");
    ahead = Date.parse(seen.at) - Date.now();
    overview = seen;
    if (performance.now() - historyAsked >= HISTORY_EVERY) {
      history = await read("history");
      historyAsked = performance.now();
    }
    answered = performance.now();
    lost = null;
  } catch (error) {
    if (error.status === 401) {
      const had = token.get();
      token.forget();
      lost = "This coordinator wants a token.";
      wantToken(look, had ? "That token was refused. Is it the coordinator’s?" : null);
    } else {
      lost = error.status ? error.message : "The coordinator does not answer.";
    }
  } finally {
    asking = false;
  }
  paint();
}

function paint() {
  const slow = performance.now() - answered > SLOW;
  const state = lost ? "lost" : overview && !slow ? "live" : "waiting";
  mark(document.body, "data-connection", state);
  mark(find("connection"), "data-state", state);
  text(find("connection"), WORDS[state]);
  show(find("banner"), Boolean(lost));
  if (lost) {
    const age = overview ? ` What is shown is ${duration((performance.now() - answered) / 1000)} old.` : "";
    text(find("banner"), `${lost}${age} Trying again.`);
  }
  if (!overview) return;
  // What is old stays as it was: ages that go on would look like news.
  const now = lost ? Date.parse(overview.at) : Date.now() + ahead;
  const atWork = overview.work.filter((one) => one.run.ended === null);
  allowChanges(overview.may_change);
  text(find("leader"), overview.leader ? `led by ${overview.leader.holder}, term ${overview.leader.term}` : "nobody leads");
  updatePairs(find("pair-cards"), overview.pairs, now, history);
  show(find("no-pairs"), !overview.pairs.length);
  text(find("work-title"), atWork.length === 1 ? "Run in progress" : atWork.length ? `${plural(atWork.length, "run")} in progress` : "Last run");
  updateWork(find("work-cards"), overview.work, now);
  show(find("no-work"), !overview.work.length);
  updateTrouble(find("trouble-cards"), overview.trouble);
  show(find("trouble"), overview.trouble.length > 0);
  show(find("no-workers"), !updateWorkers(find("workers"), overview.workers, overview.work));
  updateHistory(find("history"), history);
  text(find("version"), `chroma-sync ${overview.version}`);
  document.title = title(atWork);
  mark(find("page"), "aria-busy", "false");
}

function title(atWork) {
  if (lost) return "⚠ chroma-sync";
  if (!atWork.length) return "chroma-sync";
  const { run, part } = atWork[0];
  const { chunks } = run.parts.find((one) => one.run_id === part);
  return `${Math.floor((100 * (chunks.completed + chunks.failed)) / Math.max(1, chunks.planned))} % · chroma-sync`;
}

setInterval(look, EVERY);
document.addEventListener("visibilitychange", look);
look();
