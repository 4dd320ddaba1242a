// What can be asked of the coordinator by hand: buttons, the token that they need, and the answer.

import { change, token } from "./api.js";
import { make, mark, show, text } from "./dom.js";

const find = (id) => document.getElementById(id);
const WHY = find("token-why").cloneNode(true);

let mayChange = false;
let waiting = null; // for a token: what to do once it is there

/** Whether changes are possible at all: without a token of the coordinator's, buttons are no use. */
export function allowChanges(allowed) {
  mayChange = allowed;
  show(find("unlock"), allowed && !token.get());
  show(find("read-only"), !allowed);
  document.body.toggleAttribute("data-read-only", !allowed);
}

/** A button that asks for something; `confirm`: what is asked before, as [title, text]. */
export function button(label, path, { tone = "", confirm = null } = {}) {
  const element = make("button", { class: `button ${tone}`, type: "button" }, label);
  element.addEventListener("click", async () => {
    if (confirm && !(await sure(confirm, label))) return;
    element.disabled = true;
    await carryOut(typeof path === "function" ? path() : path);
    element.disabled = false;
  });
  return element;
}

/** Shows or hides a button, which is there only if it is of use. */
export const offer = (element, offered) => show(element, mayChange && offered);

async function carryOut(path) {
  if (!token.get()) {
    wantToken(() => carryOut(path));
    return;
  }
  try {
    say((await change(path)).accepted);
  } catch (error) {
    if (error.status === 401) {
      token.forget();
      wantToken(() => carryOut(path), "That token was refused. Is it the coordinator’s?");
    } else {
      say(error.status ? error.message : "The coordinator does not answer.");
    }
  }
}

/** Ask for the token; `then` is done once it is there. */
export function wantToken(then = null, why = null) {
  const dialog = find("token-dialog");
  waiting = then;
  if (why) text(find("token-why"), why);
  else find("token-why").replaceChildren(...WHY.cloneNode(true).childNodes);
  mark(find("token-why"), "data-tone", why ? "bad" : null);
  if (!dialog.open) dialog.showModal();
}

find("unlock").addEventListener("click", () => wantToken());
find("token-dialog").querySelector("[data-close]").addEventListener("click", () => find("token-dialog").close());
find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.keep(find("token").value.trim());
  find("token").value = "";
  find("token-dialog").close();
  show(find("unlock"), false);
  const then = waiting;
  waiting = null;
  then?.();
});

function sure([title, words], label) {
  const dialog = find("ask-dialog");
  text(find("ask-title"), title);
  text(find("ask-text"), words);
  text(dialog.querySelector("[data-yes]"), label);
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = (value) => () => {
      dialog.close();
      resolve(value);
    };
    dialog.querySelector("[data-yes]").onclick = answer(true);
    dialog.querySelector("[data-no]").onclick = answer(false);
    dialog.oncancel = () => resolve(false);
  });
}

let hiding = null;

/** A line at the foot of the page, for some seconds. */
export function say(words) {
  const toast = find("toast");
  text(toast, words);
  toast.setAttribute("data-shown", "");
  clearTimeout(hiding);
  hiding = setTimeout(() => toast.removeAttribute("data-shown"), 6000);
}
